//! A ring page, a survivor page, a frontend that is stepped at chosen accesses of the backend, and a backend that dies
//! after chosen stores and is started again. One `World::run` is one history; whatever is wrong with it is an `Err`.

use crate::{BackRing, FrontRing, Recovery, RingId, RingKind, SharedMem};
use abi::{DomId, GrantRef, PAGE_SIZE};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

pub const ID: RingId = RingId { frontend: DomId(5), device: 0, kind: RingKind::NetTx, queue: 0, gref: GrantRef(17) };

/// Words of one page.
pub struct Page(Vec<Cell<u32>>);

impl Page {
    pub fn new() -> Rc<Self> {
        Rc::new(Self(vec![Cell::new(0); PAGE_SIZE / 4]))
    }
    pub fn word(&self, offset: usize) -> &Cell<u32> {
        assert_eq!(offset % 4, 0);
        &self.0[offset / 4]
    }
}

/// A plain view: what it does is not counted and kills nobody.
#[derive(Clone)]
pub struct Plain(pub Rc<Page>);

impl SharedMem for Plain {
    fn read(&self, offset: usize) -> u32 {
        self.0.word(offset).get()
    }
    fn write(&self, offset: usize, value: u32) {
        self.0.word(offset).set(value);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }
    fn fence(&self) {}
}

/// Thrown when the backend's time has come.
pub struct Killed;

/// What all views of the backend share: when it dies and when the frontend moves.
#[derive(Default)]
pub struct Fate {
    pub stores: Cell<u64>,
    pub accesses: Cell<u64>,
    /// Total numbers of stores after which the backend dies, ascending.
    pub kills: RefCell<Vec<u64>>,
    /// Total numbers of accesses before which the frontend makes a step, ascending.
    pub steps: RefCell<Vec<u64>>,
    hook: RefCell<Option<Box<dyn FnMut()>>>,
}

impl Fate {
    fn access(&self) {
        let now = self.accesses.get() + 1;
        self.accesses.set(now);
        while self.steps.borrow().first().is_some_and(|&at| at <= now) {
            self.steps.borrow_mut().remove(0);
            if let Some(hook) = self.hook.borrow_mut().as_mut() {
                hook();
            }
        }
    }
    fn stored(&self) {
        self.stores.set(self.stores.get() + 1);
        self.die_if_due();
    }
    fn die_if_due(&self) {
        if self.kills.borrow().first().is_some_and(|&at| at <= self.stores.get()) {
            self.kills.borrow_mut().remove(0);
            resume_unwind(Box::new(Killed));
        }
    }
}

/// The backend's view of a page.
#[derive(Clone)]
pub struct Mortal {
    pub page: Rc<Page>,
    pub fate: Rc<Fate>,
}

impl SharedMem for Mortal {
    fn read(&self, offset: usize) -> u32 {
        self.fate.access();
        self.page.word(offset).get()
    }
    fn write(&self, offset: usize, value: u32) {
        self.fate.access();
        self.page.word(offset).set(value);
        self.fate.stored();
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }
    fn fence(&self) {}
}

/// The request an honest frontend writes for the `n`-th packet of its life.
pub fn request<const REQ: usize>(n: u32) -> [u32; REQ] {
    let mut word = 0u32;
    [(); REQ].map(|()| {
        word += 1;
        0x1000_0000 | word << 20 | n & 0xF_FFFF
    })
}

/// The only right answer to it.
pub fn response<const RSP: usize>(n: u32) -> [u32; RSP] {
    let mut word = 0u32;
    [(); RSP].map(|()| {
        word += 1;
        0xE000_0000 | word << 20 | n & 0xF_FFFF
    })
}

/// An honest frontend that sleeps when it has nothing to do and is woken only by events.
pub struct Front<const N: usize, const REQ: usize, const RSP: usize> {
    ring: FrontRing<Plain, N, REQ, RSP>,
    batch: u32,
    total: u32,
    pushed: u32,
    unpublished: u32,
    pub answered: u32,
    pub awake: bool,
    /// The backend's port is pending.
    pub event: bool,
    wrong: Option<String>,
}

impl<const N: usize, const REQ: usize, const RSP: usize> Front<N, REQ, RSP> {
    /// One operation; false if there is nothing it could do before the backend moves.
    pub fn step(&mut self) -> bool {
        if self.pushed < self.total && self.unpublished < self.batch && self.ring.free() > 0 {
            self.ring.push(request(self.pushed)).expect("a free slot");
            self.pushed += 1;
            self.unpublished += 1;
        } else if self.unpublished > 0 {
            self.unpublished = 0;
            self.event |= self.ring.publish();
        } else if self.awake {
            self.consume();
        } else {
            return false;
        }
        true
    }

    fn consume(&mut self) {
        match self.ring.take() {
            Ok(Some((_, got))) => {
                let want = response::<RSP>(self.answered);
                if got != want {
                    self.wrong = Some(format!("answer {} is {got:x?}, not {want:x?}", self.answered));
                }
                self.answered += 1;
            }
            Ok(None) => match self.ring.arm(1) {
                Ok(more) => self.awake = more,
                Err(fault) => self.wrong = Some(fault.to_string()),
            },
            Err(fault) => self.wrong = Some(fault.to_string()),
        }
    }
}

/// One history to live through.
#[derive(Clone, Debug)]
pub struct History {
    /// Where the ring's indices begin.
    pub start: u32,
    /// Requests in all.
    pub total: u32,
    /// Requests the frontend publishes at once.
    pub batch: u32,
    /// Requests the backend takes before it completes them, last first.
    pub depth: u32,
    /// When the backend dies, in stores.
    pub kills: Vec<u64>,
    /// When the frontend moves by itself, in accesses of the backend.
    pub steps: Vec<u64>,
}

/// What a history came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub stores: u64,
    pub accesses: u64,
    pub executed: u64,
    pub finished: u64,
    pub instances: u64,
}

/// Both ends and what they share.
struct World<const N: usize, const REQ: usize, const RSP: usize> {
    ring: Mortal,
    survivor: Mortal,
    front: Rc<RefCell<Front<N, REQ, RSP>>>,
    executed: RefCell<Vec<u32>>,
    finished: Cell<u64>,
    connected: Cell<bool>,
    depth: u32,
    start: u32,
}

/// Lives through `history`.
pub fn run<const N: usize, const REQ: usize, const RSP: usize>(history: &History) -> Result<Outcome, String> {
    let fate = Rc::new(Fate::default());
    *fate.kills.borrow_mut() = history.kills.clone();
    *fate.steps.borrow_mut() = history.steps.clone();
    let page = Page::new();
    let front = Rc::new(RefCell::new(Front::<N, REQ, RSP> {
        ring: FrontRing::init_at(Plain(page.clone()), history.start),
        batch: history.batch,
        total: history.total,
        pushed: 0,
        unpublished: 0,
        answered: 0,
        awake: false,
        event: false,
        wrong: None,
    }));
    let stepped = front.clone();
    *fate.hook.borrow_mut() = Some(Box::new(move || {
        stepped.borrow_mut().step();
    }));
    let world = World {
        ring: Mortal { page, fate: fate.clone() },
        survivor: Mortal { page: Page::new(), fate: fate.clone() },
        front,
        executed: RefCell::new(vec![0; history.total as usize]),
        finished: Cell::new(0),
        connected: Cell::new(false),
        depth: history.depth,
        start: history.start,
    };
    let mut instances = 0;
    loop {
        instances += 1;
        let first = instances == 1;
        match catch_unwind(AssertUnwindSafe(|| world.live(first))) {
            Ok(result) => {
                result?;
                break;
            }
            Err(cause) if cause.is::<Killed>() => {}
            Err(cause) => resume_unwind(cause),
        }
        if instances > 64 {
            return Err("the backend was started 64 times".into());
        }
    }
    *fate.hook.borrow_mut() = None;
    world.check()?;
    let executed = world.executed.borrow().iter().map(|&n| u64::from(n)).sum();
    Ok(Outcome {
        stores: fate.stores.get(),
        accesses: fate.accesses.get(),
        executed,
        finished: world.finished.get(),
        instances,
    })
}

impl<const N: usize, const REQ: usize, const RSP: usize> World<N, REQ, RSP> {
    /// One life of the backend, from its start to the end of all work.
    fn live(&self, first: bool) -> Result<(), String> {
        self.ring.fate.die_if_due();
        let mut recovery = Recovery::open(self.survivor.clone(), first);
        let mut ring = if !self.connected.get() {
            // The first instance, or one whose forerunners died before any device was connected.
            let ring = BackRing::<_, N, REQ, RSP>::connect(self.ring.clone(), ID).map_err(|e| e.to_string())?;
            self.connected.set(true);
            ring
        } else {
            let attached = BackRing::attach(self.ring.clone(), ID, &mut recovery).map_err(|e| e.to_string())?;
            self.finished.set(self.finished.get() + u64::from(attached.finished));
            attached.ring
        };
        let mut survivor = recovery.finish();
        self.front.borrow_mut().awake = true; // a fresh instance kicks every frontend
        for _ in 0..100_000 {
            self.wrong()?;
            let mut taken = Vec::new();
            while taken.len() < self.depth as usize {
                let Some((index, words)) = ring.take().map_err(|e| e.to_string())? else { break };
                let n = index.wrapping_sub(self.start);
                if words != request::<REQ>(n) {
                    return Err(format!("slot of request {n} was read as {words:x?}"));
                }
                self.executed.borrow_mut()[n as usize] += 1;
                taken.push((index, n));
            }
            for (index, n) in taken.into_iter().rev() {
                ring.complete(index, response(n)).map_err(|e| e.to_string())?;
            }
            let published = ring.publish(&mut survivor);
            self.front.borrow_mut().awake |= published.notify;
            if published.count == 0 && !ring.arm(1).map_err(|e| e.to_string())? && !self.sleep()? {
                return Ok(());
            }
        }
        Err("no end of work".into())
    }

    fn wrong(&self) -> Result<(), String> {
        self.front.borrow_mut().wrong.take().map_or(Ok(()), Err)
    }

    /// The backend blocks until its port is pending. False if all work is done; an error if it would sleep for ever.
    fn sleep(&self) -> Result<bool, String> {
        loop {
            self.wrong()?;
            let mut front = self.front.borrow_mut();
            if std::mem::take(&mut front.event) {
                return Ok(true);
            }
            if !front.step() {
                if front.answered == front.total {
                    return Ok(false);
                }
                return Err(format!("both ends sleep with {} of {} answered", front.answered, front.total));
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        self.wrong()?;
        let front = self.front.borrow();
        if front.ring.in_flight() != 0 {
            return Err("requests were left".into());
        }
        match self.executed.borrow().iter().position(|&n| n == 0) {
            Some(n) => Err(format!("request {n} was answered and never done")),
            None => Ok(()),
        }
    }
}
