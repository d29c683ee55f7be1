//! Both ends of block devices in one process: the real backend and its rings between simulated guests and a simulated controller.
//!
//! [`disk`] is a drive behind an IOMMU with a volatile cache, which moves sector by sector in any order and may lose its power; [`guest`] holds
//! honest and hostile frontends, [`scenario`] lets them live together. Every sector says whose it is, where it belongs and which version
//! of it it is, so that a lost, stale, torn or misplaced one shows.
//!
//! What must hold: each request is answered exactly once; overlapping requests of one guest have the effect of being done one after the other
//! in ring order, however often the driver domain dies; a flush's answer means that what was answered before it was asked survives
//! a loss of power; nothing is moved to or from memory that is not mapped for the device, nor to or from sectors of others.

pub mod disk;
pub mod guest;
pub mod scenario;
