//! The back end of a ring, kept as a journal: nothing that matters lives outside of the shared page.
//!
//! Private are only copies: how far requests were taken, how far responses were published, and responses that wait for an
//! earlier one. A fresh instance attaches with `req_cons = rsp_prod` and does again what was not answered.
//!
//! Publication, in this order: record in the survivor page → slots → `rsp_prod` → record cleared. The indices are
//! followed by a fence and a look at the peer's event index, so that a wake-up is neither lost nor superfluous.

use crate::fault::{AttachError, Mismatch, RingFault};
use crate::survivor::{Recovery, RingId, Survivor};
use crate::window::Window;
use crate::{SharedMem, fitting, mutated, passes_event, slot_offset, slot_words};
use abi::io::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};

/// The back end of a ring of `N` slots (a power of two), or fewer where its frontend chose fewer pages
/// ([`connect_sized`](Self::connect_sized)), with requests of `REQ` and responses of `RSP` words.
pub struct BackRing<M, const N: usize, const REQ: usize, const RSP: usize> {
    mem: M,
    id: RingId,
    slots: u32,
    req_cons: u32,
    rsp_prod: u32,
    window: Window<N, RSP>,
}

/// A ring that was taken up where it stood.
pub struct Attached<R> {
    /// The ring.
    pub ring: R,
    /// Requests without an answer: the work to be done (again).
    pub unanswered: u32,
    /// Responses of the dead instance's last publication that were completed now.
    pub finished: u32,
}

/// What a publication did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Responses made visible.
    pub count: u32,
    /// The frontend asked to be notified of one of them.
    pub notify: bool,
}

impl<M: SharedMem, const N: usize, const REQ: usize, const RSP: usize> BackRing<M, N, REQ, RSP> {
    /// Words of a slot.
    const SLOT: usize = slot_words(REQ, RSP);

    fn at(mem: M, id: RingId, slots: u32, rsp_prod: u32) -> Self {
        const { assert!(N.is_power_of_two() && RSP > 0 && REQ > 0) };
        Self { mem, id, slots: fitting(slots, N), req_cons: rsp_prod, rsp_prod, window: Window::new() }
    }

    /// Takes up a ring that a frontend has just set up, or one whose journal was settled otherwise.
    ///
    /// # Errors
    /// [`RingFault::BadProducer`]: more requests than slots.
    pub fn connect(mem: M, id: RingId) -> Result<Self, RingFault> {
        Self::connect_sized(mem, id, N as u32)
    }

    /// As [`connect`](Self::connect), for a ring of `slots` slots: a power of two up to `N` (what is neither is rounded down).
    ///
    /// # Errors
    /// [`RingFault::BadProducer`].
    pub fn connect_sized(mem: M, id: RingId, slots: u32) -> Result<Self, RingFault> {
        let rsp_prod = mem.load_acquire(RSP_PROD);
        let ring = Self::at(mem, id, slots, rsp_prod);
        ring.pending()?;
        Ok(ring)
    }

    /// Takes up a ring that an earlier instance of this domain served, first finishing the publication it died in.
    ///
    /// # Errors
    /// [`AttachError::Fault`]: the indices make no sense. [`AttachError::Reconnect`]: the survivor page does not fit the
    /// ring; nothing was written.
    pub fn attach<S: SharedMem>(mem: M, id: RingId, recovery: &mut Recovery<S>) -> Result<Attached<Self>, AttachError> {
        Self::attach_sized(mem, id, N as u32, recovery)
    }

    /// As [`attach`](Self::attach), for a ring of `slots` slots.
    ///
    /// # Errors
    /// As there.
    pub fn attach_sized<S: SharedMem>(
        mem: M,
        id: RingId,
        slots: u32,
        recovery: &mut Recovery<S>,
    ) -> Result<Attached<Self>, AttachError> {
        let rsp_prod = mem.load_acquire(RSP_PROD);
        let mut ring = Self::at(mem, id, slots, rsp_prod);
        let mut unanswered = ring.pending()?;
        let mut finished = 0;
        if let Some(record) = recovery.record_of(&ring.id).map_err(AttachError::Reconnect)? {
            finished = ring.finish(recovery, record, unanswered).map_err(AttachError::Reconnect)?;
            unanswered = unanswered.saturating_sub(finished);
        }
        Ok(Attached { ring, unanswered, finished })
    }

    /// Finishes a recorded publication. The record fits only in two places: its slots are (perhaps half) written and
    /// `rsp_prod` still stands at its start, or `rsp_prod` has moved past it and only the record was not yet cleared.
    fn finish<S: SharedMem>(
        &mut self,
        recovery: &mut Recovery<S>,
        (start, count, words): (u32, u32, u32),
        unanswered: u32,
    ) -> Result<u32, Mismatch> {
        if words as usize != RSP || count > self.slots {
            return Err(Mismatch::Shape { count, words });
        }
        let end = start.wrapping_add(count);
        if self.rsp_prod == end {
            recovery.settle();
            return Ok(0);
        }
        if self.rsp_prod != start && !mutated!(AnyPosition) {
            return Err(Mismatch::Position { start, count, rsp_prod: self.rsp_prod });
        }
        if count > unanswered {
            return Err(Mismatch::Shape { count, words });
        }
        for entry in 0..count {
            for word in 0..RSP {
                let to = slot_offset(start.wrapping_add(entry), self.slots, Self::SLOT, word);
                self.mem.store_release(to, recovery.entry(entry, words, word));
            }
        }
        self.mem.store_release(RSP_PROD, end);
        recovery.settle();
        self.rsp_prod = end;
        self.req_cons = end;
        Ok(count)
    }

    /// Slots of the ring.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The index of the first request without an answer.
    pub fn next_response(&self) -> u32 {
        self.rsp_prod
    }

    /// Whose ring this is.
    pub fn id(&self) -> &RingId {
        &self.id
    }

    /// Lets go of the ring and gives its memory back.
    pub fn into_mem(self) -> M {
        self.mem
    }

    /// Requests taken and not yet answered.
    pub fn in_flight(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// Requests that may be consumed now. `req_prod` belongs to the frontend and may lie: running ahead of the ring, or
    /// moving back behind what was consumed, is a fault.
    ///
    /// # Errors
    /// [`RingFault::BadProducer`].
    pub fn pending(&self) -> Result<u32, RingFault> {
        let prod = if mutated!(RelaxedLoad) { self.mem.read(REQ_PROD) } else { self.mem.load_acquire(REQ_PROD) };
        let in_flight = self.in_flight();
        let ahead = prod.wrapping_sub(self.rsp_prod); // modular; never `prod > cons`
        if (ahead > self.slots || ahead < in_flight) && !mutated!(TrustProducer) {
            return Err(RingFault::BadProducer { prod, cons: self.req_cons });
        }
        Ok(ahead.wrapping_sub(in_flight))
    }

    /// The request `ahead` places after the next one, each word read once, without consuming it. Meaningful only below
    /// what [`pending`](Self::pending) returned.
    pub fn peek(&self, ahead: u32) -> [u32; REQ] {
        let index = self.req_cons.wrapping_add(ahead);
        let mut word = 0;
        [(); REQ].map(|()| {
            let value = self.mem.read(slot_offset(index, self.slots, Self::SLOT, word));
            word = word.wrapping_add(1);
            value
        })
    }

    /// Consumes one request: its index and a private copy, each word read once.
    ///
    /// # Errors
    /// [`RingFault::BadProducer`].
    pub fn take(&mut self) -> Result<Option<(u32, [u32; REQ])>, RingFault> {
        if self.pending()? == 0 {
            return Ok(None);
        }
        let index = self.req_cons;
        let request = self.peek(0);
        self.req_cons = index.wrapping_add(1);
        Ok(Some((index, request)))
    }

    /// Consumes `count` requests that were peeked at and returns the index of the first.
    ///
    /// # Errors
    /// [`RingFault::BadProducer`], also if fewer are pending.
    pub fn skip(&mut self, count: u32) -> Result<u32, RingFault> {
        let index = self.req_cons;
        if self.pending()? < count {
            return Err(RingFault::BadProducer { prod: index, cons: index });
        }
        self.req_cons = index.wrapping_add(count);
        Ok(index)
    }

    /// The work of request `index` is done; its response leaves with the next [`publish`](Self::publish) that reaches it.
    ///
    /// # Errors
    /// [`RingFault::NotInFlight`]: it was never taken, or is done already.
    pub fn complete(&mut self, index: u32, response: [u32; RSP]) -> Result<(), RingFault> {
        let flying = index.wrapping_sub(self.rsp_prod) < self.in_flight();
        if !flying || !self.window.put(index, response) {
            return Err(RingFault::NotInFlight { index });
        }
        Ok(())
    }

    /// Responses that could be published now.
    pub fn publishable(&self) -> u32 {
        self.window.run(self.rsp_prod, self.in_flight())
    }

    /// Publishes all responses whose turn it is, in request order, in batches that fit the survivor record. For rings of up
    /// to 2 KiB of responses (netif's) that is one batch, so requests completed together become visible together.
    pub fn publish<S: SharedMem>(&mut self, survivor: &mut Survivor<S>) -> Published {
        let old = self.rsp_prod;
        loop {
            let limit = self.in_flight().min(Survivor::<S>::capacity(RSP));
            let count = self.window.run(self.rsp_prod, limit);
            if count == 0 {
                break;
            }
            self.publish_batch(survivor, count);
        }
        let count = self.rsp_prod.wrapping_sub(old);
        if count == 0 {
            return Published::default();
        }
        if !mutated!(NoPublishFence) {
            self.mem.fence();
        }
        let notify = passes_event(old, self.rsp_prod, self.mem.read(RSP_EVENT));
        Published { count, notify }
    }

    fn publish_batch<S: SharedMem>(&mut self, survivor: &mut Survivor<S>, count: u32) {
        let start = self.rsp_prod;
        let end = start.wrapping_add(count);
        let window = &self.window;
        if mutated!(SlotsFirst) {
            self.write_slots(start, count);
        }
        if !mutated!(NoRecord) {
            // `run` counted only responses that are there.
            survivor.record(&self.id, start, count, |n| window.get(start.wrapping_add(n)).unwrap_or(&[0; RSP]));
        }
        if mutated!(IndexFirst) {
            self.mem.store_release(RSP_PROD, end);
        }
        self.write_slots(start, count);
        if mutated!(ClearFirst) {
            survivor.clear();
        }
        if mutated!(RelaxedStore) {
            self.mem.write(RSP_PROD, end);
        } else {
            self.mem.store_release(RSP_PROD, end);
        }
        if !mutated!(NoRecord) {
            survivor.clear();
        }
        for n in 0..count {
            self.window.take(start.wrapping_add(n));
        }
        self.rsp_prod = end;
    }

    fn write_slots(&self, start: u32, count: u32) {
        for index in (0..count).map(|n| start.wrapping_add(n)) {
            let Some(response) = self.window.get(index) else { continue };
            for (word, &value) in response.iter().enumerate() {
                // Release: no response may reach its slot before the record that covers it is complete.
                let to = slot_offset(index, self.slots, Self::SLOT, word);
                if mutated!(RelaxedStore) { self.mem.write(to, value) } else { self.mem.store_release(to, value) }
            }
        }
    }

    /// Asks for a notification when `wanted` requests are pending, then looks again: true if they are there already, so
    /// that the caller goes on instead of waiting. Arm → fence → re-check.
    ///
    /// # Errors
    /// [`RingFault::BadProducer`].
    pub fn arm(&mut self, wanted: u32) -> Result<bool, RingFault> {
        self.mem.write(REQ_EVENT, self.req_cons.wrapping_add(wanted));
        if !mutated!(NoArmFence) {
            self.mem.fence();
        }
        if mutated!(NoRecheck) {
            return Ok(false);
        }
        Ok(self.pending()? >= wanted)
    }
}
