//! Guest memory by the addresses guests use: linear addresses through a software walk of the guest's own page tables, then
//! guest-physical ones through its p2m. Everything read is a copy; nothing is trusted.

use crate::domain::{Domain, readable, writable};
use abi::{Errno, PAGE_SIZE};
use core::sync::atomic::Ordering::Relaxed;
use hv_core::Gfn;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A guest's memory as it sees it in long mode, the only one whose hypercalls are served.
#[derive(Clone, Copy, Debug)]
pub struct GuestMem<'a> {
    domain: &'a Domain,
    cr3: u64,
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const ADDR: u64 = 0x000f_ffff_ffff_f000;
const PAGE: u64 = PAGE_SIZE as u64;

impl<'a> GuestMem<'a> {
    /// The view of a vCPU of `domain` that translates by the four levels of tables from `cr3`.
    pub const fn new(domain: &'a Domain, cr3: u64) -> Self {
        Self { domain, cr3 }
    }

    /// Guest-physical address of linear `addr`.
    ///
    /// # Errors
    /// `EFAULT` where the guest's tables do not map it (or not writable, if `write`).
    pub fn translate(&self, addr: u64, write: bool) -> Result<u64, Errno> {
        let mut table = self.cr3 & ADDR;
        if x86_64::VirtAddr::try_new(addr).is_err() {
            return Err(Errno::EFAULT);
        }
        for level in (0..4u32).rev() {
            let shift = 12 + 9 * level;
            let index = addr >> shift & 0x1ff;
            let entry = self.read_entry(table + index * 8)?;
            if entry & PRESENT == 0 || (write && entry & WRITABLE == 0) {
                return Err(Errno::EFAULT);
            }
            let page_mask = (1u64 << shift) - 1;
            if level == 0 || (level <= 2 && entry & LARGE != 0) {
                return Ok((entry & ADDR & !page_mask) | (addr & page_mask));
            }
            table = entry & ADDR;
        }
        Err(Errno::EFAULT)
    }

    fn read_entry(&self, gpa: u64) -> Result<u64, Errno> {
        let p2m = self.domain.p2m.lock();
        let frame = readable(&p2m, Gfn::containing(gpa)).ok_or(Errno::EFAULT)?;
        Ok(frame.u64_at((gpa % PAGE) as usize).ok_or(Errno::EFAULT)?.load(Relaxed))
    }

    fn each_page(
        addr: u64,
        len: usize,
        mut f: impl FnMut(u64, usize, usize) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut done = 0;
        while done < len {
            let at = addr.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let part = (len - done).min((PAGE - at % PAGE) as usize);
            f(at, done, part)?;
            done += part;
        }
        Ok(())
    }

    /// Copies from linear `addr` into `to`.
    ///
    /// # Errors
    /// `EFAULT` if a page does not translate; `to` may then be partly written.
    pub fn read_bytes(&self, addr: u64, to: &mut [u8]) -> Result<(), Errno> {
        let len = to.len();
        Self::each_page(addr, len, |at, done, part| {
            let gpa = self.translate(at, false)?;
            self.domain.read_phys(gpa, to.get_mut(done..done + part).ok_or(Errno::EFAULT)?)
        })
    }
    /// Copies `from` to linear `addr`.
    ///
    /// # Errors
    /// `EFAULT` if a page does not translate or is not writable; the pages before it have been written.
    pub fn write_bytes(&self, addr: u64, from: &[u8]) -> Result<(), Errno> {
        Self::each_page(addr, from.len(), |at, done, part| {
            let gpa = self.translate(at, true)?;
            self.domain.write_phys(gpa, from.get(done..done + part).ok_or(Errno::EFAULT)?)
        })
    }
    /// `copy_from_guest`: a structure at linear `addr`, as a private copy.
    ///
    /// # Errors
    /// As [`Self::read_bytes`].
    pub fn read<T: FromBytes + IntoBytes>(&self, addr: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read_bytes(addr, value.as_mut_bytes())?;
        Ok(value)
    }
    /// `copy_to_guest`.
    ///
    /// # Errors
    /// As [`Self::write_bytes`].
    pub fn write<T: IntoBytes + Immutable>(&self, addr: u64, value: &T) -> Result<(), Errno> {
        self.write_bytes(addr, value.as_bytes())
    }
}

impl Domain {
    /// Copies from guest-physical memory.
    ///
    /// # Errors
    /// `EFAULT` where nothing is mapped.
    pub fn read_phys(&self, gpa: u64, to: &mut [u8]) -> Result<(), Errno> {
        let len = to.len();
        GuestMem::each_page(gpa, len, |at, done, part| {
            let p2m = self.p2m.lock();
            let frame = readable(&p2m, Gfn::containing(at)).ok_or(Errno::EFAULT)?;
            let to = to.get_mut(done..done + part).ok_or(Errno::EFAULT)?;
            if frame.read((at % PAGE) as usize, to) { Ok(()) } else { Err(Errno::EFAULT) }
        })
    }
    /// Copies into guest-physical memory.
    ///
    /// # Errors
    /// `EFAULT` where nothing is mapped writable.
    pub fn write_phys(&self, gpa: u64, from: &[u8]) -> Result<(), Errno> {
        GuestMem::each_page(gpa, from.len(), |at, done, part| {
            let p2m = self.p2m.lock();
            let frame = writable(&p2m, Gfn::containing(at)).ok_or(Errno::EFAULT)?;
            let from = from.get(done..done + part).ok_or(Errno::EFAULT)?;
            if frame.write((at % PAGE) as usize, from) { Ok(()) } else { Err(Errno::EFAULT) }
        })
    }
}
