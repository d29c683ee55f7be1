//! The front end of a ring: the twin of [`BackRing`](crate::BackRing), for our own guests and for the tests. The backend
//! is a peer, not a master: its index is checked as strictly as ours is there.

use crate::fault::FrontFault;
use crate::{SharedMem, fitting, mutated, passes_event, slot_offset, slot_words};
use abi::io::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};

/// The front end of a ring of `N` slots (a power of two) or fewer, with requests of `REQ` and responses of `RSP` words.
pub struct FrontRing<M, const N: usize, const REQ: usize, const RSP: usize> {
    mem: M,
    slots: u32,
    req_prod: u32,
    published: u32,
    rsp_cons: u32,
}

/// No slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<M: SharedMem, const N: usize, const REQ: usize, const RSP: usize> FrontRing<M, N, REQ, RSP> {
    /// Words of a slot.
    const SLOT: usize = slot_words(REQ, RSP);

    /// Makes an empty ring in `mem` (`SHARED_RING_INIT`), before the backend is told of it.
    pub fn init(mem: M) -> Self {
        Self::init_at(mem, 0)
    }

    /// As [`init`](Self::init), with indices that begin at `index`: they wrap, and a test can say when.
    pub fn init_at(mem: M, index: u32) -> Self {
        Self::init_sized(mem, N as u32, index)
    }

    /// As [`init_at`](Self::init_at), for a ring of `slots` slots: a power of two up to `N` (what is neither is rounded down).
    pub fn init_sized(mem: M, slots: u32, index: u32) -> Self {
        const { assert!(N.is_power_of_two() && RSP > 0 && REQ > 0) };
        mem.write(REQ_PROD, index);
        mem.write(RSP_PROD, index);
        mem.write(REQ_EVENT, index.wrapping_add(1));
        mem.store_release(RSP_EVENT, index.wrapping_add(1));
        Self { mem, slots: fitting(slots, N), req_prod: index, published: index, rsp_cons: index }
    }

    /// The memory of the ring.
    pub fn mem(&self) -> &M {
        &self.mem
    }

    /// Slots that can take a request.
    pub fn free(&self) -> u32 {
        self.slots.wrapping_sub(self.in_flight())
    }

    /// Requests written whose responses were not taken.
    pub fn in_flight(&self) -> u32 {
        self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Writes a request into the next slot; the backend sees it after [`publish`](Self::publish). Returns its index.
    ///
    /// # Errors
    /// [`Full`].
    pub fn push(&mut self, request: [u32; REQ]) -> Result<u32, Full> {
        if self.free() == 0 {
            return Err(Full);
        }
        let index = self.req_prod;
        for (word, &value) in request.iter().enumerate() {
            self.mem.write(slot_offset(index, self.slots, Self::SLOT, word), value);
        }
        self.req_prod = index.wrapping_add(1);
        Ok(index)
    }

    /// Makes all pushed requests visible; true if the backend asked to be notified.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.req_prod);
        if old == new {
            return false;
        }
        self.mem.store_release(REQ_PROD, new);
        self.published = new;
        if !mutated!(NoPublishFence) {
            self.mem.fence();
        }
        passes_event(old, new, self.mem.read(REQ_EVENT))
    }

    /// Responses that may be taken now.
    ///
    /// # Errors
    /// [`FrontFault::BadProducer`]: the backend answers more than was published, or took answers back.
    pub fn pending(&self) -> Result<u32, FrontFault> {
        let prod = if mutated!(RelaxedLoad) { self.mem.read(RSP_PROD) } else { self.mem.load_acquire(RSP_PROD) };
        let ready = prod.wrapping_sub(self.rsp_cons);
        if ready > self.published.wrapping_sub(self.rsp_cons) {
            return Err(FrontFault::BadProducer { prod, cons: self.rsp_cons });
        }
        Ok(ready)
    }

    /// Takes the next response: its index and a private copy, each word read once.
    ///
    /// # Errors
    /// [`FrontFault::BadProducer`].
    pub fn take(&mut self) -> Result<Option<(u32, [u32; RSP])>, FrontFault> {
        if self.pending()? == 0 {
            return Ok(None);
        }
        let index = self.rsp_cons;
        let mut word = 0;
        let response = [(); RSP].map(|()| {
            let value = self.mem.read(slot_offset(index, self.slots, Self::SLOT, word));
            word = word.wrapping_add(1);
            value
        });
        self.rsp_cons = index.wrapping_add(1);
        Ok(Some((index, response)))
    }

    /// Asks for a notification when `wanted` responses are pending, then looks again: true if they are there already.
    ///
    /// # Errors
    /// [`FrontFault::BadProducer`].
    pub fn arm(&mut self, wanted: u32) -> Result<bool, FrontFault> {
        self.mem.write(RSP_EVENT, self.rsp_cons.wrapping_add(wanted));
        if !mutated!(NoArmFence) {
            self.mem.fence();
        }
        if mutated!(NoRecheck) {
            return Ok(false);
        }
        Ok(self.pending()? >= wanted)
    }
}
