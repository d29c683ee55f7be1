//! The completion window of a back ring: work may finish out of order, responses leave in request order. On the heap, so
//! that a ring is small to move about on a domain's small stack; made once per ring.

use alloc::vec::Vec;

/// Responses waiting for their turn, one place per slot of the ring.
pub(crate) struct Window<const N: usize, const RSP: usize> {
    places: Vec<Option<[u32; RSP]>>,
}

impl<const N: usize, const RSP: usize> Window<N, RSP> {
    pub(crate) fn new() -> Self {
        Self { places: alloc::vec![None; N] }
    }

    const fn place(index: u32) -> usize {
        index as usize & N.wrapping_sub(1)
    }

    /// Keeps `response` for `index`; false if one was kept already.
    pub(crate) fn put(&mut self, index: u32, response: [u32; RSP]) -> bool {
        match self.places.get_mut(Self::place(index)) {
            Some(place @ None) => {
                *place = Some(response);
                true
            }
            _ => false,
        }
    }

    /// The response kept for `index`.
    pub(crate) fn get(&self, index: u32) -> Option<&[u32; RSP]> {
        self.places.get(Self::place(index))?.as_ref()
    }

    /// Forgets the response of `index`.
    pub(crate) fn take(&mut self, index: u32) {
        if let Some(place) = self.places.get_mut(Self::place(index)) {
            *place = None;
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
