//! Messages: a 16-byte header and up to 4096 bytes of payload. [`Assembler`] puts them together from whatever chunks
//! the ring yields; [`strings`] takes a payload of NUL-terminated strings apart.

use abi::io::xs_wire::{Header, PAYLOAD_MAX};
use alloc::vec::Vec;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of a header.
pub const HEADER_LEN: usize = size_of::<Header>();
/// `XENSTORE_ERROR_PROTO` and its siblings: values of the store page's `error` field.
pub mod page_error {
    /// `XENSTORE_ERROR_NONE`.
    pub const NONE: u32 = 0;
    /// `XENSTORE_ERROR_COMM`: the server cannot reach the page.
    pub const COMM: u32 = 1;
    /// `XENSTORE_ERROR_RINGIDX`: an index that cannot be.
    pub const RINGIDX: u32 = 2;
    /// `XENSTORE_ERROR_PROTO`: a payload longer than a message may have.
    pub const PROTO: u32 = 3;
}
/// `XENSTORE_SERVER_FEATURE_RECONNECTION` in `server_features`.
pub const FEATURE_RECONNECTION: u32 = 1;
/// `XENSTORE_SERVER_FEATURE_ERROR`.
pub const FEATURE_ERROR: u32 = 2;
/// `XENSTORE_CONNECTED` in `connection`.
pub const CONNECTED: u32 = 0;
/// `XENSTORE_RECONNECT`: the guest asks for a reset of the rings; the server answers with [`CONNECTED`].
pub const RECONNECT: u32 = 1;

/// A message in private memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `MsgType` as a number; the peer may have written anything.
    pub kind: u32,
    /// Chosen by who asks, echoed by who answers.
    pub req_id: u32,
    /// Transaction or 0.
    pub tx_id: u32,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

/// The peer broke the format; the stream cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// A header announces more than [`PAYLOAD_MAX`] bytes.
    TooLong {
        /// As announced.
        len: u32,
    },
}

impl Message {
    /// The bytes of this message, appended to `out`. A payload beyond [`PAYLOAD_MAX`] is an error and appends nothing.
    ///
    /// # Errors
    /// [`WireError::TooLong`].
    pub fn encode(&self, out: &mut impl Extend<u8>) -> Result<(), WireError> {
        let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        if self.payload.len() > PAYLOAD_MAX {
            return Err(WireError::TooLong { len });
        }
        let header = Header { kind: self.kind, req_id: self.req_id, tx_id: self.tx_id, len };
        out.extend(header.as_bytes().iter().copied());
        out.extend(self.payload.iter().copied());
        Ok(())
    }
}

/// Collects one message from chunks. Holds at most one header and one payload.
#[derive(Clone, Debug, Default)]
pub struct Assembler {
    header: [u8; HEADER_LEN],
    have: usize,
    /// Set once the header is complete: the message, and the payload bytes still to come.
    open: Option<(Message, usize)>,
}

impl Assembler {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { header: [0; HEADER_LEN], have: 0, open: None }
    }

    /// How many bytes it can use now before it either completes a message or has to look at a header.
    #[must_use]
    pub fn wants(&self) -> usize {
        match &self.open {
            Some((_, missing)) => *missing,
            None => HEADER_LEN.saturating_sub(self.have),
        }
    }

    /// Whether it stands between two messages.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.have == 0 && self.open.is_none()
    }

    /// Takes bytes from the front of `bytes` (which is advanced) until a message is complete or they are used up.
    ///
    /// # Errors
    /// [`WireError`]; the assembler is then empty, and the stream's position is lost.
    pub fn push(&mut self, bytes: &mut &[u8]) -> Result<Option<Message>, WireError> {
        if self.open.is_none() {
            let room = self.header.get_mut(self.have..).unwrap_or_default();
            let n = room.len().min(bytes.len());
            let (now, later) = bytes.split_at(n);
            for (slot, &byte) in room.iter_mut().zip(now) {
                *slot = byte;
            }
            self.have = self.have.saturating_add(n);
            *bytes = later;
            if self.have < HEADER_LEN {
                return Ok(None);
            }
            self.have = 0;
            // The array has the header's size, so this always reads.
            let header = Header::read_from_bytes(&self.header).unwrap_or_default();
            let len = usize::try_from(header.len).unwrap_or(usize::MAX);
            if len > PAYLOAD_MAX {
                return Err(WireError::TooLong { len: header.len });
            }
            let payload = Vec::with_capacity(len);
            let Header { kind, req_id, tx_id, .. } = header;
            self.open = Some((Message { kind, req_id, tx_id, payload }, len));
        }
        let Some((mut message, missing)) = self.open.take() else { return Ok(None) };
        let (now, later) = bytes.split_at(missing.min(bytes.len()));
        message.payload.extend_from_slice(now);
        *bytes = later;
        let missing = missing.saturating_sub(now.len());
        if missing == 0 {
            return Ok(Some(message));
        }
        self.open = Some((message, missing));
        Ok(None)
    }
}

/// The NUL-terminated strings of a payload. A last one without its NUL counts as well, an empty rest does not.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    payload.split_inclusive(|&b| b == 0).map(|s| s.strip_suffix(&[0]).unwrap_or(s))
}

/// Splits `"path\0rest"` (`XS_WRITE`, `XS_SET_PERMS`): the string, and what follows its NUL.
#[must_use]
pub fn split_first(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = payload.iter().position(|&b| b == 0)?;
    Some((payload.get(..at)?, payload.get(at.checked_add(1)?..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strings_end_at_nuls() {
        assert_eq!(strings(b"a\0b\0").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(strings(b"a\0\0b").collect::<Vec<_>>(), [&b"a"[..], b"", b"b"]);
        assert_eq!(strings(b"").count(), 0);
        assert_eq!(split_first(b"/a\0value\0x"), Some((&b"/a"[..], &b"value\0x"[..])));
        assert_eq!(split_first(b"/a"), None);
    }

    #[test]
    fn an_overlong_header_is_refused_before_anything_is_reserved() {
        let header = Header { kind: 2, req_id: 1, tx_id: 0, len: PAYLOAD_MAX as u32 + 1 };
        let mut a = Assembler::new();
        assert_eq!(a.push(&mut header.as_bytes()), Err(WireError::TooLong { len: 4097 }));
    }

    fn message() -> impl Strategy<Value = Message> {
        (any::<u32>(), any::<u32>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(kind, req_id, tx_id, payload)| Message { kind, req_id, tx_id, payload })
    }

    proptest! {
        #[test]
        fn any_chunking_yields_the_same_messages(
            messages in proptest::collection::vec(message(), 1..5),
            cuts in proptest::collection::vec(1usize..40, 1..40),
        ) {
            let mut bytes = Vec::new();
            for m in &messages {
                m.encode(&mut bytes).unwrap();
            }
            let (mut a, mut out, mut rest, mut cuts) = (Assembler::new(), Vec::new(), &bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (mut chunk, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                rest = later;
                while !chunk.is_empty() {
                    out.extend(a.push(&mut chunk).unwrap());
                }
            }
            prop_assert_eq!(out, messages);
            prop_assert!(a.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_always_advance(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut a = Assembler::new();
            let mut rest = &raw[..];
            while !rest.is_empty() {
                let before = rest.len();
                let _ = a.push(&mut rest);
                prop_assert!(rest.len() < before);
            }
        }
    }
}
