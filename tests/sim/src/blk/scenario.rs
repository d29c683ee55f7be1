//! A history: guests, a drive, a driver domain that dies and starts again, in an order that a seed chooses.

use super::disk::{Device, Driver, Shape};
use super::guest::{Guest, Nature};
use crate::lives::Lives;
use crate::platform::{Calls, Page};
use crate::store::Connection;
use crate::world::{BACKEND, World};
use abi::DomId;
use blkback::{Backend, Config, Parts};
use hv_core::Mfn;
use hw::DmaMemory;
use std::cell::RefCell;
use std::rc::Rc;

/// Sectors of 512 bytes of a vbd.
pub const SECTORS: u64 = 192;
/// Sectors before each.
const GAP: u64 = 40;

/// Memory of the driver domain for partition tables.
struct Scratch(Rc<World>, Mfn);

impl DmaMemory for Scratch {
    fn device_addr(&self) -> u64 {
        self.1.0 * 4096
    }
    fn len_bytes(&self) -> usize {
        4096
    }
    fn read(&self, offset: usize) -> u32 {
        self.0.read32(self.device_addr() + offset as u64)
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn write(&self, offset: usize, value: u32) {
        self.0.write32(self.device_addr() + offset as u64, value);
    }
    fn fence(&self) {}
}

type Served = Backend<Calls, Driver, Scratch, Page>;

/// What is to happen.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub guests: Vec<Nature>,
    pub shape: Shape,
    pub config: Config,
    /// Points from one life's beginning to its death, one after the other; then it lives.
    pub deaths: Vec<u64>,
    /// Peers move before one in so many accesses to shared memory; 0 = never.
    pub interleave: u32,
    /// One in so many steps breaks the controller; 0 = never.
    pub device_faults: u32,
    /// One in so many steps kills a guest (which is made again); 0 = never.
    pub guest_deaths: u32,
    /// One in so many steps lets a guest close and begin again; 0 = never.
    pub closes: u32,
    /// One in so many events is lost; 0 = none. Whoever waits for ever because of it is kicked once.
    pub lose_events: u32,
    /// Each death leaves garbage in the survivor page.
    pub damage_survivor: bool,
    /// After so many steps the power fails, and that is the end; 0 = never.
    pub power_loss: u64,
    /// Sectors of the first guest's vbd that the drive cannot read or write.
    pub bad_sectors: Vec<u64>,
    /// After so many steps the drive is pulled out; 0 = never.
    pub pull_out: u64,
    /// After so many steps another drive is in its place; 0 = never.
    pub exchange: u64,
    /// What is on the drive in the beginning: where, and what.
    pub preset: Vec<(usize, Vec<u8>)>,
    /// What a guest's vbd is called, where it is not its range.
    pub sources: Vec<(usize, String)>,
}

impl Default for Scenario {
    fn default() -> Self {
        let guest = Nature {
            order: 0,
            persistent: false,
            indirect: true,
            requests: 30,
            read_only: false,
            granularity: 1,
            hostile: false,
        };
        let shape =
            Shape { sector_size: 512, sectors: 2048, depth: 6, max_segments: 8, max_sectors: 40, write_cache: true };
        let config = Config {
            mappings: 120,
            persistent: 16,
            ring_page_order: 2,
            indirect_segments: 32,
            quantum: 16384,
            spin_us: 6,
        };
        Self {
            seed: 1,
            guests: vec![guest, Nature { order: 1, persistent: true, ..guest }],
            shape,
            config,
            deaths: vec![],
            interleave: 0,
            device_faults: 0,
            guest_deaths: 0,
            closes: 0,
            lose_events: 0,
            damage_survivor: false,
            power_loss: 0,
            bad_sectors: vec![],
            pull_out: 0,
            exchange: 0,
            preset: vec![],
            sources: vec![],
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
    /// Requests of honest guests answered.
    pub answered: u64,
    /// Of them with an error.
    pub errors: u64,
    /// Reconnects of honest guests.
    pub reconnects: u32,
    /// Requests done again, in the last life.
    pub replayed: u64,
    /// Requests that waited for one that they overlap, in the last life.
    pub overlaps: u64,
    pub closed: u64,
    pub resets: u64,
    pub flushes: u64,
    /// Most commands in the drive at one time.
    pub deepest: usize,
    /// For each guest, when its last request was answered, in steps; 0 = not while all moved.
    pub last_done: Vec<u64>,
    /// For each guest, why its vbd was closed.
    pub refusals: Vec<Option<String>>,
    /// What did not hold.
    pub failures: Vec<String>,
}

struct Machine {
    world: Rc<World>,
    device: Rc<RefCell<Device>>,
    guests: Rc<RefCell<Vec<Guest>>>,
    scratch: Mfn,
    config: Config,
    lives: Lives<Served>,
    last_done: Vec<u64>,
    /// All sectors as they were in the beginning.
    untouched: Vec<Vec<u8>>,
}

/// Where the vbd of guest `n` begins.
pub fn place(n: usize) -> u64 {
    GAP + n as u64 * (SECTORS + GAP)
}

fn source(n: usize) -> String {
    format!("drive=0,first={},sectors={SECTORS}", place(n))
}

/// Lives through a scenario.
pub fn run(scenario: &Scenario) -> Outcome {
    let world = World::new(scenario.seed);
    let lives = Lives::new(&world, &scenario.deaths, scenario.damage_survivor);
    let scratch = world.allocate(BACKEND, 1)[0];
    let device = Device::new(&world, scenario.shape);
    device.borrow_mut().bad = scenario.bad_sectors.iter().map(|sector| place(0) + sector).collect();
    for (at, bytes) in &scenario.preset {
        device.borrow_mut().preset(*at, bytes);
    }
    let untouched = (0..device.borrow().sectors512()).map(|sector| device.borrow().sector512(sector)).collect();
    let guests = scenario.guests.iter().enumerate().map(|(n, &nature)| {
        let named = scenario.sources.iter().find(|(guest, _)| *guest == n);
        let source = named.map_or_else(|| source(n), |(_, name)| name.clone());
        let mut guest = Guest::new(&world, DomId(n as u16 + 5), nature, (place(n), SECTORS), &source);
        guest.bears_errors =
            scenario.pull_out > 0 || scenario.exchange > 0 || n == 0 && !scenario.bad_sectors.is_empty();
        guest
    });
    let guests = Rc::new(RefCell::new(guests.collect::<Vec<_>>()));
    if scenario.interleave > 0 {
        let (guests, device, w) = (guests.clone(), device.clone(), world.clone());
        let hook = move || {
            let Ok(mut guests) = guests.try_borrow_mut() else { return };
            let n = w.chance.borrow_mut().below(guests.len() as u32 + 2);
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
        scratch,
        config: scenario.config,
        lives,
        last_done: vec![0; scenario.guests.len()],
        untouched,
    };
    machine.lives.light_fuse();
    machine.world.lose_events.set(scenario.lose_events);
    if machine.mix(scenario) {
        return machine.power_lost();
    }
    machine.drain();
    if scenario.lose_events > 0 {
        machine.world.lose_events.set(0);
        machine.guests.borrow_mut().iter_mut().for_each(Guest::kick);
        machine.drain();
    }
    world.interleave(0, None);
    machine.finish()
}

impl Machine {
    /// Everybody moves in an order that chance chooses, until all that was planned is under way; true if the power failed.
    fn mix(&mut self, scenario: &Scenario) -> bool {
        for step in 1..=100_000u64 {
            let world = self.world.clone();
            let dice = |n| world.chance.borrow_mut().below(n);
            let count = scenario.guests.len() as u32;
            if step == scenario.power_loss {
                return true;
            }
            if step == scenario.pull_out {
                self.device.borrow_mut().pull_out();
            }
            if step == scenario.exchange {
                self.device.borrow_mut().exchange();
            }
            if scenario.device_faults > 0 && dice(scenario.device_faults) == 0 {
                self.device.borrow_mut().break_down();
            }
            if scenario.guest_deaths > 0 && dice(scenario.guest_deaths) == 0 {
                self.replace_guest(dice(count) as usize);
            }
            if scenario.closes > 0 && dice(scenario.closes) == 0 {
                self.guests.borrow_mut()[dice(count) as usize].close();
            }
            match dice(8 + count) {
                0 | 1 => drop(self.turn()),
                2..=7 => drop(self.device.borrow_mut().step()),
                n => drop(self.guests.borrow_mut()[n as usize - 8].step()),
            }
            self.world.now_us.set(self.world.now_us.get() + 3);
            let guests = self.guests.borrow();
            for (guest, done) in guests.iter().zip(&mut self.last_done) {
                if *done == 0 && guest.is_done() {
                    *done = step;
                }
            }
            let over = |guest: &Guest| match scenario.lose_events {
                0 => guest.is_done(),
                _ => guest.to_ask == 0,
            };
            if scenario.power_loss == 0 && guests.iter().all(|guest| guest.nature.hostile || over(guest)) {
                return false;
            }
        }
        scenario.power_loss > 0
    }

    /// A guest dies, wherever it is, and another takes its vbd: what is on it is anybody's guess.
    fn replace_guest(&mut self, n: usize) {
        let mut guests = self.guests.borrow_mut();
        let (dom, nature, left) = (guests[n].dom, guests[n].nature, guests[n].to_ask);
        if !nature.hostile {
            return;
        }
        guests.remove(n).die();
        let nature = Nature { requests: left, ..nature };
        guests.insert(n, Guest::new(&self.world, dom, nature, (place(n), SECTORS), &source(n)));
    }

    /// Everybody in turn until nobody moves: then the work must be done.
    fn drain(&mut self) {
        for _ in 0..60_000u32 {
            let mut moved = self.turn();
            for guest in self.guests.borrow_mut().iter_mut() {
                moved |= guest.step();
            }
            for _ in 0..8 {
                moved |= self.device.borrow_mut().step();
            }
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
        self.guests.borrow().iter().filter(|guest| !guest.nature.hostile).all(Guest::is_done)
    }

    /// One turn of the driver domain, or its start; true if it did something.
    fn turn(&mut self) -> bool {
        let interrupting = self.device.borrow().interrupting();
        let start = |survivor, store: &mut Connection| {
            let parts = Parts {
                me: BACKEND,
                config: self.config,
                platform: Calls(self.world.clone()),
                disks: Driver::new(&self.device),
                scratch: Scratch(self.world.clone(), self.scratch),
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
        self.lives.bury();
    }

    /// The power has failed: looks at what is on the media.
    fn power_lost(self) -> Outcome {
        let mut device = self.device.borrow_mut();
        device.lose_power();
        for guest in self.guests.borrow().iter() {
            for sector in 0..SECTORS {
                let bytes = device.sector512(guest.judge.first + sector);
                if let Err(why) = guest.judge.after_power_loss(sector, &bytes) {
                    self.world.fail(format!("guest {}: {why}", guest.dom));
                }
            }
        }
        let answered = self.guests.borrow().iter().map(|guest| guest.answered).sum();
        let (lives, flushes) = (self.lives.count, device.flushes);
        Outcome { lives, flushes, answered, failures: self.world.failures.take(), ..Outcome::default() }
    }

    fn finish(mut self) -> Outcome {
        let world = self.world.clone();
        let mut outcome = Outcome { points: world.points.get(), lives: self.lives.count, ..Outcome::default() };
        self.look_at_the_guests(&mut outcome);
        self.look_at_the_drive(&mut outcome);
        outcome.last_done = std::mem::take(&mut self.last_done);
        if let Some(served) = &self.lives.served {
            outcome.closed = served.stats().vbds_closed;
            for vbd in served.vbds() {
                outcome.replayed += vbd.stats.replayed;
                outcome.overlaps += vbd.stats.overlaps;
            }
            let hostile = self.guests.borrow().iter().any(|guest| guest.nature.hostile);
            let left = served.in_flight();
            if !hostile && left != (0, 0) {
                world.fail(format!("(requests, commands) {left:?} are left in the backend"));
            }
        }
        self.bury();
        self.lives.look_for_remains();
        outcome.failures = world.failures.take();
        outcome
    }

    fn look_at_the_guests(&self, outcome: &mut Outcome) {
        let store = self.world.store.borrow();
        let why = |guest: &Guest| match guest.back_state_is_closed(&store) {
            true => store.get(&guest.back("error")).map(String::from),
            false => None,
        };
        outcome.refusals = self.guests.borrow().iter().map(why).collect();
        for guest in self.guests.borrow().iter().filter(|guest| !guest.nature.hostile) {
            outcome.answered += guest.answered;
            outcome.errors += guest.errors;
            outcome.reconnects += guest.reconnects;
            let refused = outcome.refusals.get(usize::from(guest.dom.0) - 5).is_some_and(Option::is_some);
            if !guest.is_done() && !self.device.borrow().gone && !refused {
                let (dom, up, left) = (guest.dom, guest.is_up(), guest.unanswered());
                self.world.fail(format!("guest {dom} is left: up {up}, {left} unanswered, {} to ask", guest.to_ask));
            }
        }
    }

    /// Every sector of an honest guest holds what it wrote last, every one of nobody what it held.
    fn look_at_the_drive(&self, outcome: &mut Outcome) {
        let device = self.device.borrow();
        (outcome.resets, outcome.flushes, outcome.deepest) = (device.resets, device.flushes, device.deepest);
        if device.exchanged {
            return;
        }
        let guests = self.guests.borrow();
        for sector in 0..device.sectors512() {
            let bytes = device.sector512(sector);
            let own = guests.iter().find(|g| (g.judge.first..g.judge.first + SECTORS).contains(&sector));
            let right = match own {
                Some(guest) if guest.nature.hostile || device.gone => Ok(()),
                Some(guest) => guest.judge.finally(sector - guest.judge.first, &bytes),
                None if bytes == self.untouched[sector as usize] => Ok(()),
                None => Err(format!("sector {sector} is nobody's and was written")),
            };
            if let Err(why) = right {
                self.world.fail(format!("in the end: {why}"));
            }
        }
    }
}
