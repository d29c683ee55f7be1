//! What the backend needs of the domain it runs in, beside [`Runtime`] and xenstore ([`xenstore::Store`]). libxenrt's wiring implements it with
//! hypercalls, the simulation with a fake hypervisor. All calls return at once.

use crate::headers::{fold, sum};
use ::backend::Runtime;
use abi::grant::GrantCopy;
use abi::{DomId, Errno, GrantRef};
use ring::SharedMem;

/// Grants.
pub trait Platform: Runtime {
    /// A frontend's ring page, mapped; dropping it takes the mapping away.
    type Page: SharedMem;

    /// Maps two pages granted by `dom`, writable; both or none.
    ///
    /// # Errors
    /// A grant does not permit it.
    fn map(&mut self, dom: DomId, grefs: [GrantRef; 2]) -> Result<[Self::Page; 2], Errno>;

    /// Performs grant copies in one hypercall (or as few as its limits allow) and fills in every `status`.
    fn copy(&mut self, operations: &mut [GrantCopy]);
}

/// The domain's packet memory: contiguous, page-aligned RAM that the device may read and write. The device may write at
/// any time, so bytes are copied out and the copy is checked.
pub trait Area {
    /// Address of byte 0, both guest-physical and as the device sees it; a multiple of 4096.
    fn base(&self) -> u64;
    /// Bytes; a multiple of 4096.
    fn len_bytes(&self) -> usize;
    /// Copies out; bytes outside of the area read as 0.
    fn read(&self, offset: usize, out: &mut [u8]);
    /// Copies in; bytes outside of the area are dropped.
    fn write(&mut self, offset: usize, bytes: &[u8]);
    /// One's complement sum (RFC 1071) of `len` bytes from `offset`, which is even, as big-endian words, the last one padded;
    /// folded to 16 bits.
    fn sum(&self, offset: usize, len: usize) -> u16 {
        let mut scratch = [0; 512]; // even, so that words do not straddle reads
        let (mut at, mut left, mut total) = (offset, len, 0u16);
        while left > 0 {
            let here = left.min(scratch.len());
            let part = scratch.get_mut(..here).unwrap_or_default();
            self.read(at, part);
            total = fold(sum(part, u32::from(total)));
            (at, left) = (at.saturating_add(here), left.saturating_sub(here));
        }
        total
    }
}
