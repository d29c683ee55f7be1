//! Descriptor tables of one CPU: GDT, TSS with stacks of their own for what can meet a broken one, and the GS base.

use crate::percpu::PerCpu;
use crate::traps;
use alloc::boxed::Box;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::model_specific::GsBase;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

/// Vectors with a stack of their own: NMI, double fault, machine check.
const OWN_STACK: [usize; 3] = [2, 8, 18];

/// The interrupt stack of a vector, counted from 1; 0 = the present one.
pub fn interrupt_stack(vector: usize) -> u8 {
    OWN_STACK.iter().position(|&v| v == vector).map_or(0, |n| n as u8 + 1)
}
const IST_LEN: usize = 8192;

/// Gives this CPU its tables and its [`PerCpu`]. Every CPU calls it once, before anything that may fault.
pub fn init(cpu: &'static PerCpu) {
    let mut tss = Box::new(TaskStateSegment::new());
    for ist in 0..OWN_STACK.len() {
        let stack: &'static mut [u8] = Box::leak(alloc::vec![0; IST_LEN].into_boxed_slice());
        let top = core::ptr::from_mut(stack).addr() + IST_LEN;
        // The structure is packed: copied out, changed, written back.
        let mut table = tss.interrupt_stack_table;
        if let Some(slot) = table.get_mut(ist) {
            *slot = VirtAddr::new_truncate(top as u64 & !15);
        }
        tss.interrupt_stack_table = table;
    }
    let tss: &'static TaskStateSegment = Box::leak(tss);
    let gdt: &'static mut GlobalDescriptorTable = Box::leak(Box::new(GlobalDescriptorTable::new()));
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    gdt.load();
    // SAFETY: the selectors name flat ring-0 segments of the table just loaded, which lives for ever.
    unsafe { CS::set_reg(code) };
    // SAFETY: as above.
    unsafe { SS::set_reg(data) };
    // SAFETY: as above.
    unsafe { DS::set_reg(data) };
    // SAFETY: as above.
    unsafe { ES::set_reg(data) };
    // SAFETY: the descriptor names a TSS that lives for ever.
    unsafe { load_tss(task) };
    GsBase::write(VirtAddr::from_ptr(cpu));
    traps::load();
}
