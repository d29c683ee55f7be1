//! Messages of domains: takes a payload apart, runs the operation, makes the reply.

use super::Store;
use abi::DomId;
use abi::io::xs_wire::{MsgType, PAYLOAD_MAX};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use xenstore::wire::split_first;
use xenstore::{Message, Path, Perms, XsError};

const OK: &[u8] = b"OK\0";

/// A payload of exactly one NUL-terminated string.
fn one_string(payload: &[u8]) -> Result<&[u8], XsError> {
    match split_first(payload) {
        Some((text, [])) => Ok(text),
        _ => Err(XsError::Inval),
    }
}

/// The decimal number of a payload's only string.
fn number(text: &[u8]) -> Result<usize, XsError> {
    let digits = text.iter().all(u8::is_ascii_digit);
    let text = core::str::from_utf8(text).ok().filter(|_| digits);
    text.and_then(|t| t.parse().ok()).ok_or(XsError::Inval)
}

impl Store {
    /// Serves one request of `domid`. There is always exactly one reply; what it fires is queued beside it.
    pub fn handle(&mut self, domid: DomId, request: &Message) -> Message {
        let reply = match MsgType::from_u32(request.kind) {
            Some(kind) => self.dispatch(domid, kind, request.tx_id, &request.payload),
            None => Err(XsError::NoSys),
        };
        let reply = match reply {
            Ok(payload) if payload.len() > PAYLOAD_MAX => Err(XsError::TooBig),
            other => other,
        };
        let (kind, payload) = match reply {
            Ok(payload) => (request.kind, payload),
            Err(error) => (MsgType::Error as u32, format!("{error}\0").into_bytes()),
        };
        Message { kind, req_id: request.req_id, tx_id: request.tx_id, payload }
    }

    fn dispatch(&mut self, domid: DomId, kind: MsgType, tx: u32, payload: &[u8]) -> Result<Vec<u8>, XsError> {
        let path = |raw: &[u8]| Path::resolve(raw, domid).map_err(|_| XsError::Inval);
        let ok = || OK.to_vec();
        match kind {
            MsgType::Read => {
                let path = path(one_string(payload)?)?;
                self.run_in(domid, tx, |v| v.read(&path))
            }
            MsgType::Directory => {
                let path = path(one_string(payload)?)?;
                let (children, _) = self.run_in(domid, tx, |v| v.directory(&path))?;
                Ok(children.iter().flat_map(|c| c.bytes().chain([0])).collect())
            }
            MsgType::DirectoryPart => {
                let (raw, offset) = split_first(payload).ok_or(XsError::Inval)?;
                let (path, offset) = (path(raw)?, number(one_string(offset)?)?);
                let (children, generation) = self.run_in(domid, tx, |v| v.directory(&path))?;
                directory_part(&children, generation, offset)
            }
            MsgType::GetPerms => {
                let path = path(one_string(payload)?)?;
                let perms = self.run_in(domid, tx, |v| v.perms(&path))?;
                Ok(perms.to_text('\0', true).into_bytes())
            }
            MsgType::SetPerms => {
                let (raw, perms) = split_first(payload).ok_or(XsError::Inval)?;
                let path = path(raw)?;
                let perms = Perms::parse(perms, 0).map_err(|_| XsError::Inval)?;
                self.run_in(domid, tx, |v| v.set_perms(&path, perms)).map(|()| ok())
            }
            MsgType::Write => {
                let (raw, value) = split_first(payload).ok_or(XsError::Inval)?;
                let path = path(raw)?;
                self.run_in(domid, tx, |v| v.write(&path, value)).map(|()| ok())
            }
            MsgType::Mkdir => {
                let path = path(one_string(payload)?)?;
                self.run_in(domid, tx, |v| v.mkdir(&path)).map(|()| ok())
            }
            MsgType::Rm => {
                let path = path(one_string(payload)?)?;
                self.run_in(domid, tx, |v| v.rm(&path)).map(|()| ok())
            }
            MsgType::Watch | MsgType::Unwatch => {
                let (raw, token) = split_first(payload).ok_or(XsError::Inval)?;
                let token = one_string(token)?;
                if kind == MsgType::Watch {
                    self.watch(domid, raw, token)?;
                } else {
                    self.unwatch(domid, raw, token)?;
                }
                Ok(ok())
            }
            MsgType::ResetWatches => {
                self.reset_watches(domid);
                if let Some(session) = self.sessions.get_mut(&domid) {
                    session.transactions.clear();
                }
                Ok(ok())
            }
            MsgType::TransactionStart if tx != 0 => Err(XsError::Busy),
            MsgType::TransactionStart => Ok(format!("{}\0", self.start_transaction(domid)?).into_bytes()),
            MsgType::TransactionEnd => {
                let commit = match one_string(payload)? {
                    b"T" => true,
                    b"F" => false,
                    _ => return Err(XsError::Inval),
                };
                self.end_transaction(domid, tx, commit).map(|()| ok())
            }
            MsgType::GetDomainPath => {
                let of = number(one_string(payload)?)?;
                Ok(format!("/local/domain/{of}\0").into_bytes())
            }
            MsgType::IsDomainIntroduced => {
                let of = u16::try_from(number(one_string(payload)?)?).map_err(|_| XsError::Inval)?;
                Ok(if self.is_introduced(DomId(of)) { b"T\0".to_vec() } else { b"F\0".to_vec() })
            }
            // For the toolstack; ours is the control domain itself, which calls `introduce` and `release`.
            MsgType::Control | MsgType::Introduce | MsgType::Release | MsgType::Resume | MsgType::SetTarget => {
                Err(XsError::Acces)
            }
            MsgType::WatchEvent | MsgType::Error => Err(XsError::NoSys),
        }
    }
}

/// `XS_DIRECTORY_PART`: the generation, then whole names from byte `offset` of the list on; the part that ends the list has
/// one NUL more.
fn directory_part(children: &[String], generation: u64, offset: usize) -> Result<Vec<u8>, XsError> {
    let list: Vec<u8> = children.iter().flat_map(|c| c.bytes().chain([0])).collect();
    let mut reply = format!("{generation}\0").into_bytes();
    let rest = list.get(offset..).ok_or(XsError::Inval)?;
    let room = PAYLOAD_MAX.saturating_sub(reply.len()).saturating_sub(1);
    let whole = if rest.len() <= room {
        rest
    } else {
        let end = rest.iter().take(room).rposition(|&b| b == 0).map_or(0, |at| at.saturating_add(1));
        rest.get(..end).unwrap_or_default()
    };
    reply.extend_from_slice(whole);
    if whole.len() == rest.len() {
        reply.push(0);
    }
    Ok(reply)
}
