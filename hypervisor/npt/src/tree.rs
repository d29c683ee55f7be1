//! The walker: map, unmap, translate over any [`Format`].
//!
//! A change is made in two steps. The first creates every table the change needs and splits large pages that it covers in
//! part, which alters no translation; it alone can run out of memory, and then takes back the tables it made. The second
//! writes the leaves and cannot fail. So a change happens wholly or not at all.
//!
//! A table that became empty is unlinked but kept on a private list until [`Tree::reclaim`]: the hardware may still hold its
//! address in a walk cache, and the frame must not be used for anything else before the caller has flushed.

use crate::{ENTRIES, Entry, Format, Frame, LARGE_PAGES, Rights};
use core::marker::PhantomData;
use hv_core::Mfn;

/// Memory that holds tables. `index` is always below [`ENTRIES`]; accesses are single aligned 64-bit loads and stores, since
/// hardware walks the same memory.
pub trait FrameStore {
    /// A frame for a table, or `None` when there is no memory. Its content is overwritten before it is used.
    fn alloc(&mut self) -> Option<Mfn>;
    /// Gives back a frame of [`FrameStore::alloc`].
    fn free(&mut self, table: Mfn);
    /// Reads an entry.
    fn read(&self, table: Mfn, index: usize) -> u64;
    /// Writes an entry.
    fn write(&mut self, table: Mfn, index: usize, entry: u64);
}

/// Why a change was refused. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame for a table.
    NoMemory,
    /// The range leaves the address space of the tree, or that of the machine, or is empty.
    Range {
        /// First frame, as asked.
        first: u64,
        /// Pages, as asked.
        pages: u64,
    },
}

/// What a change asks for before it can be relied upon, and before [`Tree::reclaim`].
#[must_use = "the hardware may still use the old translation"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// Something that was there has been taken away or altered: translation caches must be flushed. False: only empty entries were
    /// filled, which nothing but an IOMMU that caches absent entries (`NpCache`) can have kept.
    pub replaced: bool,
}

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where the frame is.
    pub mfn: Mfn,
    /// What may be done with it.
    pub rights: Rights,
    /// Frames from here to the end of the leaf, this one included: they follow one another in the machine too.
    pub run: u64,
}

/// A page table of format `F`, whose tables lie in `S`.
#[derive(Debug)]
pub struct Tree<F, S> {
    store: S,
    root: Mfn,
    tables: u64,
    retired: Option<Mfn>,
    format: PhantomData<F>,
}

/// A range of frames, `first..end`.
#[derive(Clone, Copy)]
struct Range {
    first: u64,
    end: u64,
}

/// Pages an entry of a table at `level` spans.
const fn span(level: u32) -> u64 {
    1 << (level.saturating_sub(1).saturating_mul(9))
}

const fn index(frame: u64, level: u32) -> usize {
    (frame >> level.saturating_sub(1).saturating_mul(9)) as usize % ENTRIES
}

/// Machine frame numbers have 40 bits (52-bit addresses).
const MACHINE_FRAMES: u64 = 1 << 40;

impl Range {
    /// The part of the range inside the entry of `level` that holds `at`.
    fn inside(self, at: u64, level: u32) -> Self {
        let base = at & !span(level).saturating_sub(1);
        Self { first: self.first.max(base), end: self.end.min(base.saturating_add(span(level))) }
    }
    const fn covers(self, level: u32) -> bool {
        self.end.saturating_sub(self.first) == span(level)
    }
    /// The parts of the range, one per entry of a table at `level`.
    fn parts(self, level: u32) -> impl Iterator<Item = Self> {
        let mut at = self.first;
        core::iter::from_fn(move || {
            let part = (at < self.end).then(|| Self { first: at, ..self }.inside(at, level))?;
            at = part.end;
            Some(part)
        })
    }
}

impl<F: Format, S: FrameStore> Tree<F, S> {
    /// An empty tree; `None` without a frame for its root.
    pub fn new(store: S) -> Option<Self> {
        let mut tree = Self { store, root: Mfn(0), tables: 0, retired: None, format: PhantomData };
        tree.root = tree.table(|_| F::EMPTY)?;
        Some(tree)
    }
    /// The root table, for nCR3 or a device table entry.
    pub const fn root(&self) -> Mfn {
        self.root
    }
    /// Frames the tree holds.
    pub const fn tables(&self) -> u64 {
        self.tables
    }

    /// Maps `pages` frames from `at` to those from `to`, replacing what was there, with large pages where both sides and the
    /// tables already there allow it.
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed then.
    pub fn map(&mut self, at: F::From, to: Mfn, pages: u64, rights: Rights) -> Result<Flush, MapError> {
        let range = Self::range(at, pages)?;
        if to.0.checked_add(pages).is_none_or(|end| end > MACHINE_FRAMES) {
            return Err(MapError::Range { first: to.0, pages });
        }
        let delta = to.0.wrapping_sub(range.first);
        if !self.prepare(self.root, F::LEVELS, range, Some(delta)) {
            // Only the tables just made are empty. No hardware has translated by them: nothing to flush before they go.
            let unflushed = self.retired.take();
            let _ = self.prune(self.root, F::LEVELS, range);
            self.reclaim();
            self.retired = unflushed;
            return Err(MapError::NoMemory);
        }
        let mut flush = Flush { replaced: false };
        self.fill(self.root, F::LEVELS, range, delta, rights, &mut flush);
        Ok(flush)
    }

    /// Takes `pages` frames from `at` away; what is not mapped is passed over.
    ///
    /// # Errors
    /// [`MapError::NoMemory`] only where a large page has to be split; nothing has changed then.
    pub fn unmap(&mut self, at: F::From, pages: u64) -> Result<Flush, MapError> {
        let range = Self::range(at, pages)?;
        if !self.prepare(self.root, F::LEVELS, range, None) {
            return Err(MapError::NoMemory);
        }
        let mut flush = Flush { replaced: false };
        self.clear(self.root, F::LEVELS, range, &mut flush);
        let _ = self.prune(self.root, F::LEVELS, range);
        Ok(flush)
    }

    /// Where a frame is mapped.
    pub fn translate(&self, at: F::From) -> Option<Leaf> {
        let at = at.number();
        if at >= span(F::LEVELS).saturating_mul(ENTRIES as u64) {
            return None;
        }
        let mut table = self.root;
        for level in (1..=F::LEVELS).rev() {
            match self.entry(table, index(at, level), level) {
                Entry::Empty => return None,
                Entry::Table(next) => table = next,
                Entry::Leaf(first, rights) => {
                    let inside = at & span(level).saturating_sub(1);
                    let run = span(level).saturating_sub(inside);
                    return Some(Leaf { mfn: Mfn(first.0 | inside), rights, run });
                }
            }
        }
        None
    }

    /// Calls `f` with each mapped place: its first frame, and the whole leaf there. In ascending order.
    pub fn each_leaf(&self, f: &mut impl FnMut(u64, Leaf)) {
        self.each_below(self.root, F::LEVELS, 0, f);
    }

    fn each_below(&self, table: Mfn, level: u32, base: u64, f: &mut impl FnMut(u64, Leaf)) {
        for (i, at) in (0..ENTRIES).zip((base..).step_by(span(level) as usize)) {
            match self.entry(table, i, level) {
                Entry::Empty => {}
                Entry::Table(next) => self.each_below(next, level.saturating_sub(1), at, f),
                Entry::Leaf(mfn, rights) => f(at, Leaf { mfn, rights, run: span(level) }),
            }
        }
    }

    /// Frees the tables that earlier changes emptied. The caller has flushed those changes, walk caches included.
    pub fn reclaim(&mut self) {
        while let Some(table) = self.retired {
            self.retired = match self.store.read(table, 0) >> 12 {
                0 => None,
                next => Some(Mfn(next)),
            };
            self.store.free(table);
            self.tables = self.tables.saturating_sub(1);
        }
    }

    /// Frees every table. The hardware no longer uses the tree.
    pub fn destroy(mut self) {
        self.reclaim();
        self.free_below(self.root, F::LEVELS);
    }

    fn free_below(&mut self, table: Mfn, level: u32) {
        for i in 0..ENTRIES {
            if let Entry::Table(next) = self.entry(table, i, level) {
                self.free_below(next, level.saturating_sub(1));
            }
        }
        self.store.free(table);
    }

    fn range(at: F::From, pages: u64) -> Result<Range, MapError> {
        let first = at.number();
        let limit = span(F::LEVELS).saturating_mul(ENTRIES as u64);
        match first.checked_add(pages) {
            Some(end) if pages > 0 && end <= limit => Ok(Range { first, end }),
            _ => Err(MapError::Range { first, pages }),
        }
    }

    fn entry(&self, table: Mfn, index: usize, level: u32) -> Entry {
        F::decode(self.store.read(table, index), level)
    }

    /// A new table, filled before anything points to it.
    fn table(&mut self, entry: impl Fn(u64) -> u64) -> Option<Mfn> {
        let table = self.store.alloc()?;
        for (i, n) in (0..ENTRIES).zip(0..) {
            self.store.write(table, i, entry(n));
        }
        self.tables = self.tables.saturating_add(1);
        Some(table)
    }

    /// Makes every entry of the range reachable that a change needs to write: to map (`delta`: machine minus device frame), or
    /// to unmap (`None`). False: out of memory.
    fn prepare(&mut self, table: Mfn, level: u32, range: Range, delta: Option<u64>) -> bool {
        let below = level.saturating_sub(1);
        if below == 0 {
            return true;
        }
        for part in range.parts(level) {
            let i = index(part.first, level);
            let next = match self.entry(table, i, level) {
                Entry::Table(next) => next,
                Entry::Empty if delta.is_none() || delta.is_some_and(|d| large(part, level, d)) => continue,
                Entry::Leaf(..) if part.covers(level) && delta.is_none_or(|d| large(part, level, d)) => continue,
                old => {
                    let sub = |n: u64| match old {
                        Entry::Leaf(mfn, r) => {
                            let step = n.saturating_mul(span(below));
                            F::encode(Entry::Leaf(Mfn(mfn.0.saturating_add(step)), r), below)
                        }
                        _ => F::EMPTY,
                    };
                    let Some(next) = self.table(sub) else { return false };
                    self.store.write(table, i, F::encode(Entry::Table(next), level));
                    next
                }
            };
            if !self.prepare(next, below, part, delta) {
                return false;
            }
        }
        true
    }

    fn fill(&mut self, table: Mfn, level: u32, range: Range, delta: u64, rights: Rights, flush: &mut Flush) {
        for part in range.parts(level) {
            let i = index(part.first, level);
            let old = self.entry(table, i, level);
            if let Entry::Table(next) = old {
                self.fill(next, level.saturating_sub(1), part, delta, rights, flush);
                continue;
            }
            let new = Entry::Leaf(Mfn(part.first.wrapping_add(delta)), rights);
            if old != new {
                flush.replaced |= old != Entry::Empty;
                self.store.write(table, i, F::encode(new, level));
            }
        }
    }

    fn clear(&mut self, table: Mfn, level: u32, range: Range, flush: &mut Flush) {
        for part in range.parts(level) {
            let i = index(part.first, level);
            match self.entry(table, i, level) {
                Entry::Empty => {}
                Entry::Table(next) => self.clear(next, level.saturating_sub(1), part, flush),
                Entry::Leaf(..) => {
                    flush.replaced = true;
                    self.store.write(table, i, F::EMPTY);
                }
            }
        }
    }

    /// Unlinks the tables in the range that are empty. True: so is `table`.
    fn prune(&mut self, table: Mfn, level: u32, range: Range) -> bool {
        for part in range.parts(level) {
            let i = index(part.first, level);
            let Entry::Table(next) = self.entry(table, i, level) else { continue };
            if self.prune(next, level.saturating_sub(1), part) {
                self.store.write(table, i, F::EMPTY);
                // The chain reads as not present (bit 0 clear) in every format, should a walk cache still lead here.
                self.store.write(next, 0, self.retired.map_or(0, |m| m.0 << 12));
                self.retired = Some(next);
            }
        }
        (0..ENTRIES).all(|i| self.entry(table, i, level) == Entry::Empty)
    }
}

/// Whether a part can be one leaf of `level`.
fn large(part: Range, level: u32, delta: u64) -> bool {
    level == 2 && part.covers(level) && delta.is_multiple_of(LARGE_PAGES)
}
