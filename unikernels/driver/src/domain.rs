//! The life of a driver domain: start, turns, sleep, and the end that the crash kind `dma` asks for.
//!
//! The order of the start is that of an outage: the device is brought to rest first, then the backend takes up the rings of its
//! frontends, and only then comes what can wait (the loop's watchdog, statistics, the line that tells of the start).
//!
//! Configuration (`[domain.config]` of the system manifest) that every driver domain knows, all optional: `watchdog-ms` (default 20,
//! 0 = none, also for the start), `start-ms` (what a start may take, default 20000), `dma-target` (where the crash kind `dma` points
//! the device, default: 256 MiB, which is outside of a driver domain's RAM), and for tests `crash` and `crash-times` ([`crash::configured`]).

use crate::channels::Channels;
use crate::function::Function;
use crate::statistics::{Statistics, Subject};
use crate::store::Xenstore;
use abi::xenolith::SelfInfo;
use abi::{DomId, EvtchnPort};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use backend::Turn;
use core::time::Duration;
use libxenrt::config::{Config, config};
use libxenrt::device::Interrupt;
use libxenrt::watchdog::Watchdog;
use libxenrt::{Instant, SharedPage, clock, crash, event, identity, store, survivor};

/// Longer than the longest step of a turn, short against what people notice.
const WATCHDOG_MS: u64 = 20;
/// Longer than any start whose device still answers (a drive may take seconds to come back from a reset): without it a start that
/// hangs would never end.
const START_MS: u64 = 20_000;
/// When the start is told of.
const BIRTH_DELAY: Duration = Duration::from_millis(200);
/// How long a device that was pointed at a foreign frame may take to be stopped: a drive may first do, slowly, what it has already. Less
/// than whoever ordered the crash waits for it.
const DMA_PATIENCE: Duration = Duration::from_secs(10);

/// A backend with its driver, as the domain sees it.
pub trait Backend {
    /// Its channels, whose events wake the domain.
    fn channels(&mut self) -> &mut Channels;
    /// One round of work.
    fn turn(&mut self, store: &mut Xenstore) -> Turn<String>;
    /// A node that the backend watches, or one below it, changed.
    fn store_changed(&mut self, path: &str);
    /// Commits the crash kind `dma`.
    fn point_dma_at(&mut self, addr: u64);
    /// Turns made.
    fn turns(&self) -> u64;
    /// Counters for people.
    fn statistics(&mut self) -> Vec<Subject>;
}

/// What a backend is started with.
#[derive(Debug)]
pub struct Setting {
    /// Who we are, and how often restarted.
    pub me: SelfInfo,
    /// Our configuration.
    pub config: Config<'static>,
    /// Xenstore.
    pub store: Xenstore,
    survivor: Option<SharedPage>,
}

impl Setting {
    fn new() -> Result<Self, String> {
        let me = identity::self_info().map_err(|e| format!("identity: {e}"))?;
        let store = Xenstore(store::Store::open().map_err(|e| format!("xenstore: {e:?}"))?);
        Ok(Self { me, config: config(), store, survivor: survivor::page() })
    }

    /// Our number.
    #[must_use]
    pub const fn domid(&self) -> DomId {
        self.me.domid
    }

    /// Whether no instance has served before.
    #[must_use]
    pub const fn first_boot(&self) -> bool {
        self.me.generation == 0
    }

    /// The survivor page, once.
    ///
    /// # Errors
    /// There is none, or it was taken.
    pub fn survivor(&mut self) -> Result<SharedPage, String> {
        self.survivor.take().ok_or_else(|| String::from("no survivor page"))
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

/// Everything the loop needs.
struct Domain<B> {
    backend: B,
    store: Xenstore,
    interrupt: Interrupt,
    /// The interrupt was taken and has to be allowed again.
    interrupted: bool,
    statistics: Statistics,
    ports: Vec<EvtchnPort>,
    /// Not told yet.
    birth: Option<Birth>,
}

/// Runs the domain for ever: `bring_up` starts the driver, `start` the backend over it.
///
/// # Panics
/// If either fails: a driver domain that cannot start is restarted, with back-off, by the supervisor.
pub fn run<D, B: Backend>(
    bring_up: impl FnOnce(&Function) -> Result<D, String>,
    start: impl FnOnce(D, &mut Setting) -> Result<B, String>,
) -> ! {
    match Domain::start(bring_up, start) {
        Ok(mut domain) => domain.serve(),
        Err(why) => panic!("{why}"),
    }
}

impl<B: Backend> Domain<B> {
    fn start<D>(
        bring_up: impl FnOnce(&Function) -> Result<D, String>,
        start: impl FnOnce(D, &mut Setting) -> Result<B, String>,
    ) -> Result<Self, String> {
        let begun = clock::now();
        let watchdog_ms = config().number("watchdog-ms").unwrap_or(WATCHDOG_MS);
        let watch = |ms: u64| match watchdog_ms {
            0 => Ok(None),
            _ => Watchdog::arm(ms).map(Some).map_err(|e| format!("watchdog: {e}")),
        };
        let patience = watch(config().number("start-ms").unwrap_or(START_MS))?;
        let mut setting = Setting::new()?;
        if let Some(order) = crash::configured(&setting.config, setting.me.generation) {
            crash::arm(order);
        }
        crash::point();
        let function = Function::open()?;
        let driver = bring_up(&function)?;
        let device_ready = clock::now();
        let interrupt = function.device().interrupt().map_err(|e| format!("interrupt: {e:?}"))?;
        let mut backend = start(driver, &mut setting)?;
        let Setting { me, mut store, .. } = setting;
        // For the control domain's history; nobody waits for the answer.
        if let Err(e) = store.0.post("control/serving", &format!("{}", me.generation)) {
            log::warn!("control/serving: {e:?}");
        }
        drop(patience);
        if let Some(watchdog) = watch(watchdog_ms)? {
            backend.channels().watch(watchdog);
        }
        let birth = Birth { generation: me.generation, begun, device_ready, serving: clock::now() };
        Ok(Self {
            backend,
            store,
            interrupt,
            interrupted: false,
            statistics: Statistics::new(),
            ports: Vec::new(),
            birth: Some(birth),
        })
    }

    /// Turns for ever.
    fn serve(&mut self) -> ! {
        loop {
            self.backend.channels().feed();
            if crash::dma_due() {
                self.stray();
            }
            self.follow_store();
            match self.backend.turn(&mut self.store) {
                Turn::Again => {}
                Turn::Wait { until_us } => self.wait(until_us),
                Turn::Dead(why) => panic!("device: {why}"),
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
                // Without the store no frontend can come or go; a new instance gets a new connection.
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
        let (turns, backend) = (self.backend.turns(), &mut self.backend);
        let publish_at = self.statistics.publish(now, turns, || backend.statistics(), &mut self.store.0);
        let deadline = until_us.map(|us| Instant::from_ns(us.saturating_mul(1000)));
        let deadline = [deadline, publish_at, tell_at.filter(|&at| at > now)].into_iter().flatten().min();
        self.ports.clear();
        self.ports.extend([self.interrupt.port(), self.store.0.port()]);
        self.ports.extend(self.backend.channels().ports());
        if let Err(e) = event::poll(&self.ports, deadline) {
            panic!("poll: {e}");
        }
        self.interrupted |= self.interrupt.take_pending();
        // The store's stays pending for `follow_store`; all frontends are looked at in each turn anyway.
        for port in self.backend.channels().ports() {
            event::take_pending(port);
        }
    }

    /// Commits the crash kind `dma` and waits for the end.
    fn stray(&mut self) -> ! {
        let ram = abi::PAGE_SIZE as u64 * 0x1_0000;
        let target = config().number("dma-target").unwrap_or(ram);
        log::info!("pointing the device at {target:#x}");
        self.backend.point_dma_at(target);
        let until = clock::now() + DMA_PATIENCE;
        while clock::now() < until {
            self.backend.channels().feed();
            core::hint::spin_loop();
        }
        panic!("the device was not stopped from reaching {target:#x}");
    }
}
