//! Both ends of the network in one process: the real backend, switch, rings, grants and event channels between simulated
//! guests and a simulated NIC.
//!
//! [`world`] is the machine: memory, the hypervisor's own tables (`hv-core`, not a copy of them), xenstore as a tree, and
//! a fuse that kills the driver domain after a chosen store or step. [`guest`] holds honest and hostile frontends, [`nic`]
//! a device behind an IOMMU with the offloads of a real one, [`wire`] frames whose every byte tells who sent it.
//! [`scenario`] puts them together, runs them in an order that a seed chooses, restarts the driver domain when it dies (`lives`),
//! and says what must hold: each slot answered exactly once, no byte of one domain in another's hands, neighbours of a
//! misbehaving peer served, and an end to all work.
//!
//! [`blk`] is the same for disks.
#![forbid(unsafe_code)]

pub mod blk;
pub mod guest;
mod lives;
pub mod nic;
pub mod own;
pub mod platform;
pub mod scenario;
pub mod store;
pub mod wire;
pub mod world;
