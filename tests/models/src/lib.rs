//! The ring under the C11 memory model: both ends in two threads over `loom` atomics, every interleaving and every value
//! a relaxed load may return (up to the preemption bound named at each model).
//!
//! What is modelled: the words of the ring page as atomics, event channels as latched wake-ups, a backend that is stopped
//! after any of its stores and started again. An end that sleeps for ever is a deadlock, which loom reports. The survivor
//! page is only touched by one CPU at a time and is plain memory here. The list of mutations that only a memory model
//! can show is in `tests/mutations.rs`; `libxenrt/ring` has the others.

#![forbid(unsafe_code)]

use abi::{DomId, GrantRef, PAGE_SIZE};
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use ring::{BackRing, FrontRing, Recovery, RingId, RingKind, SharedMem};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// Slots of the modelled ring.
const N: usize = 2;
/// Words of its page that are used: indices, padding, `N` slots of one word.
const WORDS: usize = abi::io::ring::SLOTS / 4 + N;

type Back<'a> = BackRing<Stoppable<'a>, N, 1, 1>;
type Front = FrontRing<Shared, N, 1, 1>;

/// The ring page.
#[derive(Clone)]
struct Shared(Arc<[AtomicU32; WORDS]>);

impl SharedMem for Shared {
    fn read(&self, offset: usize) -> u32 {
        self.0[offset / 4].load(Ordering::Relaxed)
    }
    fn write(&self, offset: usize, value: u32) {
        self.0[offset / 4].store(value, Ordering::Relaxed);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.0[offset / 4].load(Ordering::Acquire)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.0[offset / 4].store(value, Ordering::Release);
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// Stores that a backend has left to live for; afterwards its stores have no effect.
#[derive(Clone)]
struct Life(Rc<Cell<u32>>);

impl Life {
    fn stores(n: u32) -> Self {
        Self(Rc::new(Cell::new(n)))
    }
    fn spend(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
    fn is_over(&self) -> bool {
        self.0.get() == 0
    }
}

/// The ring page as one instance of the backend sees it.
#[derive(Clone)]
struct Stoppable<'a> {
    shared: &'a Shared,
    life: Life,
}

impl SharedMem for Stoppable<'_> {
    fn read(&self, offset: usize) -> u32 {
        self.shared.read(offset)
    }
    fn write(&self, offset: usize, value: u32) {
        if self.life.spend() {
            self.shared.write(offset, value);
        }
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.shared.load_acquire(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        if self.life.spend() {
            self.shared.store_release(offset, value);
        }
    }
    fn fence(&self) {
        self.shared.fence();
    }
}

/// The survivor page as one instance sees it.
struct Page {
    words: Rc<RefCell<Vec<u32>>>,
    life: Life,
}

impl SharedMem for Page {
    fn read(&self, offset: usize) -> u32 {
        self.words.borrow()[offset / 4]
    }
    fn write(&self, offset: usize, value: u32) {
        if self.life.spend() {
            self.words.borrow_mut()[offset / 4] = value;
        }
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }
    fn fence(&self) {}
}

/// What a model is to go through.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Requests in all.
    pub requests: u32,
    /// Requests the frontend publishes at once.
    pub batch: u32,
    /// The first backend stops after so many stores; `None` = it lives to the end.
    pub stop_after: Option<u32>,
    /// The frontend sleeps for its answers; else it looks until they are there at the end.
    pub frontend_sleeps: bool,
}

const ID: RingId = RingId { frontend: DomId(1), device: 0, kind: RingKind::NetTx, queue: 0, gref: GrantRef(8) };
/// Near the wrap.
const START: u32 = u32::MAX - 1;

fn request(n: u32) -> u32 {
    0x1000 + n
}
fn answer(n: u32) -> u32 {
    0x2000 + n
}

/// Explores the model; panics where it does not hold. Returns how many executions there were.
pub fn explore(model: Model, preemptions: Option<usize>) -> u64 {
    let executions = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = executions.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        execute(model);
    });
    executions.load(std::sync::atomic::Ordering::Relaxed)
}

/// One execution: the frontend in its own thread, the backend in this one.
fn execute(model: Model) {
    let shared = Shared(Arc::new(std::array::from_fn(|_| AtomicU32::new(0))));
    let (to_back, to_front) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let front = Front::init_at(shared.clone(), START);
    let frontend = loom::thread::spawn({
        let (to_back, to_front) = (to_back.clone(), to_front.clone());
        move || run_front(front, model, &to_back, &to_front)
    });
    let survivor = Rc::new(RefCell::new(vec![0; PAGE_SIZE / 4]));
    // The page was opened long ago; the stores counted are those of the service.
    drop(Recovery::open(Page { words: survivor.clone(), life: Life::stores(9) }, true));
    let back = Backend { shared, survivor, model, to_back, to_front };
    if let Some(stores) = model.stop_after {
        let life = Life::stores(stores);
        back.live(&life, false);
        if life.is_over() {
            back.live(&Life::stores(u32::MAX), true);
        }
    } else {
        back.live(&Life::stores(u32::MAX), false);
    }
    frontend.join().unwrap();
}

/// What all instances of the backend share.
struct Backend {
    shared: Shared,
    survivor: Rc<RefCell<Vec<u32>>>,
    model: Model,
    to_back: Arc<Notify>,
    to_front: Arc<Notify>,
}

impl Backend {
    /// One instance, until all is answered or its life is over. `kick`: it follows a dead one.
    fn live(&self, life: &Life, kick: bool) {
        let mut recovery = Recovery::open(Page { words: self.survivor.clone(), life: life.clone() }, false);
        let mem = Stoppable { shared: &self.shared, life: life.clone() };
        let mut ring = Back::attach(mem, ID, &mut recovery).expect("the journal fits the ring").ring;
        let mut survivor = recovery.finish();
        if kick {
            self.to_front.notify();
        }
        let end = START.wrapping_add(self.model.requests);
        while !life.is_over() {
            while let Some((index, [word])) = ring.take().expect("an honest frontend") {
                let n = index.wrapping_sub(START);
                assert_eq!(word, request(n), "a slot was read before it was written, or after it was answered");
                ring.complete(index, [answer(n)]).expect("taken above");
            }
            let published = ring.publish(&mut survivor);
            if life.is_over() {
                return;
            }
            if published.notify {
                self.to_front.notify();
            }
            // Only backends write it: this one, or the one before.
            if self.shared.read(abi::io::ring::RSP_PROD) == end {
                return;
            }
            if !ring.arm(1).expect("an honest frontend") && !life.is_over() {
                self.to_back.wait();
            }
        }
    }
}

fn run_front(mut ring: Front, model: Model, to_back: &Notify, to_front: &Notify) {
    let (mut pushed, mut answered) = (0, 0);
    while answered < model.requests {
        let batch = model.batch.min(model.requests - pushed).min(ring.free());
        for n in pushed..pushed + batch {
            ring.push([request(n)]).expect("a free slot");
        }
        pushed += batch;
        if ring.publish() {
            to_back.notify();
        }
        while let Some((_, [word])) = ring.take().expect("an honest backend") {
            assert_eq!(word, answer(answered), "an answer was seen before it was written");
            answered += 1;
        }
        let more_to_push = pushed < model.requests && ring.free() > 0;
        if answered == model.requests || more_to_push {
            continue;
        }
        if !model.frontend_sleeps && pushed == model.requests {
            return;
        }
        if !ring.arm(1).expect("an honest backend") {
            to_front.wait();
        }
    }
}
