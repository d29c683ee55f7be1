//! The domain's own page tables: virtual = guest-physical, page 0 and the pages below both stacks unmapped, text executable and
//! read-only, constants read-only, everything else writable and not executable. The window above 1 GiB is mapped in large pages;
//! what is behind them is the hypervisor's business.

use super::image;
use crate::memory::window;
use abi::PAGE_SIZE;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr3Flags, Efer, EferFlags};
use x86_64::structures::paging::{PageTable, PageTableFlags as Flags, PhysFrame};

const PAGE: u64 = PAGE_SIZE as u64;
const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;
/// Registers of devices lie in the last of the 4 GiB: not cached.
const DEVICES: u64 = 3 * HUGE;

const LINK: Flags = Flags::PRESENT.union(Flags::WRITABLE);
const DATA: Flags = LINK.union(Flags::NO_EXECUTE);

/// Hands out zeroed tables from the bottom of free RAM.
struct Tables {
    next: u64,
    end: u64,
}

impl Tables {
    fn make(&mut self) -> &'static mut PageTable {
        let at = self.next;
        self.next = at.wrapping_add(PAGE);
        if self.next > self.end {
            panic!("too little memory: {} KiB of RAM end inside the page tables", self.end >> 10);
        }
        let table = core::ptr::with_exposed_provenance_mut::<PageTable>(at as usize);
        // SAFETY: I10 – free RAM, page-aligned, given out once.
        unsafe { table.write(PageTable::new()) };
        // SAFETY: I10 – initialised above; nobody else knows the address.
        unsafe { &mut *table }
    }
}

fn physical(table: &PageTable) -> PhysAddr {
    PhysAddr::new_truncate((&raw const *table).addr() as u64)
}

/// What the page at `gpa` in the image's part of RAM is; `None` = not mapped.
fn flags_of(gpa: u64) -> Option<Flags> {
    if gpa == 0 || gpa == image::trap_guard() || gpa == image::stack_guard() {
        return None;
    }
    let read_only = Flags::PRESENT | Flags::NO_EXECUTE;
    Some(match gpa {
        g if g < image::start() || g >= image::relro_end() => DATA,
        g if g < image::text() => read_only,
        g if g < image::data() => Flags::PRESENT,
        _ => read_only,
    })
}

/// Builds the tables from `free` up and switches to them; answers the first byte after them. All of the first GiB is mapped: RAM
/// ends where the hypervisor says, and beyond it there is nothing to reach.
///
/// # Safety
/// I10: `[free, end)` is RAM above the image that nothing uses, `free` is page-aligned.
pub unsafe fn install(free: u64, end: u64) -> u64 {
    let mut tables = Tables { next: free, end };
    let root = tables.make();
    let top = tables.make();
    root[0].set_addr(physical(top), LINK);
    // RAM: fine-grained as far as the image reaches, large pages for the rest.
    let ram = tables.make();
    top[0].set_addr(physical(ram), LINK);
    let fine_end = image::end().next_multiple_of(LARGE);
    for (i, entry) in (0u64..).zip(ram.iter_mut()) {
        let base = i.wrapping_mul(LARGE);
        if base < fine_end {
            let pages = tables.make();
            for (j, page) in (0u64..).zip(pages.iter_mut()) {
                let gpa = base.wrapping_add(j.wrapping_mul(PAGE));
                if let Some(flags) = flags_of(gpa) {
                    page.set_addr(PhysAddr::new_truncate(gpa), flags);
                }
            }
            entry.set_addr(physical(pages), LINK);
        } else {
            entry.set_addr(PhysAddr::new_truncate(base), DATA | Flags::HUGE_PAGE);
        }
    }
    let mut base = window::START;
    for link in top.iter_mut().skip(1).take(3) {
        let large = tables.make();
        for entry in large.iter_mut() {
            let uncached = if base >= DEVICES { Flags::NO_CACHE } else { Flags::empty() };
            entry.set_addr(PhysAddr::new_truncate(base), DATA | Flags::HUGE_PAGE | uncached);
            base = base.wrapping_add(LARGE);
        }
        link.set_addr(physical(large), LINK);
    }
    // SAFETY: I10 – NX must be on before an entry has it; no mapping of the loader relies on its being off.
    unsafe { Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE)) };
    // SAFETY: I10 – the same addresses as before, all that runs or is used is mapped with the rights it needs.
    unsafe { Cr3::write(PhysFrame::containing_address(physical(root)), Cr3Flags::empty()) };
    // SAFETY: I10 – read-only pages stay read-only for us too.
    unsafe { Cr0::update(|cr0| cr0.insert(Cr0Flags::WRITE_PROTECT)) };
    tables.next
}
