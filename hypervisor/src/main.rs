//! The hypervisor: the only crate that sees the pure logic (`hv-core`, `hv-npt`), the processor (`hv-svm`) and the IOMMU
//! (`hv-amdvi`) at once, and wires them. It owns frames, vCPUs, interrupts and the domain life cycle; it holds no device driver
//! but the serial port, and no policy. See `docs/architecture.md`, "The hypervisor's inside", for locks and memory layout.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod domain;
#[cfg(target_os = "none")]
mod guest_mem;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
mod hypercall;
#[cfg(target_os = "none")]
mod lifecycle;
#[cfg(target_os = "none")]
mod mem;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod percpu;
#[cfg(target_os = "none")]
mod run;
#[cfg(target_os = "none")]
mod shared_frame;
#[cfg(target_os = "none")]
mod time;
#[cfg(target_os = "none")]
mod vcpu;

/// There is nothing to run on a host; `cargo build` without a target only checks that the crate is there.
#[cfg(not(target_os = "none"))]
fn main() {}
