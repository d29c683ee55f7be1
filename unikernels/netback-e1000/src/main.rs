//! The driver domain of an Intel 82540EM: the driver, the backend library and libxenrt, wired together. Nothing here decides
//! anything about frames or registers.
//!
//! The order of the start is that of an outage: the device is brought to rest first, then the rings of the frontends are taken up,
//! and only when buffers are posted and all frontends are kicked comes what can wait (`Backend::start` sees to that).
//!
//! Configuration (`[domain.config]` of the system manifest), all optional: `packet-kib` (packet memory, default 2048),
//! `firewall` (rules of vifs without their own), `watchdog-ms` (default 20, 0 = none), `dma-target` (where the crash kind `dma`
//! points the device, default: behind this domain's RAM).
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

mod device;
mod domain;
mod statistics;

use abi::EvtchnPort;
use alloc::vec::Vec;
use core::time::Duration;
use device::{PvClock, Registers, Rings};
use domain::{Hypercalls, Packets, Xenstore};
use libxenrt::config::config;
use libxenrt::device::{Device, Interrupt};
use libxenrt::dma::DmaRegion;
use libxenrt::watchdog::Watchdog;
use libxenrt::{Instant, SharedPage, clock, crash, event, identity, log, store, survivor};
use netback::firewall::Firewall;
use netback::nic::Nic;
use netback::switch::{Switch, SwitchConfig};
use netback::{Backend, Parts, Turn};
use netback_e1000_driver::{Before, E1000, RING_BYTES};
use statistics::Statistics;

libxenrt::main!(run);

/// PCI vendor and device of the 82540EM.
const ID: u32 = 0x100e_8086;
/// The BAR with the registers (SDM 317453, 4.1).
const REGISTERS: usize = 0;
/// Offset and bus-master bit of the COMMAND register in configuration space.
const COMMAND: (u16, u32) = (4, 1 << 2);
/// Packet memory in KiB: what `netback::Config` is made for.
const PACKET_KIB: usize = 2048;
/// Longer than the longest step of a turn, short against what people notice.
const WATCHDOG_MS: u64 = 20;
/// When the start is told of.
const BIRTH_DELAY: Duration = Duration::from_millis(200);
/// How long a device that was pointed at a foreign frame may take to be stopped.
const DMA_PATIENCE: Duration = Duration::from_millis(500);

type Driver = E1000<Registers, Rings, PvClock>;
type Netback = Backend<Hypercalls, Driver, Packets, Switch, SharedPage>;

/// Everything the loop needs.
struct Domain {
    backend: Netback,
    store: Xenstore,
    interrupt: Interrupt,
    /// The interrupt was taken and has to be allowed again.
    interrupted: bool,
    statistics: Statistics,
    ports: Vec<EvtchnPort>,
    /// Not told yet.
    birth: Option<Birth>,
}

fn run() {
    match Domain::start() {
        Ok(mut domain) => domain.serve(),
        // A driver domain that cannot start is restarted, with back-off, by the supervisor.
        Err(why) => panic!("{why}"),
    }
}

/// How long the start took, told a little later: a line on the console costs as much as the start itself.
#[derive(Clone, Copy, Debug)]
struct Birth {
    generation: u32,
    begun: Instant,
    device_ready: Instant,
    serving: Instant,
}

impl Birth {
    fn tell(self) {
        let after = |at: Instant| at.since(self.begun).as_micros();
        let (generation, device, serving) = (self.generation, after(self.device_ready), after(self.serving));
        log::info!("generation {generation}: device ready after {device} us, serving after {serving} us");
    }
}

fn bring_up(device: &Device) -> Result<Driver, alloc::string::String> {
    let info = device.info();
    if info.id != ID {
        return Err(alloc::format!("device {:08x} is not an 82540EM ({ID:08x})", info.id));
    }
    let command = device.pci_read(COMMAND.0, 2).map_err(|e| alloc::format!("configuration space: {e:?}"))?;
    let before = if command & COMMAND.1 == 0 { Before::Quiet } else { Before::Running };
    let registers = device.mmio(REGISTERS).map_err(|e| alloc::format!("registers: {e:?}"))?;
    let rings = DmaRegion::alloc(RING_BYTES).ok_or("no memory for descriptor rings")?;
    let driver =
        E1000::start(Registers(registers), Rings(rings), PvClock, netback_e1000_driver::Config::default(), before)
            .map_err(|e| alloc::format!("82540EM: {e}"))?;
    // The rings are empty: the device has nowhere to write before the backend posts buffers.
    device.set_bus_master(true).map_err(|e| alloc::format!("bus mastership: {e:?}"))?;
    Ok(driver)
}

impl Domain {
    fn start() -> Result<Self, alloc::string::String> {
        use alloc::format;
        let begun = clock::now();
        let config = config();
        let device = Device::nth(0).map_err(|e| format!("device: {e:?}"))?.ok_or("no device assigned")?;
        let nic = bring_up(&device)?;
        let device_ready = clock::now();
        let me = identity::self_info().map_err(|e| format!("identity: {e}"))?;
        let kib = config.number("packet-kib").unwrap_or(PACKET_KIB);
        let packets = DmaRegion::alloc(kib.saturating_mul(1024)).ok_or("no memory for packets")?;
        let packets = Packets(packets);
        let survivor = survivor::page().ok_or("no survivor page")?;
        let rules = match Firewall::parse(config.get("firewall").unwrap_or_default()) {
            Ok(rules) => rules,
            Err(e) => {
                log::error!("{e}; nothing passes");
                Firewall::closed()
            }
        };
        let interrupt = device.interrupt().map_err(|e| format!("interrupt: {e:?}"))?;
        let mut store = Xenstore(store::Store::open().map_err(|e| format!("xenstore: {e:?}"))?);
        let parts = Parts {
            me: me.domid,
            config: netback::Config::default(),
            platform: Hypercalls::new(packets.range()),
            fabric: Switch::new(nic.mac(), SwitchConfig::default(), rules),
            nic,
            area: packets,
            survivor,
            first_boot: me.generation == 0,
        };
        let mut backend = Backend::start(parts, &mut store).map_err(|e| format!("backend: {e:?}"))?;
        // For the control domain's history; nobody waits for the answer.
        if let Err(e) = store.0.post("control/serving", &format!("{}", me.generation)) {
            log::warn!("control/serving: {e:?}");
        }
        let watchdog_ms = config.number("watchdog-ms").unwrap_or(WATCHDOG_MS);
        if watchdog_ms != 0 {
            backend.platform().watch(Watchdog::arm(watchdog_ms).map_err(|e| format!("watchdog: {e}"))?);
        }
        let statistics = Statistics::new(me.domid);
        let birth = Birth { generation: me.generation, begun, device_ready, serving: clock::now() };
        Ok(Self { birth: Some(birth), backend, store, interrupt, interrupted: false, statistics, ports: Vec::new() })
    }

    /// Turns for ever.
    fn serve(&mut self) -> ! {
        loop {
            self.backend.platform().feed();
            if crash::dma_due() {
                self.stray();
            }
            self.follow_store();
            match self.backend.turn(&mut self.store) {
                Turn::Again => {}
                Turn::Wait { until_us } => self.wait(until_us),
                Turn::Dead(error) => panic!("82540EM: {error}"),
            }
        }
    }

    /// Hands changes in xenstore to the backend.
    fn follow_store(&mut self) {
        if !event::is_pending(self.store.0.port()) {
            return;
        }
        loop {
            match self.store.0.next_event() {
                Ok(Some(event)) => self.backend.store_changed(&event.path),
                Ok(None) => return,
                // Without the store no vif can come or go; a new instance gets a new connection.
                Err(e) => panic!("xenstore: {e:?}"),
            }
        }
    }

    /// Sleeps until an event or `until_us`.
    fn wait(&mut self, until_us: Option<u64>) {
        if core::mem::take(&mut self.interrupted)
            && let Err(e) = self.interrupt.done()
        {
            panic!("end of interrupt: {e:?}");
        }
        let now = clock::now();
        let tell_at = self.birth.map(|birth| birth.serving + BIRTH_DELAY);
        if tell_at.is_some_and(|at| now >= at)
            && let Some(birth) = self.birth.take()
        {
            birth.tell();
        }
        let publish_at = self.statistics.publish(now, &mut self.backend, &mut self.store.0);
        let deadline = until_us.map(|us| Instant::from_ns(us.saturating_mul(1000)));
        let deadline = [deadline, publish_at, tell_at.filter(|&at| at > now)].into_iter().flatten().min();
        self.ports.clear();
        self.ports.extend([self.interrupt.port(), self.store.0.port()]);
        self.ports.extend(self.backend.platform().ports());
        if let Err(e) = event::poll(&self.ports, deadline) {
            panic!("poll: {e}");
        }
        self.interrupted |= self.interrupt.take_pending();
        // The store's stays pending for `follow_store`; all vifs are looked at in each turn anyway.
        for port in self.backend.platform().ports() {
            event::take_pending(port);
        }
    }

    /// Commits the crash kind `dma` and waits for the end.
    fn stray(&mut self) -> ! {
        let ram = libxenrt::abi::PAGE_SIZE as u64 * 0x1_0000;
        let target = config().number("dma-target").unwrap_or(ram);
        log::info!("pointing the device at {target:#x}");
        self.backend.nic().point_dma_at(target);
        let until = clock::now() + DMA_PATIENCE;
        while clock::now() < until {
            self.backend.platform().feed();
            core::hint::spin_loop();
        }
        panic!("the device was not stopped from reaching {target:#x}");
    }
}
