//! The hypervisor's own page table: the image with the least rights its parts need, all RAM in the direct map, stacks with a hole
//! below them. Replaces the boot tables, and with them the identity map.

use crate::boot::info::Region;
use crate::mem::{self, DIRECT_MAP, Tables};
use abi::PAGE_SIZE;
use hv_core::{Gfn, Mfn};
use hv_npt::{HostTree, MapError, Rights};
use spin::{Mutex, MutexGuard, Once};
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;

/// Where the image is linked, for physical 0.
const IMAGE_BASE: u64 = 0xFFFF_FFFF_8000_0000;
/// Stacks of the other CPUs; each is followed by a hole of the same size.
const STACKS: u64 = 0xFFFF_A000_0000_0000;
/// Bytes of such a stack.
pub const STACK_LEN: u64 = 64 * 1024;

static TABLE: Once<Mutex<HostTree<Tables>>> = Once::new();

fn own_table() -> Result<MutexGuard<'static, HostTree<Tables>>, MapError> {
    TABLE.get().map(Mutex::lock).ok_or(MapError::NoMemory)
}

unsafe extern "C" {
    static image_start: u8;
    static text_start: u8;
    static rodata_start: u8;
    static data_start: u8;
    static image_end: u8;
}

/// Page number of a virtual address, without the sign extension.
const fn page(addr: u64) -> Gfn {
    Gfn((addr >> 12) & ((1 << 36) - 1))
}

fn addr_of(symbol: &u8) -> u64 {
    core::ptr::from_ref(symbol).addr() as u64
}

/// Physical memory of the image, its boot part included.
pub fn image() -> Region {
    // SAFETY: symbols of the linker script; only their addresses are used.
    let (start, end) = unsafe { (&image_start, &image_end) };
    Region { start: addr_of(start), end: addr_of(end).wrapping_sub(IMAGE_BASE) }
}

fn build(ram_end: u64) -> Result<HostTree<Tables>, MapError> {
    let mut tree = HostTree::new(Tables).ok_or(MapError::NoMemory)?;
    // The low 4 GiB whole, for firmware tables and device registers; those are kept uncached by the MTRRs and by `map_mmio`.
    let frames = ram_end.max(1 << 32).div_ceil(PAGE_SIZE as u64).next_multiple_of(mem::LARGE_FRAMES);
    let _ = tree.map(page(DIRECT_MAP), Mfn(0), frames, Rights::RW)?;
    // SAFETY: as in `image`.
    let edges = unsafe { [&text_start, &rodata_start, &data_start, &image_end] }.map(addr_of);
    let rights = [Rights::READ | Rights::EXECUTE, Rights::READ, Rights::RW];
    for (part, rights) in edges.windows(2).zip(rights) {
        if let [start, end] = *part {
            let pages = (end - start).div_ceil(PAGE_SIZE as u64);
            if pages > 0 {
                let _ = tree.map(page(start), Mfn::containing(start - IMAGE_BASE), pages, rights)?;
            }
        }
    }
    Ok(tree)
}

/// Builds the table and switches this CPU to it.
///
/// # Panics
/// Without memory for it.
pub fn init(ram_end: u64) {
    let tree = build(ram_end).unwrap_or_else(|e| panic!("no page table for the hypervisor: {e:?}"));
    activate(TABLE.call_once(|| Mutex::new(tree)).lock().root());
}

/// The table's root.
///
/// # Panics
/// Before [`init`].
pub fn root() -> Mfn {
    own_table().unwrap_or_else(|_| panic!("the hypervisor has no page table yet")).root()
}

/// Switches this CPU to a table that maps what it runs on.
fn activate(root: Mfn) {
    let frame = PhysFrame::containing_address(PhysAddr::new_truncate(root.addr()));
    // SAFETY: the table maps the image, its stacks and the direct map as the boot table does.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// Registers of a device: uncached, in the direct map's place, so that `mem::direct` reaches them. Call it before the registers
/// are used by another CPU than this one.
///
/// # Errors
/// [`MapError`].
pub fn map_mmio(phys: u64, len: u64) -> Result<*mut u8, MapError> {
    let first = Mfn::containing(phys);
    let pages = phys.saturating_add(len).div_ceil(PAGE_SIZE as u64).saturating_sub(first.0);
    let mut tree = own_table()?;
    let _ = tree.map(page(DIRECT_MAP.wrapping_add(first.addr())), first, pages, Rights::MMIO)?;
    x86_64::instructions::tlb::flush_all();
    Ok(mem::direct(phys))
}

/// A stack for CPU `cpu`; gives its top. Overflow meets a hole, and the double fault has a stack of its own.
///
/// # Errors
/// [`MapError`].
pub fn map_stack(cpu: u32) -> Result<u64, MapError> {
    let bottom = STACKS + (u64::from(cpu) * 2 + 1) * STACK_LEN;
    for at in (bottom..bottom + STACK_LEN).step_by(PAGE_SIZE) {
        let frame = mem::alloc_zeroed().ok_or(MapError::NoMemory)?;
        let _ = own_table()?.map(page(at), frame, 1, Rights::RW)?;
    }
    Ok(bottom + STACK_LEN)
}

/// Maps the trampoline's page at its own address, or takes it away again.
///
/// # Errors
/// [`MapError`].
pub fn identity(phys: u64, on: bool) -> Result<(), MapError> {
    let mut tree = own_table()?;
    let flush = if on {
        tree.map(page(phys), Mfn::containing(phys), 1, Rights::READ | Rights::EXECUTE)?
    } else {
        tree.unmap(page(phys), 1)?
    };
    if flush.replaced {
        x86_64::instructions::tlb::flush_all();
    }
    Ok(())
}
