//! Identifiers of outstanding requests: given out once, taken back once, so that a backend cannot answer twice.

/// A free list over `0..N` that knows what is out.
pub struct Ids<const N: usize> {
    free: [u16; N],
    free_len: usize,
    out: [bool; N],
}

impl<const N: usize> Ids<N> {
    /// All ids are free.
    #[must_use]
    pub fn new() -> Self {
        const { assert!(N <= u16::MAX as usize) };
        let mut free = [0; N];
        for (id, place) in (0u16..).zip(free.iter_mut().rev()) {
            *place = id;
        }
        Self { free, free_len: N, out: [false; N] }
    }

    /// Takes a free id.
    pub fn take(&mut self) -> Option<u16> {
        let len = self.free_len.checked_sub(1)?;
        let id = *self.free.get(len)?;
        *self.out.get_mut(usize::from(id))? = true;
        self.free_len = len;
        Some(id)
    }

    /// Takes `id` back.
    ///
    /// # Errors
    /// [`FrontFault::BadId`](crate::FrontFault::BadId) if it is not out.
    pub fn give(&mut self, id: u16) -> Result<(), crate::FrontFault> {
        let bad = crate::FrontFault::BadId { id: u32::from(id) };
        let out = self.out.get_mut(usize::from(id)).filter(|out| **out).ok_or(bad)?;
        let place = self.free.get_mut(self.free_len).ok_or(bad)?;
        *out = false;
        *place = id;
        self.free_len = self.free_len.saturating_add(1);
        Ok(())
    }

    /// Ids that are out.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        N.saturating_sub(self.free_len)
    }
}

impl<const N: usize> Default for Ids<N> {
    fn default() -> Self {
        Self::new()
    }
}
