//! A history: guests, a device, a driver domain that dies and starts again, in an order that a seed chooses.

use crate::guest::{Guest, Nature};
use crate::lives::Lives;
use crate::nic::{Device, Driver};
use crate::platform::{Calls, Packets, Page};
use crate::store::Connection;
use crate::wire;
use crate::world::{BACKEND, World};
use abi::DomId;
use netback::firewall::Firewall;
use netback::nic::MacAddr;
use netback::switch::{Rate, Switch, SwitchConfig};
use netback::{Backend, Config, Fabric, Parts, PortId, PortSet};
use std::cell::RefCell;
use std::rc::Rc;

/// A host on the wire.
pub(crate) const OUTSIDE: u8 = 0xEE;
/// log2 of the pages of packet memory.
const AREA_ORDER: u32 = 9;

/// The switch, or one that gives every frame to everybody, to show that this is noticed.
struct Fabrics {
    switch: Switch,
    leaky: bool,
}

impl Fabric for Fabrics {
    fn attach(&mut self, port: PortId, mac: MacAddr) {
        self.switch.attach(port, mac);
    }
    fn detach(&mut self, port: PortId) {
        self.switch.detach(port);
    }
    fn forward(&mut self, from: PortId, head: &[u8], len: u32, now_us: u64) -> PortSet {
        let to = self.switch.forward(from, head, len, now_us);
        if !self.leaky {
            return to;
        }
        (0..3).filter_map(PortId::vif).chain([PortId::UPLINK]).filter(|&port| port != from).collect()
    }
}

type Served = Backend<Calls, Driver, Packets, Fabrics, Page>;

/// What is to happen.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub guests: Vec<Nature>,
    /// Frames from the wire.
    pub frames_in: u32,
    pub offloads: bool,
    /// Points from one life's beginning to its death, one after the other; then it lives.
    pub deaths: Vec<u64>,
    /// Peers move before one in so many accesses to shared memory; 0 = never.
    pub interleave: u32,
    /// One in so many steps kills a guest (which is made again); 0 = never.
    pub guest_deaths: u32,
    /// One in so many steps breaks the device; 0 = never.
    pub device_faults: u32,
    /// One in so many events is lost; 0 = none. Whoever waits for ever because of it is kicked once.
    pub lose_events: u32,
    /// The switch gives every frame to everybody.
    pub leaky: bool,
    /// Each death leaves garbage in the survivor page.
    pub damage_survivor: bool,
}

impl Default for Scenario {
    fn default() -> Self {
        let guest = Nature {
            sg: true,
            gso: true,
            mss: 1448,
            blank: true,
            split_ports: true,
            groups: false,
            packets: 20,
            hostile: false,
        };
        Self {
            seed: 1,
            guests: vec![guest, Nature { gso: false, blank: false, split_ports: false, ..guest }],
            frames_in: 30,
            offloads: true,
            deaths: vec![],
            interleave: 0,
            guest_deaths: 0,
            device_faults: 0,
            lose_events: 0,
            leaky: false,
            damage_survivor: false,
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Points at which the driver domain could have died.
    pub points: u64,
    /// Lives of the driver domain.
    pub lives: u64,
    /// Slots answered to honest guests.
    pub answered: u64,
    /// Packets refused to honest guests.
    pub refused: u64,
    /// Frames that honest guests received.
    pub received: u64,
    /// Frames on the wire.
    pub sent: u64,
    /// Reconnects of honest guests.
    pub reconnects: u32,
    /// Vifs that the driver domain closed for a breach, in its last life.
    pub closed: u64,
    /// Resets of the device by its driver.
    pub resets: u64,
    /// For each guest, when it had sent its last packet (in steps of the first phase; 0 = not in it).
    pub last_done: Vec<u64>,
    /// What did not hold.
    pub failures: Vec<String>,
}

struct Machine {
    world: Rc<World>,
    device: Rc<RefCell<Device>>,
    guests: Rc<RefCell<Vec<Guest>>>,
    area: u64,
    lives: Lives<Served>,
    frames_in: u32,
    flow: u32,
    leaky: bool,
    last_done: Vec<u64>,
}

/// Lives through a scenario.
pub fn run(scenario: &Scenario) -> Outcome {
    let world = World::new(scenario.seed);
    let lives = Lives::new(&world, &scenario.deaths, scenario.damage_survivor);
    let area = world.allocate_area(BACKEND, AREA_ORDER).0 * 4096;
    let device = Device::new(&world, scenario.offloads);
    let doms: Vec<DomId> = (0..scenario.guests.len()).map(|n| DomId(n as u16 + 5)).collect();
    let guests = scenario.guests.iter().zip(&doms).map(|(&nature, &dom)| {
        let others = doms.iter().filter(|&&other| other != dom).map(|other| wire::mac(other.0 as u8));
        Guest::new(&world, dom, nature, others.chain([wire::mac(OUTSIDE)]).collect())
    });
    let guests = Rc::new(RefCell::new(guests.collect::<Vec<_>>()));
    if scenario.interleave > 0 {
        let (guests, device, w) = (guests.clone(), device.clone(), world.clone());
        let hook = move || {
            let Ok(mut guests) = guests.try_borrow_mut() else { return };
            let count = guests.len() as u32;
            let n = w.chance.borrow_mut().below(count + 1);
            match guests.get_mut(n as usize) {
                Some(guest) => drop(guest.step()),
                None => drop(device.try_borrow_mut().map(|mut device| device.step())),
            }
        };
        world.interleave(scenario.interleave, Some(Box::new(hook)));
    }
    let mut machine = Machine {
        world: world.clone(),
        device,
        guests,
        area,
        lives,
        frames_in: scenario.frames_in,
        flow: 0,
        leaky: scenario.leaky,
        last_done: vec![0; scenario.guests.len()],
    };
    machine.lives.light_fuse();
    machine.world.lose_events.set(scenario.lose_events);
    machine.mix(scenario);
    machine.drain();
    if scenario.lose_events > 0 {
        machine.world.lose_events.set(0);
        machine.guests.borrow_mut().iter_mut().for_each(Guest::kick);
        machine.drain();
    }
    world.interleave(0, None);
    machine.finish()
}

fn switch() -> Switch {
    let flood = Rate { per_second: 1_000_000, burst: 1_000_000 };
    let config = SwitchConfig { vif_flood: flood, uplink_flood: flood, ..SwitchConfig::default() };
    Switch::new([2, 0xFF, 0, 0, 0, 0], config, Firewall::default())
}

impl Machine {
    /// Everybody moves in an order that chance chooses, until all that was planned is under way.
    fn mix(&mut self, scenario: &Scenario) {
        for step in 1..=30_000u64 {
            let world = self.world.clone();
            let dice = |n| world.chance.borrow_mut().below(n);
            if scenario.device_faults > 0 && dice(scenario.device_faults) == 0 {
                self.device.borrow_mut().break_down();
            }
            if scenario.guest_deaths > 0 && dice(scenario.guest_deaths) == 0 {
                self.replace_guest(dice(scenario.guests.len() as u32) as usize);
            }
            let count = scenario.guests.len() as u32;
            match dice(4 + count) {
                0 | 1 => drop(self.turn()),
                2 => drop(self.device.borrow_mut().step()),
                3 => self.inject(),
                n => drop(self.guests.borrow_mut()[n as usize - 4].step()),
            }
            self.world.now_us.set(self.world.now_us.get() + 3);
            let guests = self.guests.borrow();
            for (guest, done) in guests.iter().zip(&mut self.last_done) {
                if *done == 0 && guest.to_send == 0 {
                    *done = step;
                }
            }
            if self.frames_in == 0 && guests.iter().all(|guest| guest.to_send == 0 || guest.nature.hostile) {
                return;
            }
        }
    }

    fn inject(&mut self) {
        if self.frames_in == 0 {
            return;
        }
        self.frames_in -= 1;
        self.flow += 1;
        let count = self.guests.borrow().len() as u32;
        let mut chance = self.world.chance.borrow_mut();
        let n = chance.below(count);
        let multicast = self.guests.borrow()[n as usize].nature.groups;
        let to = if multicast { wire::GROUP } else { wire::mac(5 + n as u8) };
        let incoming = &mut self.device.borrow_mut().incoming;
        if chance.below(2) == 0 {
            incoming.push_back(wire::udp(to, OUTSIDE, self.flow, chance.below(1400) as usize, false));
            return;
        }
        // A burst of segments, as a TCP sends them: what the backend may join.
        let mss = 1 + chance.below(1400) as usize;
        let len = 1 + mss * chance.below(24) as usize + chance.below(mss as u32) as usize;
        let whole = wire::tcp(to, OUTSIDE, self.flow, len, false);
        incoming.extend(wire::segment(&whole, wire::TCP_HEAD, mss));
    }

    fn replace_guest(&mut self, n: usize) {
        let mut guests = self.guests.borrow_mut();
        let (dom, nature, peers) = (guests[n].dom, guests[n].nature, guests[n].peers.clone());
        let nature = Nature { packets: guests[n].to_send, ..nature };
        let old = guests.remove(n);
        old.die();
        guests.insert(n, Guest::new(&self.world, dom, nature, peers));
    }

    /// Everybody in turn until nobody moves: then the work must be done.
    fn drain(&mut self) {
        for _ in 0..60_000u32 {
            let mut moved = self.turn();
            for guest in self.guests.borrow_mut().iter_mut() {
                moved |= guest.step();
            }
            moved |= self.device.borrow_mut().step();
            self.world.now_us.set(self.world.now_us.get() + 3);
            let hostile = self.guests.borrow().iter().any(|guest| guest.nature.hostile);
            if !moved || (hostile && self.honest_done()) {
                match self.lives.asleep {
                    // Only time can help.
                    Some(Some(until)) if !self.honest_done() => self.world.now_us.set(until),
                    _ => return,
                }
            }
        }
        self.world.fail("no end of work".into());
    }

    fn honest_done(&self) -> bool {
        let guests = self.guests.borrow();
        guests.iter().filter(|g| !g.nature.hostile).all(|g| g.is_up() && g.unanswered() == 0 && g.to_send == 0)
    }

    /// One turn of the driver domain, or its start; true if it did something.
    fn turn(&mut self) -> bool {
        let interrupting = self.device.borrow().interrupting();
        let start = |survivor, store: &mut Connection| {
            let parts = Parts {
                me: BACKEND,
                config: Config { large_buffers: 100, rx_buffers: 48, frames: 200, budget: 8, ..Config::default() },
                platform: Calls(self.world.clone()),
                nic: Driver(self.device.clone()),
                area: Packets { world: self.world.clone(), base: self.area, len: 4096 << AREA_ORDER },
                fabric: Fabrics { switch: switch(), leaky: self.leaky },
                survivor,
                first_boot: self.world.generation.get() == 0,
            };
            Backend::start(parts, store).expect("the store answers")
        };
        let moved = self.lives.turn(interrupting, start, |served, changed, store| {
            changed.iter().for_each(|path| served.store_changed(path));
            served.turn(store)
        });
        moved.unwrap_or_else(|| {
            self.bury();
            true
        })
    }

    /// The driver domain died: contain, take back, and let it start again.
    fn bury(&mut self) {
        self.device.borrow_mut().quiesce();
        self.world.write(self.area, &vec![0; 4096 << AREA_ORDER]);
        self.lives.bury();
    }

    fn finish(mut self) -> Outcome {
        let world = self.world.clone();
        let guests = self.guests.borrow();
        let mut outcome = Outcome { points: world.points.get(), lives: self.lives.count, ..Outcome::default() };
        outcome.sent = self.device.borrow().sent.len() as u64;
        for guest in guests.iter().filter(|guest| !guest.nature.hostile) {
            outcome.answered += guest.answered;
            outcome.refused += guest.refused;
            outcome.received += guest.received.len() as u64;
            outcome.reconnects += guest.reconnects;
            if !guest.is_up() || guest.unanswered() > 0 || guest.to_send > 0 {
                let (dom, up, left) = (guest.dom, guest.is_up(), guest.unanswered());
                world.fail(format!("guest {dom} is left: up {up}, {left} unanswered, {} to send", guest.to_send));
            }
        }
        guests.iter().for_each(Guest::search);
        outcome.last_done = std::mem::take(&mut self.last_done);
        outcome.resets = self.device.borrow().resets;
        outcome.closed = self.lives.served.as_ref().map_or(0, |served| served.stats().vifs_closed);
        let hostile = guests.iter().any(|guest| guest.nature.hostile);
        let left = self.lives.served.as_ref().map_or((0, 0), Served::in_flight);
        if !hostile && left != (0, 0) {
            world.fail(format!("(frames, buffers) {left:?} are left in the backend"));
        }
        drop(guests);
        self.bury();
        self.lives.look_for_remains();
        let hv = world.hv.borrow();
        for &dom in hv.tables.keys() {
            if let Some(port) = hv.one_sided(dom) {
                world.fail(format!("port {port:?} of {dom:?} leads to one that does not lead back"));
            }
        }
        outcome.failures = world.failures.take();
        outcome
    }
}
