//! The completion window of a back ring: work may finish out of order, responses leave in request order.

/// Responses waiting for their turn, one place per slot of the ring.
pub(crate) struct Window<const N: usize, const RSP: usize> {
    done: [bool; N],
    responses: [[u32; RSP]; N],
}

impl<const N: usize, const RSP: usize> Window<N, RSP> {
    pub(crate) const fn new() -> Self {
        Self { done: [false; N], responses: [[0; RSP]; N] }
    }

    const fn place(index: u32) -> usize {
        index as usize & N.wrapping_sub(1)
    }

    /// Keeps `response` for `index`; false if one was kept already.
    pub(crate) fn put(&mut self, index: u32, response: [u32; RSP]) -> bool {
        let at = Self::place(index);
        match (self.done.get_mut(at), self.responses.get_mut(at)) {
            (Some(done), Some(slot)) if !*done => {
                *done = true;
                *slot = response;
                true
            }
            _ => false,
        }
    }

    /// The response kept for `index`.
    pub(crate) fn get(&self, index: u32) -> Option<&[u32; RSP]> {
        let at = Self::place(index);
        if *self.done.get(at)? { self.responses.get(at) } else { None }
    }

    /// Forgets the response of `index`.
    pub(crate) fn take(&mut self, index: u32) {
        if let Some(done) = self.done.get_mut(Self::place(index)) {
            *done = false;
        }
    }

    /// Consecutive responses from `from` on, at most `limit`.
    pub(crate) fn run(&self, from: u32, limit: u32) -> u32 {
        let mut n: u32 = 0;
        while n < limit && self.get(from.wrapping_add(n)).is_some() {
            n = n.wrapping_add(1);
        }
        n
    }
}
