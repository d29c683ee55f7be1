//! What the AHCI driver does without a hypervisor, a ring or another domain: blkcheck's workloads straight over it, booted by QEMU's
//! `-kernel`. The measure for `bench blk`; keys and reports as in `docs/blkcheck.md`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod drive;
#[cfg(target_os = "none")]
mod iommu;
#[cfg(target_os = "none")]
mod machine;

#[cfg(target_os = "none")]
libxenrt::main!(machine::run);

/// There is no machine in a process.
#[cfg(not(target_os = "none"))]
fn main() {}
