//! The hypervisor: the only crate that sees the pure logic (`hv-core`, `hv-npt`), the processor (`hv-svm`) and the IOMMU
//! (`hv-amdvi`) at once, and wires them. It owns frames, vCPUs, interrupts and the domain life cycle; it holds no device driver
//! but the serial port, and no policy. See `docs/architecture.md`, "The hypervisor's inside", for locks and memory layout.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

/// Declares the freestanding modules, so that a host build of the workspace sees an empty program.
macro_rules! rooms {
    ($($name:ident)*) => { $(#[cfg(target_os = "none")] mod $name;)* };
}
rooms! {
    acpi apic boot console context cpu cpuid deadlines device domain events exits grants guest_mem heap hypercall image ioapic iommu irq
    lapic lifecycle loader mem msr paging panic pci percpu permissions power run shared_frame smp start time traps vcpu
}
#[cfg(target_os = "none")]
use start::start;

/// There is nothing to run on a host; `cargo build` without a target only checks that the crate is there.
#[cfg(not(target_os = "none"))]
fn main() {}
