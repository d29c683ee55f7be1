//! A driver domain of a disk controller, whatever the controller: the block backend under libxenrt. An image `blkback-DEVICE` adds a driver
//! ([`Disks`]), nothing more.
//!
//! Configuration (`[domain.config]` of the system manifest) beside that of every driver domain, all optional; defaults and meaning are
//! those of [`Config`] except for `mappings`: `mappings` (4096), `persistent`, `ring-page-order`, `indirect-segments`, `quantum-kib`,
//! `spin-us` (0 = never look before blocking).
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

mod platform;
mod statistics;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use blkback::disk::Disks;
use blkback::{Backend, Config, Parts};
use driver_domain::statistics::Subject;
use driver_domain::{Channels, Function, Rings, Setting, Turn, Xenstore};
use libxenrt::{SharedPage, config};
use platform::Hypercalls;

/// Data pages kept mapped: what the hypervisor lets a driver domain map, less rings (`hypervisor/src/grants.rs`).
const MAPPINGS: u16 = 4096;
/// Memory into which partition tables are read.
const SCRATCH_BYTES: usize = 4096;

type Blkback<D> = Backend<Hypercalls, D, Rings, SharedPage>;

/// Runs the domain for ever with the driver that `bring_up` starts.
pub fn run<D: Disks>(bring_up: impl FnOnce(&Function) -> Result<D, String>) -> ! {
    driver_domain::run(bring_up, start)
}

fn start<D: Disks>(disks: D, setting: &mut Setting) -> Result<Domain<D>, String> {
    let parts = Parts {
        me: setting.domid(),
        config: chosen(&setting.config),
        platform: Hypercalls::default(),
        disks,
        scratch: Rings::alloc(SCRATCH_BYTES).ok_or("no memory for partition tables")?,
        survivor: setting.survivor()?,
        first_boot: setting.first_boot(),
    };
    Backend::start(parts, &mut setting.store).map(Domain).map_err(|e| format!("backend: {e:?}"))
}

fn chosen(config: &config::Config<'_>) -> Config {
    let usual = Config::default();
    Config {
        mappings: config.number("mappings").unwrap_or(MAPPINGS),
        persistent: config.number("persistent").unwrap_or(usual.persistent),
        ring_page_order: config.number("ring-page-order").unwrap_or(usual.ring_page_order),
        indirect_segments: config.number("indirect-segments").unwrap_or(usual.indirect_segments),
        quantum: config.number("quantum-kib").map_or(usual.quantum, |kib: u32| kib.saturating_mul(1024)),
        spin_us: config.number("spin-us").unwrap_or(usual.spin_us),
    }
}

struct Domain<D>(Blkback<D>);

impl<D: Disks> driver_domain::Backend for Domain<D> {
    fn channels(&mut self) -> &mut Channels {
        self.0.platform().channels()
    }
    fn turn(&mut self, store: &mut Xenstore) -> Turn<String> {
        self.0.turn(store).map_dead(|error| format!("{error:?}"))
    }
    fn store_changed(&mut self, path: &str) {
        self.0.store_changed(path);
    }
    fn point_dma_at(&mut self, addr: u64) {
        self.0.disks().point_dma_at(addr);
    }
    fn turns(&self) -> u64 {
        self.0.stats().turns
    }
    fn statistics(&mut self) -> Vec<Subject> {
        statistics::collect(&self.0)
    }
}
