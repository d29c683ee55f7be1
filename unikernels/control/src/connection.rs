//! One domain's connection to the store: bytes from its ring become requests, replies and watch events become bytes.
//!
//! A domain that breaks the protocol loses its connection, not the store: its watches and transactions go, the page's error
//! field says why, and nothing more is read from the ring until the domain asks for a reconnection (xenstore-ring.txt) or
//! is restarted. Work per turn is bounded, so one domain cannot keep the others waiting; memory is bounded by
//! serving a request only when its reply has room.

use crate::store::Store;
use abi::DomId;
use abi::io::xs_wire::{MsgType, page};
use alloc::collections::VecDeque;
use ring::SharedMem;
use xenstore::wire::{self, page_error};
use xenstore::{Assembler, Message, Side, Stream, StreamFault, WireError};

/// Why a connection was shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Impossible ring indices.
    Indices(StreamFault),
    /// A message that cannot be.
    Message(WireError),
}

impl core::fmt::Display for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Indices(fault) => fault.fmt(f),
            Self::Message(WireError::TooLong { len }) => write!(f, "a message of {len} bytes"),
        }
    }
}

/// What one turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The domain has to be notified.
    pub notify: bool,
    /// There may be more to do without a new event from the domain: give it another turn.
    pub again: bool,
    /// The connection was shut in this turn.
    pub fault: Option<Fault>,
}

/// The server's end of one domain's ring.
#[derive(Debug)]
pub struct Connection {
    domid: DomId,
    stream: Stream,
    assembler: Assembler,
    out: VecDeque<u8>,
    shut: bool,
}

impl Connection {
    /// Requests served in one turn.
    pub const REQUESTS_PER_TURN: usize = 16;
    /// Nodes changed in one turn before no further request is taken. Each may be told to all watches there are.
    pub const CHANGES_PER_TURN: u64 = 32;
    /// Bytes that may wait to be sent before no further request is taken.
    pub const OUT_LIMIT: usize = 2048;

    /// Attaches to the page of a domain that was just started, or restarted: what an earlier instance left is dropped.
    pub fn attach<M: SharedMem + ?Sized>(domid: DomId, mem: &M, store: &mut Store) -> Self {
        store.reset_session(domid);
        mem.write(page::SERVER_FEATURES, wire::FEATURE_RECONNECTION | wire::FEATURE_ERROR);
        mem.write(page::ERROR, page_error::NONE);
        let stream = Stream::attach(mem, Side::Server);
        Self { domid, stream, assembler: Assembler::new(), out: VecDeque::new(), shut: false }
    }

    /// Whether the domain broke the protocol and has not reconnected since.
    #[must_use]
    pub const fn is_shut(&self) -> bool {
        self.shut
    }

    /// Whether bytes wait for the domain to make room: nothing can be sent before its next event.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.shut || !self.out.is_empty()
    }

    /// Serves some of what the domain asks, and sends replies and events as far as the ring takes them.
    pub fn turn<M: SharedMem + ?Sized>(&mut self, mem: &M, store: &mut Store) -> Turn {
        let mut turn = Turn::default();
        if mem.load_acquire(page::CONNECTION) == wire::RECONNECT {
            self.reconnect(mem, store);
            turn.notify = true;
        }
        if self.shut {
            return turn;
        }
        if let Err(fault) = self.serve(mem, store, &mut turn) {
            self.shut(mem, store, fault);
            turn = Turn { notify: true, again: false, fault: Some(fault) };
        }
        turn
    }

    fn serve<M: SharedMem + ?Sized>(&mut self, mem: &M, store: &mut Store, turn: &mut Turn) -> Result<(), Fault> {
        let mut served = 0usize;
        let changes = store.changes();
        loop {
            let sent = self.send(mem, store)?;
            let mut taken = 0;
            let used_up =
                served >= Self::REQUESTS_PER_TURN || store.changes().saturating_sub(changes) >= Self::CHANGES_PER_TURN;
            if !used_up && self.out.len() < Self::OUT_LIMIT {
                let (n, was_full, request) = self.receive(mem)?;
                taken = n;
                turn.notify |= was_full;
                if let Some(request) = request {
                    served = served.saturating_add(1);
                    let reply = store.handle(self.domid, &request);
                    // `handle` never makes a payload that is too long.
                    reply.encode(&mut self.out).map_err(Fault::Message)?;
                }
            }
            turn.notify |= sent > 0;
            if sent == 0 && taken == 0 {
                // A full outgoing ring waits for the domain's next event; a used-up turn does not.
                turn.again = used_up && self.out.len() < Self::OUT_LIMIT;
                return Ok(());
            }
        }
    }

    /// Moves queued bytes, then watch events, to the ring.
    fn send<M: SharedMem + ?Sized>(&mut self, mem: &M, store: &mut Store) -> Result<usize, Fault> {
        let mut sent = 0usize;
        loop {
            if self.out.is_empty() {
                let Some(event) = store.next_event(self.domid) else { return Ok(sent) };
                let parts = [event.path.as_bytes(), &[0], event.token.as_bytes(), &[0]];
                let message =
                    Message { kind: MsgType::WatchEvent as u32, req_id: 0, tx_id: 0, payload: parts.concat() };
                // An event too long for a message (a long path under a long token) cannot be told at all.
                let _ = message.encode(&mut self.out);
            }
            let n = self.stream.write(mem, self.out.as_slices().0).map_err(Fault::Indices)?;
            self.out.drain(..n);
            sent = sent.saturating_add(n);
            if n == 0 && !self.out.is_empty() {
                return Ok(sent);
            }
        }
    }

    /// Takes bytes of at most one message.
    fn receive<M: SharedMem + ?Sized>(&mut self, mem: &M) -> Result<(usize, bool, Option<Message>), Fault> {
        let mut buffer = [0u8; 512];
        let room = buffer.len().min(self.assembler.wants());
        let chunk = buffer.get_mut(..room).unwrap_or_default();
        let (n, was_full) = self.stream.read(mem, chunk).map_err(Fault::Indices)?;
        let mut bytes = chunk.get(..n).unwrap_or_default();
        let message = self.assembler.push(&mut bytes).map_err(Fault::Message)?;
        Ok((n, was_full, message))
    }

    fn forget(&mut self, store: &mut Store) {
        store.reset_session(self.domid);
        self.assembler = Assembler::new();
        self.out = VecDeque::new();
    }

    fn shut<M: SharedMem + ?Sized>(&mut self, mem: &M, store: &mut Store, fault: Fault) {
        self.forget(store);
        self.shut = true;
        let error = match fault {
            Fault::Indices(_) => page_error::RINGIDX,
            Fault::Message(_) => page_error::PROTO,
        };
        mem.write(page::ERROR, error);
    }

    fn reconnect<M: SharedMem + ?Sized>(&mut self, mem: &M, store: &mut Store) {
        self.forget(store);
        self.shut = false;
        self.stream.reset(mem);
        mem.write(page::ERROR, page_error::NONE);
        mem.store_release(page::CONNECTION, wire::CONNECTED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Quota;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use ring::TestPage;
    use xenstore::client::{NUL, Pumped};
    use xenstore::{Client, ClientError, Path, Perms, XsError};

    fn page() -> TestPage {
        TestPage::default()
    }

    fn store() -> Store {
        let mut store = Store::new(Quota::default());
        for d in [1, 2] {
            store.introduce(DomId(d));
            let home = Path::absolute(&std::format!("/local/domain/{d}")).unwrap();
            store.preset(&home, Perms::owned_by(DomId(d)), b"").unwrap();
        }
        store
    }

    /// Pumps both ends until neither moves.
    fn settle(client: &mut Client, connection: &mut Connection, page: &TestPage, store: &mut Store) {
        for _ in 0..1000 {
            let pumped = client.pump(page).unwrap();
            let turn = connection.turn(page, store);
            assert_eq!(turn.fault, None);
            if pumped == Pumped::default() && turn == Turn::default() {
                return;
            }
        }
        panic!("never quiet");
    }

    #[test]
    fn a_client_reads_what_it_wrote_and_hears_of_it() {
        let (p, mut s) = (page(), store());
        let (mut client, mut server) = (Client::attach(&p), Connection::attach(DomId(1), &p, &mut s));
        let watch = client.request(MsgType::Watch, 0, &[b"x", NUL, b"tok", NUL]).unwrap();
        let write = client.request(MsgType::Write, 0, &[b"x", NUL, &[b'v'; 2000]]).unwrap();
        let read = client.request(MsgType::Read, 0, &[b"x", NUL]).unwrap();
        settle(&mut client, &mut server, &p, &mut s);
        assert_eq!(client.take_reply(watch), Some(Ok(b"OK\0".to_vec())));
        assert_eq!(client.take_reply(write), Some(Ok(b"OK\0".to_vec())));
        assert_eq!(client.take_reply(read), Some(Ok(vec![b'v'; 2000])));
        assert_eq!(client.next_event().unwrap().path, "x");
    }

    #[test]
    fn lying_indices_cost_the_liar_its_connection_and_nobody_else() {
        let (p1, p2, mut s) = (page(), page(), store());
        let mut liar = Connection::attach(DomId(1), &p1, &mut s);
        let (mut client, mut honest) = (Client::attach(&p2), Connection::attach(DomId(2), &p2, &mut s));
        s.watch(DomId(1), b"x", b"t").unwrap();
        s.watch(DomId(2), b"x", b"t").unwrap();
        p1.write(page::REQ_PROD, 5000);
        let turn = liar.turn(&p1, &mut s);
        assert!(matches!(turn.fault, Some(Fault::Indices(_))) && turn.notify);
        assert_eq!(p1.read(page::ERROR), page_error::RINGIDX);
        assert_eq!((s.watch_count(DomId(1)), s.watch_count(DomId(2))), (0, 1));
        assert_eq!(liar.turn(&p1, &mut s), Turn::default());
        let id = client.request(MsgType::Read, 0, &[b"none", NUL]).unwrap();
        settle(&mut client, &mut honest, &p2, &mut s);
        assert_eq!(client.take_reply(id), Some(Err(XsError::NoEnt)));

        // It may come back.
        let mut client = Client::attach(&p1);
        assert!(matches!(client.pump(&p1), Err(ClientError::Server(page_error::RINGIDX))));
        client.reconnect(&p1);
        assert!(liar.turn(&p1, &mut s).notify);
        client.pump(&p1).unwrap();
        let id = client.request(MsgType::Write, 0, &[b"y", NUL]).unwrap();
        settle(&mut client, &mut liar, &p1, &mut s);
        assert_eq!(client.take_reply(id), Some(Ok(b"OK\0".to_vec())));
    }

    #[test]
    fn an_overlong_message_is_a_protocol_error() {
        let (p, mut s) = (page(), store());
        let mut server = Connection::attach(DomId(1), &p, &mut s);
        for (i, word) in [2u32, 0, 0, 5000].into_iter().enumerate() {
            p.write(i * 4, word);
        }
        p.write(page::REQ_PROD, 16);
        assert!(matches!(server.turn(&p, &mut s).fault, Some(Fault::Message(_))));
        assert_eq!(p.read(page::ERROR), page_error::PROTO);
    }

    #[test]
    fn a_domain_that_never_reads_replies_is_bounded() {
        let (p, mut s) = (page(), store());
        let (mut stream, mut server) = (Stream::attach(&p, Side::Client), Connection::attach(DomId(1), &p, &mut s));
        let mut bytes = Vec::new();
        let request = Message { kind: MsgType::Write as u32, req_id: 0, tx_id: 0, payload: b"x\0".to_vec() };
        (0..1000).for_each(|_| request.encode(&mut bytes).unwrap());
        let mut rest = &bytes[..];
        for _ in 0..1000 {
            let n = stream.write(&p, rest).unwrap();
            rest = &rest[n..];
            let turn = server.turn(&p, &mut s);
            assert!(server.out.len() <= Connection::OUT_LIMIT + 4096 + 16);
            assert_eq!(turn.fault, None);
        }
        assert!(!rest.is_empty() && !server.turn(&p, &mut s).again);
    }

    #[test]
    fn a_turn_ends_although_the_domain_keeps_asking() {
        let (p, mut s) = (page(), store());
        let (mut stream, mut server) = (Stream::attach(&p, Side::Client), Connection::attach(DomId(1), &p, &mut s));
        let request = Message { kind: MsgType::Read as u32, req_id: 0, tx_id: 0, payload: b"x\0".to_vec() };
        let mut bytes = Vec::new();
        (0..40).for_each(|_| request.encode(&mut bytes).unwrap());
        stream.write(&p, &bytes).unwrap();
        assert!(server.turn(&p, &mut s).again);
        assert!(server.turn(&p, &mut s).again);
    }

    #[test]
    fn a_turn_ends_after_a_request_that_changes_much() {
        let (p, mut s) = (page(), store());
        let mut server = Connection::attach(DomId(1), &p, &mut s);
        let tx = s.start_transaction(DomId(1)).unwrap();
        for i in 0..Connection::CHANGES_PER_TURN {
            let path = Path::absolute(&std::format!("/local/domain/1/d/{i}")).unwrap();
            s.run_in(DomId(1), tx, |v| v.write(&path, b"")).unwrap();
        }
        let mut bytes = Vec::new();
        let end = Message { kind: MsgType::TransactionEnd as u32, req_id: 0, tx_id: tx, payload: b"T\0".to_vec() };
        let read = Message { kind: MsgType::Read as u32, req_id: 1, tx_id: 0, payload: b"d\0".to_vec() };
        [end, read].iter().for_each(|m| m.encode(&mut bytes).unwrap());
        Stream::attach(&p, Side::Client).write(&p, &bytes).unwrap();
        assert!(server.turn(&p, &mut s).again);
        assert_eq!(p.read(page::RSP_PROD), 16 + 3, "only the end is answered");
        assert!(!server.turn(&p, &mut s).again);
    }

    #[test]
    fn restarts_leave_the_store_as_large_as_it_was() {
        let (p, mut s) = (page(), store());
        let mut sizes = Vec::new();
        for _ in 0..50 {
            for at in [page::REQ_CONS, page::REQ_PROD, page::RSP_CONS, page::RSP_PROD] {
                p.write(at, 0);
            }
            let (mut client, mut server) = (Client::attach(&p), Connection::attach(DomId(1), &p, &mut s));
            client.request(MsgType::Watch, 0, &[b"x", NUL, b"t", NUL]).unwrap();
            client.request(MsgType::TransactionStart, 0, &[NUL]).unwrap();
            client.request(MsgType::Write, 0, &[b"stats/n", NUL, b"1"]).unwrap();
            settle(&mut client, &mut server, &p, &mut s);
            sizes.push((s.total(), s.watch_count(DomId(1))));
        }
        assert!(sizes.iter().all(|size| *size == sizes[0]));
    }

    /// Headers that pass, indices near the truth, and anything at all.
    fn hostile_write() -> impl Strategy<Value = (usize, u32)> {
        let indices =
            prop_oneof![Just(page::REQ_PROD), Just(page::RSP_CONS), Just(page::CONNECTION), Just(page::REQ_CONS)];
        let text = Just(u32::from_le_bytes(*b"a/b\0"));
        prop_oneof![
            4 => (0usize..256, prop_oneof![0u32..24, text, any::<u32>()]).prop_map(|(w, v)| (w * 4, v)),
            4 => (indices, 0u32..2100),
            1 => (0usize..1024, any::<u32>()).prop_map(|(w, v)| (w * 4, v)),
        ]
    }

    proptest! {
        /// One domain writes anything anywhere in its page, between any two turns; the other does its work as if alone.
        #[test]
        fn an_honest_domain_never_notices_a_hostile_one(
            rounds in proptest::collection::vec(proptest::collection::vec(hostile_write(), 0..40), 1..25),
        ) {
            let (p1, p2, mut s) = (page(), page(), store());
            let mut hostile = Connection::attach(DomId(1), &p1, &mut s);
            let (mut client, mut honest) = (Client::attach(&p2), Connection::attach(DomId(2), &p2, &mut s));
            for (i, writes) in rounds.into_iter().enumerate() {
                for (offset, value) in writes {
                    p1.write(offset, value);
                }
                let _ = hostile.turn(&p1, &mut s);
                let value = std::format!("{i}");
                let write = client.request(MsgType::Write, 0, &[b"work/n", NUL, value.as_bytes()]).unwrap();
                let read = client.request(MsgType::Read, 0, &[b"work/n", NUL]).unwrap();
                settle(&mut client, &mut honest, &p2, &mut s);
                prop_assert_eq!(client.take_reply(write), Some(Ok(b"OK\0".to_vec())));
                prop_assert_eq!(client.take_reply(read), Some(Ok(value.into_bytes())));
                prop_assert!(hostile.out.len() <= Connection::OUT_LIMIT + 4096 + 16);
                prop_assert!(s.usage(DomId(1)).nodes <= Quota::default().nodes);
            }
        }

        #[test]
        fn a_page_of_lies_never_panics_the_server(
            writes in proptest::collection::vec((0usize..520, prop_oneof![0u32..2000, any::<u32>()]), 0..300),
        ) {
            let (p, mut s) = (page(), store());
            let mut server = Connection::attach(DomId(1), &p, &mut s);
            for chunk in writes.chunks(7) {
                for &(word, value) in chunk {
                    p.write(word * 4, value);
                }
                let _ = server.turn(&p, &mut s);
                prop_assert!(server.out.len() <= Connection::OUT_LIMIT + 4096 + 16);
            }
        }
    }
}
