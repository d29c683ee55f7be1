//! The driver domain of an Intel 82540EM: the driver and the backend library, wired together. Nothing here decides anything about
//! frames or registers; `driver-domain` runs it.
//!
//! Configuration (`[domain.config]` of the system manifest) beside that of every driver domain, all optional: `packet-kib` (packet
//! memory, default 2048), `firewall` (rules of vifs without their own).
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

mod platform;
mod statistics;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use driver_domain::statistics::Subject;
use driver_domain::{Channels, Function, PvClock, Registers, Rings, Setting, Turn, Xenstore};
use libxenrt::dma::DmaRegion;
use libxenrt::{SharedPage, log};
use netback::firewall::Firewall;
use netback::nic::Nic;
use netback::switch::{Switch, SwitchConfig};
use netback::{Backend, Parts};
use netback_e1000_driver::{Before, E1000, RING_BYTES};
use platform::{Hypercalls, Packets};

libxenrt::main!(run);

/// PCI vendor and device of the 82540EM.
const ID: u32 = 0x100e_8086;
/// The BAR with the registers (SDM 317453, 4.1).
const REGISTERS: usize = 0;
/// Packet memory in KiB: what `netback::Config` is made for.
const PACKET_KIB: usize = 2048;

type Driver = E1000<Registers, Rings, PvClock>;
type Netback = Backend<Hypercalls, Driver, Packets, Switch, SharedPage>;

fn run() {
    driver_domain::run(bring_up, start)
}

fn bring_up(function: &Function) -> Result<Driver, String> {
    if function.id() != ID {
        return Err(format!("device {:08x} is not an 82540EM ({ID:08x})", function.id()));
    }
    let before = if function.was_running() { Before::Running } else { Before::Quiet };
    let rings = Rings::alloc(RING_BYTES).ok_or("no memory for descriptor rings")?;
    let config = netback_e1000_driver::Config::default();
    let driver = E1000::start(function.registers(REGISTERS)?, rings, PvClock, config, before)
        .map_err(|e| format!("82540EM: {e}"))?;
    // The rings are empty: the device has nowhere to write before the backend posts buffers.
    function.allow_dma()?;
    Ok(driver)
}

fn start(nic: Driver, setting: &mut Setting) -> Result<Domain, String> {
    let kib = setting.config.number("packet-kib").unwrap_or(PACKET_KIB);
    let packets = DmaRegion::alloc(kib.saturating_mul(1024)).ok_or("no memory for packets")?;
    let packets = Packets(packets);
    let rules = match Firewall::parse(setting.config.get("firewall").unwrap_or_default()) {
        Ok(rules) => rules,
        Err(e) => {
            log::error!("{e}; nothing passes");
            Firewall::closed()
        }
    };
    let parts = Parts {
        me: setting.domid(),
        config: netback::Config::default(),
        platform: Hypercalls::new(packets.range()),
        fabric: Switch::new(nic.mac(), SwitchConfig::default(), rules),
        nic,
        area: packets,
        survivor: setting.survivor()?,
        first_boot: setting.first_boot(),
    };
    Backend::start(parts, &mut setting.store).map(Domain).map_err(|e| format!("backend: {e:?}"))
}

struct Domain(Netback);

impl driver_domain::Backend for Domain {
    fn channels(&mut self) -> &mut Channels {
        &mut self.0.platform().channels
    }
    fn turn(&mut self, store: &mut Xenstore) -> Turn<String> {
        self.0.turn(store).map_dead(|error| format!("{error}"))
    }
    fn store_changed(&mut self, path: &str) {
        self.0.store_changed(path);
    }
    fn point_dma_at(&mut self, addr: u64) {
        self.0.nic().point_dma_at(addr);
    }
    fn turns(&self) -> u64 {
        self.0.stats().turns
    }
    fn statistics(&mut self) -> Vec<Subject> {
        statistics::collect(&mut self.0)
    }
}
