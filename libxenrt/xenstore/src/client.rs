//! The end that asks: requests with ids, replies matched to them, watch events queued apart.
//!
//! The owner of the page calls [`Client::pump`] whenever the event channel fires and after queueing requests, and
//! notifies the server when told to. No call waits; the caller has the deadline (and then calls [`Client::forget`]).

use crate::error::XsError;
use crate::stream::{Side, Stream, StreamFault};
use crate::wire::{self, Assembler, Message, WireError, split_first};
use abi::io::xs_wire::{MsgType, PAYLOAD_MAX, page};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use ring::SharedMem;

/// A request that was sent; its reply is fetched with this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

/// Something at or below a watched path changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// What changed, absolute or relative as the watch was.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

/// Why a request was not queued, or why the connection has to be made anew ([`Client::reconnect`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// The parts are longer than a payload.
    TooLong {
        /// Bytes.
        len: usize,
    },
    /// [`Client::MAX_OUTSTANDING`] requests wait for replies.
    Busy,
    /// The server published impossible indices.
    Fault(StreamFault),
    /// The server sent a message that cannot be.
    Wire(WireError),
    /// The server has declared an error in the page (`wire::page_error`).
    Server(u32),
    /// A reconnection is under way.
    Reconnecting,
}

/// What [`Client::pump`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pumped {
    /// The server has to be notified.
    pub notify: bool,
    /// Replies or events came in.
    pub received: bool,
}

/// The state of one connection. Everything in it is bounded.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    assembler: Assembler,
    out: VecDeque<u8>,
    next_id: u32,
    /// Ids waiting for a reply, in the order sent, and replies that nobody has fetched yet.
    waiting: Vec<u32>,
    replies: Vec<(u32, Result<Vec<u8>, XsError>)>,
    events: VecDeque<WatchEvent>,
    lost_events: bool,
    reconnecting: bool,
}

impl Client {
    /// Most requests without a fetched reply.
    pub const MAX_OUTSTANDING: usize = 32;
    /// Most watch events kept. Beyond it [`Client::events_lost`] becomes true, and the owner has to look at all it watches.
    pub const MAX_EVENTS: usize = 256;

    /// Attaches to the page as it is.
    pub fn attach<M: SharedMem + ?Sized>(mem: &M) -> Self {
        Self {
            stream: Stream::attach(mem, Side::Client),
            assembler: Assembler::new(),
            out: VecDeque::new(),
            next_id: 1,
            waiting: Vec::new(),
            replies: Vec::new(),
            events: VecDeque::new(),
            lost_events: false,
            reconnecting: false,
        }
    }

    /// Queues a request whose payload is `parts` one after the other (callers put the NULs: see [`nul`]).
    ///
    /// # Errors
    /// [`ClientError::TooLong`], [`ClientError::Busy`], [`ClientError::Reconnecting`]; nothing was queued.
    pub fn request(&mut self, kind: MsgType, tx_id: u32, parts: &[&[u8]]) -> Result<RequestId, ClientError> {
        if self.reconnecting {
            return Err(ClientError::Reconnecting);
        }
        if self.waiting.len().saturating_add(self.replies.len()) >= Self::MAX_OUTSTANDING {
            return Err(ClientError::Busy);
        }
        let len = parts.iter().fold(0usize, |sum, p| sum.saturating_add(p.len()));
        if len > PAYLOAD_MAX {
            return Err(ClientError::TooLong { len });
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let message = Message { kind: kind as u32, req_id: id, tx_id, payload: parts.concat() };
        message.encode(&mut self.out).map_err(ClientError::Wire)?;
        self.waiting.push(id);
        Ok(RequestId(id))
    }

    /// Moves bytes both ways as far as they go. (A server that never stops sending keeps it here: the control domain can
    /// stop any domain anyway, so it is trusted with liveness, with nothing else.)
    ///
    /// # Errors
    /// The connection is broken: [`ClientError::Fault`], [`ClientError::Wire`] or [`ClientError::Server`].
    pub fn pump<M: SharedMem + ?Sized>(&mut self, mem: &M) -> Result<Pumped, ClientError> {
        let mut pumped = Pumped::default();
        if self.reconnecting {
            if mem.load_acquire(page::CONNECTION) == wire::RECONNECT {
                return Ok(pumped);
            }
            self.reconnecting = false;
            self.stream = Stream::attach(mem, Side::Client);
        }
        let error = mem.read(page::ERROR);
        if error != wire::page_error::NONE {
            return Err(ClientError::Server(error));
        }
        let mut chunk = [0u8; 256];
        loop {
            let wrote = self.stream.write(mem, self.out.as_slices().0).map_err(ClientError::Fault)?;
            self.out.drain(..wrote);
            let (read, was_full) = self.stream.read(mem, &mut chunk).map_err(ClientError::Fault)?;
            pumped.notify |= wrote > 0 || was_full;
            pumped.received |= read > 0;
            let mut bytes = chunk.get(..read).unwrap_or_default();
            while !bytes.is_empty() {
                if let Some(message) = self.assembler.push(&mut bytes).map_err(ClientError::Wire)? {
                    self.accept(message);
                }
            }
            if wrote == 0 && read == 0 {
                return Ok(pumped);
            }
        }
    }

    fn accept(&mut self, message: Message) {
        if message.kind == MsgType::WatchEvent as u32 {
            return self.accept_event(&message.payload);
        }
        // A reply to nothing that waits (forgotten after a deadline, or invented) is dropped.
        let Some(at) = self.waiting.iter().position(|&id| id == message.req_id) else { return };
        self.waiting.remove(at);
        let reply = if message.kind == MsgType::Error as u32 {
            Err(XsError::from_payload(&message.payload))
        } else {
            Ok(message.payload)
        };
        self.replies.push((message.req_id, reply));
    }

    fn accept_event(&mut self, payload: &[u8]) {
        let Some((path, rest)) = split_first(payload) else { return };
        let token = rest.split(|&b| b == 0).next().unwrap_or_default();
        let text = |bytes: &[u8]| core::str::from_utf8(bytes).ok().map(String::from);
        let (Some(path), Some(token)) = (text(path), text(token)) else { return };
        let event = WatchEvent { path, token };
        if self.events.contains(&event) {
            return;
        }
        if self.events.len() >= Self::MAX_EVENTS {
            self.lost_events = true;
            return;
        }
        self.events.push_back(event);
    }

    /// The reply to `id`, once it is there.
    pub fn take_reply(&mut self, id: RequestId) -> Option<Result<Vec<u8>, XsError>> {
        let at = self.replies.iter().position(|(i, _)| *i == id.0)?;
        Some(self.replies.remove(at).1)
    }

    /// Gives up on `id`: its reply will be dropped when it comes.
    pub fn forget(&mut self, id: RequestId) {
        self.waiting.retain(|&i| i != id.0);
        self.replies.retain(|(i, _)| *i != id.0);
    }

    /// The oldest watch event not yet taken.
    pub fn next_event(&mut self) -> Option<WatchEvent> {
        self.events.pop_front()
    }

    /// Whether events were dropped since this was last asked.
    pub fn events_lost(&mut self) -> bool {
        core::mem::take(&mut self.lost_events)
    }

    /// Asks the server to reset the rings; the caller notifies it. Outstanding requests get no reply any more, the
    /// server forgets watches and transactions; [`Client::pump`] goes on once the server has answered.
    pub fn reconnect<M: SharedMem + ?Sized>(&mut self, mem: &M) {
        self.out.clear();
        self.waiting.clear();
        self.assembler = Assembler::new();
        self.reconnecting = true;
        mem.store_release(page::CONNECTION, wire::RECONNECT);
    }

    /// Whether all that was queued has gone out.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.out.is_empty()
    }
}

/// The byte that ends strings in payloads.
pub const NUL: &[u8] = &[0];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::TestPage;

    /// Answers every message with its own payload reversed, and counts.
    struct Echo {
        stream: Stream,
        assembler: Assembler,
        out: VecDeque<u8>,
    }
    impl Echo {
        fn new(page: &TestPage) -> Self {
            Self { stream: Stream::attach(page, Side::Server), assembler: Assembler::new(), out: VecDeque::new() }
        }
        fn serve(&mut self, page: &TestPage) {
            let mut buf = [0; 100];
            loop {
                let (n, _) = self.stream.read(page, &mut buf).unwrap();
                let mut bytes = &buf[..n];
                while !bytes.is_empty() {
                    if let Some(mut m) = self.assembler.push(&mut bytes).unwrap() {
                        m.payload.reverse();
                        m.encode(&mut self.out).unwrap();
                    }
                }
                let wrote = self.stream.write(page, self.out.make_contiguous()).unwrap();
                self.out.drain(..wrote);
                if n == 0 && wrote == 0 {
                    return;
                }
            }
        }
    }

    fn event(path: &str, token: &str) -> Message {
        let payload = [path.as_bytes(), NUL, token.as_bytes(), NUL].concat();
        Message { kind: MsgType::WatchEvent as u32, req_id: 0, tx_id: 0, payload }
    }

    #[test]
    fn errors_and_events_are_told_from_replies() {
        let page = TestPage::default();
        let mut client = Client::attach(&page);
        let mut server = Echo::new(&page);
        let id = client.request(MsgType::Read, 0, &[b"/x", NUL]).unwrap();
        assert_eq!(client.pump(&page), Ok(Pumped { notify: true, received: false }));
        event("/a", "t").encode(&mut server.out).unwrap();
        event("/a", "t").encode(&mut server.out).unwrap();
        let error = Message { kind: MsgType::Error as u32, req_id: id.0, tx_id: 0, payload: b"ENOENT\0".to_vec() };
        error.encode(&mut server.out).unwrap();
        let all = server.out.make_contiguous().to_vec();
        server.stream.write(&page, &all).unwrap();
        assert!(client.pump(&page).unwrap().received);
        assert_eq!(client.take_reply(id), Some(Err(XsError::NoEnt)));
        assert_eq!(client.take_reply(id), None);
        assert_eq!(client.next_event(), Some(WatchEvent { path: "/a".into(), token: "t".into() }));
        assert_eq!(client.next_event(), None);
    }

    #[test]
    fn the_queues_are_bounded() {
        let page = TestPage::default();
        let mut client = Client::attach(&page);
        for _ in 0..Client::MAX_OUTSTANDING {
            client.request(MsgType::Read, 0, &[]).unwrap();
        }
        assert_eq!(client.request(MsgType::Read, 0, &[]), Err(ClientError::Busy));
        for i in 0..Client::MAX_EVENTS + 1 {
            client.accept(event(&std::format!("/{i}"), "t"));
        }
        assert_eq!(client.events.len(), Client::MAX_EVENTS);
        assert!(client.events_lost() && !client.events_lost());
        assert_eq!(
            Client::attach(&page).request(MsgType::Write, 0, &[&[0; 4097]]),
            Err(ClientError::TooLong { len: 4097 })
        );
    }

    #[test]
    fn reconnection_waits_for_the_server() {
        let page = TestPage::default();
        let mut client = Client::attach(&page);
        client.request(MsgType::Read, 0, &[b"/x", NUL]).unwrap();
        page.write(page::RSP_PROD, 5000);
        assert!(matches!(client.pump(&page), Err(ClientError::Fault(_))));
        client.reconnect(&page);
        assert_eq!(client.request(MsgType::Read, 0, &[]), Err(ClientError::Reconnecting));
        assert_eq!(client.pump(&page), Ok(Pumped::default()));
        let mut server = Echo::new(&page);
        server.stream.reset(&page);
        page.write(page::CONNECTION, wire::CONNECTED);
        client.pump(&page).unwrap();
        let id = client.request(MsgType::Read, 0, &[b"ab"]).unwrap();
        client.pump(&page).unwrap();
        server.serve(&page);
        client.pump(&page).unwrap();
        assert_eq!(client.take_reply(id), Some(Ok(b"ba".to_vec())));
    }

    proptest! {
        #[test]
        fn every_request_gets_its_own_reply(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 1..20)) {
            let page = TestPage::default();
            let (mut client, mut server) = (Client::attach(&page), Echo::new(&page));
            let ids: Vec<_> = payloads.iter().map(|p| client.request(MsgType::Write, 0, &[p]).unwrap()).collect();
            for _ in 0..200 {
                client.pump(&page).unwrap();
                server.serve(&page);
            }
            for (id, payload) in ids.into_iter().zip(payloads) {
                let expected: Vec<u8> = payload.into_iter().rev().collect();
                prop_assert_eq!(client.take_reply(id), Some(Ok(expected)));
            }
        }

        #[test]
        fn a_hostile_server_never_panics_the_client(
            writes in proptest::collection::vec((0usize..600, any::<u32>()), 0..200),
        ) {
            let page = TestPage::default();
            let mut client = Client::attach(&page);
            for chunk in writes.chunks(10) {
                for &(word, value) in chunk {
                    page.write(word * 4, value);
                }
                let _ = client.request(MsgType::Read, 0, &[b"/x", NUL]);
                if client.pump(&page).is_err() {
                    client.reconnect(&page);
                }
            }
        }
    }
}
