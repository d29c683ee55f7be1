//! The domain's side of the backend: grants and packet memory under libxenrt.

use abi::grant::{GNTCOPY_DEST_GREF, GrantCopy, status};
use abi::{DomId, Errno, GrantRef, PAGE_SIZE};
use core::ops::Range;
use driver_domain::Channels;
use libxenrt::SharedPage;
use libxenrt::dma::DmaRegion;
use libxenrt::grant::{self, Access, GrantError, MapRequest};
use netback::{Area, Platform};

/// Packet memory.
#[derive(Debug)]
pub struct Packets(pub DmaRegion);

impl Packets {
    /// Its guest-physical addresses.
    pub fn range(&self) -> Range<u64> {
        let base = self.0.device_address();
        base..base.wrapping_add(self.0.len_bytes() as u64)
    }
}

impl Area for Packets {
    fn base(&self) -> u64 {
        self.0.device_address()
    }
    fn len_bytes(&self) -> usize {
        self.0.len_bytes()
    }
    fn read(&self, offset: usize, out: &mut [u8]) {
        let copied = self.0.copy_out(offset, out);
        out.get_mut(copied..).unwrap_or_default().fill(0);
    }
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0.copy_in(offset, bytes);
    }
    fn sum(&self, offset: usize, len: usize) -> u16 {
        self.0.sum(offset, len)
    }
}

/// Hypercalls.
#[derive(Debug)]
pub struct Hypercalls {
    /// Packet memory: the only memory of ours that copies may name.
    packets: Range<u64>,
    pub channels: Channels,
}

impl Hypercalls {
    /// Copies will go to and from `packets`.
    pub const fn new(packets: Range<u64>) -> Self {
        Self { packets, channels: Channels::new() }
    }

    /// Whether our side of a copy is packet memory.
    fn is_ours(&self, op: &GrantCopy) -> bool {
        let ours = if op.flags & GNTCOPY_DEST_GREF != 0 { &op.source } else { &op.dest };
        let start = ours.u.saturating_mul(PAGE_SIZE as u64).saturating_add(u64::from(ours.offset));
        let end = start.saturating_add(u64::from(op.len));
        ours.domid == DomId::SELF && start >= self.packets.start && end <= self.packets.end
    }
}

driver_domain::runtime_by_channels!(Hypercalls);

impl Platform for Hypercalls {
    type Page = SharedPage;

    fn map(&mut self, dom: DomId, grefs: [GrantRef; 2]) -> Result<[SharedPage; 2], Errno> {
        let request = |gref| MapRequest { dom, gref, access: Access::ReadWrite, device: false };
        let mut pages = grant::map_many(&grefs.map(request))?.into_iter();
        // Where one fails the other is unmapped by being dropped.
        let [a, b] = [(); 2].map(|()| pages.next().unwrap_or(Err(GrantError::NoRoom)));
        Ok([a?, b?])
    }

    fn copy(&mut self, operations: &mut [GrantCopy]) {
        assert!(operations.iter().all(|op| self.is_ours(op)), "a grant copy outside of packet memory");
        // SAFETY: I6 – just checked: our side of each operation is the packet area, a DMA region.
        if let Err(e) = unsafe { grant::copy(operations) } {
            log::warn!("grant copy refused: {e}");
            operations.iter_mut().for_each(|op| op.status = status::GENERAL_ERROR);
        }
    }
}
