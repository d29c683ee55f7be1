//! Physical memory: the direct map, the frame table, copies.
//!
//! Who owns a frame and who has pinned it is `hv_core`'s frame table, which is also the allocator. Domains ask for 2 MiB
//! runs below 4 GiB first: fewer page-table levels, and the emulated NIC is slow above that line.

use abi::PAGE_SIZE;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use hv_core::Mfn;
use hv_core::frames::{Frame, FrameTable, Owner};
use hv_npt::FrameStore;
use spin::{Mutex, MutexGuard, Once};

/// Virtual address of physical 0. All RAM is mapped here, writable, for ever.
pub const DIRECT_MAP: u64 = 0xFFFF_8000_0000_0000;
/// Frames in a 2 MiB page.
pub const LARGE_FRAMES: u64 = 512;

/// Where physical address `phys` is mapped.
pub fn direct(phys: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(DIRECT_MAP.wrapping_add(phys) as usize)
}

/// Bytes that [`refresh_bytes`] compares at a time.
pub const BLOCK: usize = 64;

global_asm!(include_str!("memory.s"));
unsafe extern "C" {
    fn mem_copy(to: *mut u8, from: *const u8, len: usize);
    fn mem_zero(to: *mut u8, len: usize);
    fn mem_refresh(to: *mut u8, from: *const u8, blocks: usize);
}

/// Copies bytes, whoever else touches them meanwhile: no compiler assumes anything about them.
///
/// # Safety
/// `len` bytes at both pointers are mapped; the target may be written.
pub unsafe fn copy_bytes(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: by this function's contract.
    unsafe { mem_copy(to, from, len) };
}

/// Makes `len` bytes (a multiple of [`BLOCK`]) equal to others, writing only blocks that differ. The code of an image hardly ever
/// does; an emulator drops what it has translated of a page that is written, one store at a time, and a processor saves the write.
///
/// # Safety
/// As [`copy_bytes`].
pub unsafe fn refresh_bytes(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: by this function's contract.
    unsafe { mem_refresh(to, from, len / BLOCK) };
}

/// Clears bytes, as [`copy_bytes`] copies them.
///
/// # Safety
/// `len` bytes at `to` are mapped and may be written.
pub unsafe fn zero_bytes(to: *mut u8, len: usize) {
    // SAFETY: by this function's contract.
    unsafe { mem_zero(to, len) };
}

static FRAMES: Once<Mutex<FrameTable<'static>>> = Once::new();

/// Makes the frame table over `records`, one per frame from machine frame 0 up; all reserved until `add_ram`.
pub fn init_frames(records: &'static mut [Frame]) {
    FRAMES.call_once(|| Mutex::new(FrameTable::new(records)));
}

/// The frame table.
///
/// # Panics
/// Before [`init_frames`].
pub fn frames() -> MutexGuard<'static, FrameTable<'static>> {
    match FRAMES.get() {
        Some(frames) => frames.lock(),
        None => panic!("frames asked for before the memory map was read"),
    }
}

/// No frame limit.
pub const ANYWHERE: Mfn = Mfn(u64::MAX >> 12);
/// Frames below 4 GiB.
pub const BELOW_4G: Mfn = Mfn(1 << 20);

/// A frame of the hypervisor, cleared.
#[must_use]
pub fn alloc_zeroed() -> Option<Mfn> {
    let mfn = frames().allocate(Owner::Hypervisor, ANYWHERE).ok()?;
    // SAFETY: a frame fresh from the allocator is RAM that nobody refers to.
    unsafe { zero_bytes(direct(mfn.addr()), PAGE_SIZE) };
    Some(mfn)
}

/// Gives back a frame of [`alloc_zeroed`].
///
/// # Panics
/// If it was not the hypervisor's: then the frame table is broken.
pub fn free(mfn: Mfn) {
    if let Err(e) = frames().free(mfn, Owner::Hypervisor) {
        panic!("freeing frame {mfn}: {e:?}");
    }
}

/// Gives up a pin.
///
/// # Panics
/// If there was none: as in [`free`].
pub fn unpin(mfn: Mfn) {
    if let Err(e) = frames().unpin(mfn) {
        panic!("pin of frame {mfn} lost: {e:?}");
    }
}

/// Page tables live in frames of the hypervisor.
#[derive(Clone, Copy, Debug)]
pub struct Tables;

impl Tables {
    fn entry(table: Mfn, index: usize) -> &'static AtomicU64 {
        assert!(index < hv_npt::ENTRIES, "entry {index} of a page table");
        let ptr = direct(table.addr()).cast::<AtomicU64>().wrapping_add(index);
        // SAFETY: `hv_npt` passes only frames it got from `alloc` below, which are mapped and hold nothing but entries.
        unsafe { &*ptr }
    }
}

impl FrameStore for Tables {
    fn alloc(&mut self) -> Option<Mfn> {
        frames().allocate(Owner::Hypervisor, ANYWHERE).ok()
    }
    fn free(&mut self, table: Mfn) {
        free(table);
    }
    fn read(&self, table: Mfn, index: usize) -> u64 {
        Self::entry(table, index).load(SeqCst)
    }
    fn write(&mut self, table: Mfn, index: usize, entry: u64) {
        Self::entry(table, index).store(entry, SeqCst);
    }
}
