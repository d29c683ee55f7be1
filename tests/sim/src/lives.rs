//! The lives of the driver domain: it starts, has its turns, sleeps, dies at a point that its scenario names, and starts again.

use crate::platform::Page;
use crate::store::Connection;
use crate::world::{BACKEND, Killed, World};
use backend::Turn;
use hv_core::Mfn;
use hv_core::frames::Owner;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

/// A driver domain with the backend `B`.
pub(crate) struct Lives<B> {
    world: Rc<World>,
    survivor: Mfn,
    damage_survivor: bool,
    deaths: Vec<u64>,
    /// The life it has.
    pub served: Option<B>,
    /// It blocks, until this time.
    pub asleep: Option<Option<u64>>,
    /// Lives so far.
    pub count: u64,
}

impl<B> Lives<B> {
    /// A domain that dies so many points after the beginning of each life and then no more; each death may leave garbage in its
    /// survivor page.
    pub fn new(world: &Rc<World>, deaths: &[u64], damage_survivor: bool) -> Self {
        let survivor = world.allocate(BACKEND, 1)[0];
        world.write(survivor.0 * 4096, &[0; 4096]);
        let deaths = deaths.iter().rev().copied().collect();
        Self { world: world.clone(), survivor, damage_survivor, deaths, served: None, asleep: None, count: 0 }
    }

    /// From here on it may die.
    pub fn light_fuse(&mut self) {
        self.world.set_fuse(self.deaths.pop());
    }

    /// One turn, or a life's start and first turn, unless it sleeps and nothing wakes it; true if it did something, `None` if it died.
    pub fn turn<E: Display>(
        &mut self,
        interrupting: bool,
        start: impl FnOnce(Page, &mut Connection) -> B,
        turn: impl FnOnce(&mut B, Vec<String>, &mut Connection) -> Turn<E>,
    ) -> Option<bool> {
        if let Some(until) = self.asleep {
            let woken = self.world.take_events(BACKEND)
                || interrupting
                || !self.world.store.borrow().changed.is_empty()
                || until.is_some_and(|until| until <= self.world.now_us.get());
            if !woken {
                return Some(false);
            }
            self.asleep = None;
        }
        let life = catch_unwind(AssertUnwindSafe(|| {
            let mut store = Connection(self.world.clone());
            let served = match &mut self.served {
                Some(served) => served,
                none => {
                    self.count += 1;
                    none.insert(start(Page::own(&self.world, self.survivor), &mut store))
                }
            };
            let changed = std::mem::take(&mut self.world.store.borrow_mut().changed);
            turn(served, changed, &mut store)
        }));
        match life {
            Ok(Turn::Again) => {}
            Ok(Turn::Wait { until_us }) => self.asleep = Some(until_us),
            Ok(Turn::Dead(error)) => self.world.fail(format!("the device is dead: {error}")),
            Err(cause) if cause.is::<Killed>() => return None,
            Err(cause) => resume_unwind(cause),
        }
        Some(true)
    }

    /// It died, and its device is quiet: take back all that it had, and let it start again.
    pub fn bury(&mut self) {
        self.world.take_back(BACKEND);
        self.served = None;
        self.asleep = None;
        self.world.store.borrow_mut().forget_watches();
        if self.damage_survivor {
            // The journal's part alone, or all of it.
            let len = if self.world.chance.borrow_mut().one_in(2) { 64 } else { 4096 };
            self.world.write(self.survivor.0 * 4096, &[0x5C; 4096][..len]);
        }
        self.light_fuse();
    }

    /// Nothing of the dead may stay behind: with the backend gone, no frame is pinned.
    pub fn look_for_remains(&self) {
        let hv = self.world.hv.borrow();
        for mfn in (0..2048).map(Mfn) {
            if hv.frames.pins(mfn) > 0 || hv.frames.owner(mfn) == Some(Owner::Orphan) {
                self.world.fail(format!("frame {mfn:?} is still pinned"));
            }
        }
    }
}
