//! The machine: memory by machine frame, the hypervisor's tables, time, chance, and the driver domain's fate.
//!
//! Guest frames are machine frames (an identity map), so that a leak shows as the wrong domain's bytes and not as a fault
//! of the simulation. Event channels, grants and frame ownership are `hv-core`'s.

use abi::evtchn::status::INTERDOMAIN;
use abi::grant::{
    GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_WRITING, GrantCopy,
    status,
};
use abi::{DomId, EvtchnPort, GrantRef, PAGE_SIZE};
use hv_core::evtchn::EvtchnTable;
use hv_core::frames::{Frame, FrameTable, Owner};
use hv_core::grants::{Access, EntryTable, GrantError, Grants, Place, Want};
use hv_core::{Gfn, Mfn};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Frames of the machine.
const FRAMES: u64 = 2048;
/// Grant entries of a domain.
const ENTRIES: usize = 512;
/// The driver domain.
pub const BACKEND: DomId = DomId(2);

/// Thrown when the driver domain's time has come.
pub struct Killed;

/// A domain's grant table, as that domain writes it.
#[derive(Default)]
pub struct Table(RefCell<Vec<[u32; 2]>>);

impl EntryTable for Table {
    fn header(&self, gref: GrantRef) -> Option<u32> {
        self.0.borrow().get(gref.0 as usize).map(|entry| entry[0])
    }
    fn frame(&self, gref: GrantRef) -> Option<u32> {
        self.0.borrow().get(gref.0 as usize).map(|entry| entry[1])
    }
    fn exchange(&self, gref: GrantRef, current: u32, new: u32) -> bool {
        match self.0.borrow_mut().get_mut(gref.0 as usize) {
            Some(entry) if entry[0] == current => {
                entry[0] = new;
                true
            }
            _ => false,
        }
    }
    fn clear(&self, gref: GrantRef, bits: u32) {
        if let Some(entry) = self.0.borrow_mut().get_mut(gref.0 as usize) {
            entry[0] &= !bits;
        }
    }
}

/// Ports a domain may have.
const MAX_PORTS: u32 = 64;

/// What the hypervisor keeps.
pub struct Hypervisor {
    pub frames: FrameTable<'static>,
    pub evtchn: EvtchnTable,
    pub grants: Grants,
    pub tables: BTreeMap<DomId, Rc<Table>>,
    pub pending: BTreeSet<(DomId, EvtchnPort)>,
}

impl Hypervisor {
    /// A port of `dom` whose other end does not name it.
    pub fn one_sided(&self, dom: DomId) -> Option<EvtchnPort> {
        let other = |dom, port| {
            let status = self.evtchn.status(dom, port).ok().filter(|s| s.status == INTERDOMAIN)?;
            Some((DomId(status.u0 as u16), EvtchnPort(status.u1)))
        };
        let ports = (0..=MAX_PORTS).map(EvtchnPort);
        ports.into_iter().find(|&port| other(dom, port).is_some_and(|(d, p)| other(d, p) != Some((dom, port))))
    }
}

/// A small generator; the same seed gives the same history.
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub fn draw(&mut self) -> u32 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }
    pub fn below(&mut self, n: u32) -> u32 {
        self.draw() % n.max(1)
    }
    pub fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
}

/// See the module's head.
pub struct World {
    memory: RefCell<Vec<u8>>,
    pub hv: RefCell<Hypervisor>,
    pub store: RefCell<crate::store::Tree>,
    pub now_us: Cell<u64>,
    pub chance: RefCell<Chance>,
    /// Points at which the driver domain can die, passed so far.
    pub points: Cell<u64>,
    /// The next one at which it does.
    fuse: Cell<Option<u64>>,
    /// Which life of the driver domain this is.
    pub generation: Cell<u32>,
    /// Called before accesses of the driver domain to shared memory, one in so many.
    hook: RefCell<Option<Box<dyn FnMut()>>>,
    hook_one_in: Cell<u32>,
    /// One in so many events is lost; 0 = none.
    pub lose_events: Cell<u32>,
    /// Numbers of guests whose frames may hold anything.
    pub hostile: RefCell<BTreeSet<u8>>,
    /// Frames mapped for the device, by handle, and whether only to be read.
    reach: RefCell<BTreeMap<u32, (Mfn, bool)>>,
    /// What went wrong, first things first.
    pub failures: RefCell<Vec<String>>,
}

impl World {
    pub fn new(seed: u64) -> Rc<Self> {
        let mut frames = FrameTable::new(Box::leak(vec![Frame::RESERVED; FRAMES as usize].into_boxed_slice()));
        frames.add_ram(Mfn(0), FRAMES);
        let hv = Hypervisor {
            frames,
            evtchn: EvtchnTable::default(),
            grants: Grants::new(),
            tables: BTreeMap::new(),
            pending: BTreeSet::new(),
        };
        let world = Rc::new(Self {
            memory: RefCell::new(vec![0; FRAMES as usize * PAGE_SIZE]),
            hv: RefCell::new(hv),
            store: RefCell::default(),
            now_us: Cell::new(1000),
            chance: RefCell::new(Chance::new(seed)),
            points: Cell::new(0),
            fuse: Cell::new(None),
            generation: Cell::new(0),
            hook: RefCell::new(None),
            hook_one_in: Cell::new(0),
            lose_events: Cell::new(0),
            hostile: RefCell::default(),
            reach: RefCell::default(),
            failures: RefCell::default(),
        });
        world.add_domain(BACKEND);
        world
    }

    pub fn fail(&self, why: String) {
        self.failures.borrow_mut().push(why);
    }

    pub fn add_domain(&self, dom: DomId) {
        let mut hv = self.hv.borrow_mut();
        hv.evtchn.add_domain(dom, 1, MAX_PORTS);
        hv.grants.add_domain(dom, 1024);
        hv.tables.insert(dom, Rc::new(Table(RefCell::new(vec![[0; 2]; ENTRIES]))));
    }

    /// A domain ends: its grants, ports and frames are no longer its own.
    pub fn remove_domain(&self, dom: DomId, frames: &[Mfn]) {
        let mut hv = self.hv.borrow_mut();
        hv.evtchn.close_all(dom);
        // Its number may be given again: the next of that number begins with fresh tables.
        hv.grants.forget_grantor(dom);
        hv.tables.remove(&dom);
        hv.pending.retain(|(of, _)| *of != dom);
        for &mfn in frames {
            let _still_pinned = hv.frames.release(mfn, Owner::Domain(dom)).expect("its own frame");
        }
    }

    /// Frames for a domain, filled with its mark.
    pub fn allocate(&self, dom: DomId, count: u64) -> Vec<Mfn> {
        let mut hv = self.hv.borrow_mut();
        let frames: Vec<Mfn> =
            (0..count).map(|_| hv.frames.allocate(Owner::Domain(dom), Mfn(FRAMES)).expect("memory")).collect();
        for &mfn in &frames {
            self.memory.borrow_mut()[mfn.0 as usize * PAGE_SIZE..][..PAGE_SIZE].fill(dom.0 as u8);
        }
        frames
    }

    /// Frames in a row for a domain.
    pub fn allocate_area(&self, dom: DomId, order: u32) -> Mfn {
        let mut hv = self.hv.borrow_mut();
        hv.frames.allocate_contiguous(Owner::Domain(dom), order, Mfn(FRAMES)).expect("memory")
    }

    pub fn owner(&self, addr: u64) -> Option<DomId> {
        match self.hv.borrow().frames.owner(Mfn::containing(addr)) {
            Some(Owner::Domain(dom)) => Some(dom),
            _ => None,
        }
    }

    /// Did a guest that may write anything send this frame?
    pub fn from_hostile(&self, frame: &[u8]) -> bool {
        frame.get(11).is_none_or(|sender| self.hostile.borrow().contains(sender))
    }

    // Memory.

    pub fn read(&self, addr: u64, out: &mut [u8]) {
        out.copy_from_slice(&self.memory.borrow()[addr as usize..][..out.len()]);
    }
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.borrow_mut()[addr as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    pub fn read32(&self, addr: u64) -> u32 {
        let mut word = [0; 4];
        self.read(addr, &mut word);
        u32::from_le_bytes(word)
    }
    pub fn write32(&self, addr: u64, value: u32) {
        self.write(addr, &value.to_le_bytes());
    }

    // Fate.

    /// From now on, the driver domain dies at the `after`-th point.
    pub fn set_fuse(&self, after: Option<u64>) {
        self.fuse.set(after.map(|after| self.points.get() + after));
    }

    /// The driver domain passes a point at which it can die.
    pub fn point(&self) {
        if std::thread::panicking() {
            return; // its remains are being cleared away
        }
        let now = self.points.get() + 1;
        self.points.set(now);
        if self.fuse.get().is_some_and(|at| at <= now) {
            self.fuse.set(None);
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    /// Lets `hook` run before one in `n` accesses of the driver domain to shared memory.
    pub fn interleave(&self, n: u32, hook: Option<Box<dyn FnMut()>>) {
        self.hook_one_in.set(n);
        *self.hook.borrow_mut() = hook;
    }

    /// The driver domain is about to access shared memory.
    pub fn access(&self) {
        let n = self.hook_one_in.get();
        if n > 0 && self.chance.borrow_mut().one_in(n) {
            // Not while the hook runs: what it does is the peers'.
            if let Ok(mut hook) = self.hook.try_borrow_mut()
                && let Some(hook) = hook.as_mut()
            {
                hook();
            }
        }
    }

    // Hypercalls.

    pub fn send(&self, dom: DomId, port: EvtchnPort) {
        let one_in = self.lose_events.get();
        if one_in > 0 && self.chance.borrow_mut().one_in(one_in) {
            return;
        }
        let mut hv = self.hv.borrow_mut();
        if let Ok(Some(notify)) = hv.evtchn.send(dom, port) {
            hv.pending.insert((notify.dom, notify.port));
        }
    }

    /// Takes a port's pending bit.
    pub fn take_event(&self, dom: DomId, port: EvtchnPort) -> bool {
        self.hv.borrow_mut().pending.remove(&(dom, port))
    }

    /// Takes all pending bits of a domain; true if there was one.
    pub fn take_events(&self, dom: DomId) -> bool {
        let mut hv = self.hv.borrow_mut();
        let before = hv.pending.len();
        hv.pending.retain(|(of, _)| *of != dom);
        hv.pending.len() != before
    }

    pub fn grant(&self, dom: DomId, gref: GrantRef, mfn: Mfn, readonly: bool) {
        let flags = GTF_PERMIT_ACCESS | if readonly { GTF_READONLY } else { 0 };
        let header = u32::from(flags) | u32::from(BACKEND.0) << 16;
        let table = self.hv.borrow().tables[&dom].clone();
        table.0.borrow_mut()[gref.0 as usize] = [header, mfn.0 as u32];
    }

    /// As [`grant`](Self::grant), unless the entry is there already.
    pub fn grant_unless_there(&self, dom: DomId, gref: GrantRef, mfn: Mfn, readonly: bool) {
        let table = self.hv.borrow().tables[&dom].clone();
        if table.header(gref) == Some(0) {
            self.grant(dom, gref, mfn, readonly);
        }
    }

    /// Ends a grant; false if the entry is in use (and stays).
    pub fn revoke(&self, dom: DomId, gref: GrantRef) -> bool {
        let table = self.hv.borrow().tables[&dom].clone();
        let mut entries = table.0.borrow_mut();
        let entry = &mut entries[gref.0 as usize];
        if entry[0] as u16 & (GTF_READING | GTF_WRITING) != 0 {
            return false;
        }
        *entry = [0; 2];
        true
    }

    /// Ends a grant in use or not, as only a hostile domain does.
    pub fn tear(&self, dom: DomId, gref: GrantRef) {
        let table = self.hv.borrow().tables[&dom].clone();
        table.0.borrow_mut()[gref.0 as usize] = [0; 2];
    }

    fn acquire(&self, user: DomId, grantor: DomId, gref: GrantRef, readonly: bool) -> Result<Access, GrantError> {
        let mut guard = self.hv.borrow_mut();
        let hv = &mut *guard;
        let table = hv.tables.get(&grantor).cloned().ok_or(GrantError::BadRef(gref))?;
        let want = Want { user, grantor, gref, readonly };
        hv.grants.acquire(want, &*table, &mut hv.frames, |gfn| (gfn.0 < FRAMES).then_some(Mfn(gfn.0)))
    }

    fn release(&self, access: Access) {
        let mut guard = self.hv.borrow_mut();
        let hv = &mut *guard;
        let table = hv.tables.get(&access.grantor()).cloned();
        hv.grants.release(access, table.as_deref(), &mut hv.frames);
    }

    /// Maps a granted frame; the frame and its handle.
    pub fn map(&self, user: DomId, grantor: DomId, gref: GrantRef) -> Result<(Mfn, u32), GrantError> {
        self.map_for(user, grantor, gref, false, false)
    }

    /// Maps a granted frame, perhaps only to read it, perhaps for the device as well.
    pub fn map_for(
        &self,
        user: DomId,
        grantor: DomId,
        gref: GrantRef,
        readonly: bool,
        device: bool,
    ) -> Result<(Mfn, u32), GrantError> {
        let access = self.acquire(user, grantor, gref, readonly)?;
        let mfn = access.mfn();
        let place = Place { gfn: Gfn(mfn.0), host: true, device };
        let held = self.hv.borrow_mut().grants.hold(place, access);
        match held {
            Ok(handle) => {
                if device {
                    self.reach.borrow_mut().insert(handle, (mfn, readonly));
                }
                Ok((mfn, handle))
            }
            Err(access) => {
                self.release(access);
                Err(GrantError::NoHandle)
            }
        }
    }

    /// Does the IOMMU let the device read, or write, that frame? Its own domain's memory it does.
    pub fn device_reaches(&self, mfn: Mfn, write: bool) -> bool {
        let own = self.owner(mfn.0 * PAGE_SIZE as u64) == Some(BACKEND);
        own || self.reach.borrow().values().any(|&(reached, readonly)| reached == mfn && !(write && readonly))
    }

    pub fn unmap(&self, user: DomId, handle: u32, mfn: Mfn) {
        self.reach.borrow_mut().remove(&handle);
        let mapping = self.hv.borrow_mut().grants.unmap(user, handle, Gfn(mfn.0));
        if let Ok(mapping) = mapping {
            self.release(mapping.access);
        }
    }

    /// One operation of `GNTTABOP_copy`.
    pub fn copy(&self, user: DomId, op: &mut GrantCopy) {
        op.status = self.try_copy(user, op).err().unwrap_or(status::OKAY);
    }

    fn try_copy(&self, user: DomId, op: &GrantCopy) -> Result<(), i16> {
        let len = usize::from(op.len);
        for side in [&op.source, &op.dest] {
            if usize::from(side.offset) + len > PAGE_SIZE {
                return Err(status::BAD_COPY_ARG);
            }
        }
        let mut held = Vec::new();
        let mut side = |ptr: &abi::grant::CopyPtr, granted: bool, readonly: bool| -> Result<u64, i16> {
            let mfn = if granted {
                let gref = GrantRef(u32::try_from(ptr.u).map_err(|_| status::BAD_GNTREF)?);
                let access = self.acquire(user, ptr.domid, gref, readonly).map_err(GrantError::status)?;
                let mfn = access.mfn();
                held.push(access);
                mfn
            } else if ptr.domid == DomId::SELF && self.owner(ptr.u * PAGE_SIZE as u64) == Some(user) {
                Mfn(ptr.u)
            } else {
                return Err(status::BAD_PAGE);
            };
            Ok(mfn.0 * PAGE_SIZE as u64 + u64::from(ptr.offset))
        };
        let from = side(&op.source, op.flags & GNTCOPY_SOURCE_GREF != 0, true);
        let to = from.and_then(|from| Ok((from, side(&op.dest, op.flags & GNTCOPY_DEST_GREF != 0, false)?)));
        let done = to.map(|(from, to)| {
            let mut bytes = vec![0; len];
            self.read(from, &mut bytes);
            self.write(to, &bytes);
        });
        held.into_iter().for_each(|access| self.release(access));
        done
    }

    /// The driver domain is dead: what the hypervisor takes from it before it starts again.
    pub fn take_back(&self, dom: DomId) {
        self.generation.set(self.generation.get() + 1);
        self.reach.borrow_mut().clear();
        let mappings = self.hv.borrow_mut().grants.take_back_all(dom);
        for mapping in mappings {
            self.release(mapping.access);
        }
        let mut hv = self.hv.borrow_mut();
        hv.evtchn.close_all(dom);
        hv.pending.retain(|(of, _)| *of != dom);
    }
}
