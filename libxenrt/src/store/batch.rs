//! Many requests in one round trip: they are sent together, then the answers are collected. The server answers in order, so
//! a batch costs one pair of wake-ups where single requests cost one pair each.

use super::{NUL, Store, StoreError, Transaction};
use crate::{clock, event};
use alloc::string::String;
use alloc::vec::Vec;
use xenstore::{MsgType, XsError};

/// Requests under way at once: below the client's limit, so that others (statistics) find room.
const WINDOW: usize = 24;

impl Store {
    /// Sends one request per payload (a list of parts) and collects the answers in order.
    fn call_many(
        &mut self,
        kind: MsgType,
        payloads: &[Vec<&[u8]>],
    ) -> Result<Vec<Result<Vec<u8>, XsError>>, StoreError> {
        let deadline = clock::now() + self.timeout;
        let mut replies = Vec::with_capacity(payloads.len());
        for window in payloads.chunks(WINDOW) {
            let mut ids = Vec::with_capacity(window.len());
            for parts in window {
                ids.push(self.client.request(kind, Transaction::NONE.0, parts)?);
            }
            let mut waiting = ids.into_iter();
            let mut next = waiting.next();
            while let Some(id) = next {
                self.pump()?;
                if let Some(reply) = self.client.take_reply(id) {
                    replies.push(reply);
                    next = waiting.next();
                } else if clock::now() >= deadline {
                    core::iter::once(id).chain(waiting).for_each(|id| self.client.forget(id));
                    return Err(StoreError::TimedOut(kind));
                } else {
                    event::poll(&[self.port()], Some(deadline))?;
                }
            }
        }
        Ok(replies)
    }

    /// Reads nodes; `None` where one does not exist or may not be read.
    ///
    /// # Errors
    /// The server's other than ENOENT and EACCES, or no answer in time.
    pub fn read_many(&mut self, paths: &[String]) -> Result<Vec<Option<String>>, StoreError> {
        let payloads: Vec<Vec<&[u8]>> = paths.iter().map(|p| [p.as_bytes(), NUL].to_vec()).collect();
        self.call_many(MsgType::Read, &payloads)?
            .into_iter()
            .map(|reply| match reply {
                Ok(bytes) => Self::text(bytes).map(Some),
                Err(XsError::NoEnt | XsError::Acces) => Ok(None),
                Err(e) => Err(StoreError::Server(e)),
            })
            .collect()
    }

    /// Names of the children of nodes; none where a node does not exist.
    ///
    /// # Errors
    /// The server's other than ENOENT, or no answer in time.
    pub fn directory_many(&mut self, paths: &[String]) -> Result<Vec<Vec<String>>, StoreError> {
        let payloads: Vec<Vec<&[u8]>> = paths.iter().map(|p| [p.as_bytes(), NUL].to_vec()).collect();
        self.call_many(MsgType::Directory, &payloads)?
            .into_iter()
            .map(|reply| match reply {
                Ok(bytes) => {
                    let text = Self::text(bytes)?;
                    Ok(text.split('\0').filter(|name| !name.is_empty()).map(String::from).collect())
                }
                Err(XsError::NoEnt) => Ok(Vec::new()),
                Err(e) => Err(StoreError::Server(e)),
            })
            .collect()
    }

    /// Writes nodes in order, making them and their parents where needed.
    ///
    /// # Errors
    /// The first refusal (later nodes have been written nevertheless), or no answer in time.
    pub fn write_many(&mut self, nodes: &[(String, String)]) -> Result<(), StoreError> {
        let payloads: Vec<Vec<&[u8]>> =
            nodes.iter().map(|(path, value)| [path.as_bytes(), NUL, value.as_bytes()].to_vec()).collect();
        for reply in self.call_many(MsgType::Write, &payloads)? {
            reply.map_err(StoreError::Server)?;
        }
        Ok(())
    }
}
