//! The walker against a naive map, and entries against values worked out by hand from the manuals.

use super::*;
use hv_core::{Dfn, Gfn, Mfn};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Table memory with a limit, which notices use after free and double free.
#[derive(Default)]
struct Store {
    frames: BTreeMap<u64, Box<[u64; ENTRIES]>>,
    next: u64,
    limit: usize,
}

impl Store {
    fn shared(limit: usize) -> Shared {
        Rc::new(RefCell::new(Self { frames: BTreeMap::new(), next: 0x1000, limit }))
    }
}

/// Shared with the tree that uses it, so that a test can look.
type Shared = Rc<RefCell<Store>>;

impl FrameStore for Shared {
    fn alloc(&mut self) -> Option<Mfn> {
        let mut this = self.borrow_mut();
        if this.frames.len() >= this.limit {
            return None;
        }
        this.next += 1;
        let table = this.next;
        this.frames.insert(table, Box::new([0xDEAD_BEEF_DEAD_BEEF; ENTRIES]));
        Some(Mfn(table))
    }
    fn free(&mut self, table: Mfn) {
        assert!(self.borrow_mut().frames.remove(&table.0).is_some(), "freed twice: {table}");
    }
    fn read(&self, table: Mfn, index: usize) -> u64 {
        self.borrow().frames[&table.0][index]
    }
    fn write(&mut self, table: Mfn, index: usize, entry: u64) {
        self.borrow_mut().frames.get_mut(&table.0).expect("a table that was freed")[index] = entry;
    }
}

#[test]
fn nested_entries_by_hand() {
    let e = |entry, level| Nested::encode(entry, level);
    assert_eq!(e(Entry::Empty, 1), 0);
    assert_eq!(e(Entry::Table(Mfn(0x1234)), 4), 0x0123_4007, "P, W, U");
    assert_eq!(e(Entry::Leaf(Mfn(0xABC), Rights::RWX), 1), 0x00AB_C007);
    assert_eq!(e(Entry::Leaf(Mfn(0xABC), Rights::READ), 1), 0x8000_0000_00AB_C005, "NX, U, P");
    assert_eq!(e(Entry::Leaf(Mfn(0x200), Rights::RW), 2), 0x8000_0000_0020_0087, "PS");
    assert_eq!(e(Entry::Leaf(Mfn(0xFEB80), Rights::MMIO), 1), 0x8000_0000_FEB8_001F, "PCD, PWT");
    // Accessed and dirty, which the processor sets, change nothing.
    assert_eq!(Nested::decode(0x00AB_C067, 1), Entry::Leaf(Mfn(0xABC), Rights::RWX));
}

#[test]
fn amdvi_entries_by_hand() {
    let e = |entry, level| Amdvi::encode(entry, level);
    // PR, next level 1 at bits 11:9, IR (61), IW (62).
    assert_eq!(e(Entry::Table(Mfn(0x1234)), 2), 0x6000_0000_0123_4201);
    assert_eq!(e(Entry::Table(Mfn(0x1234)), 3), 0x6000_0000_0123_4401);
    // PR, next level 0, FC (60) and the rights; the same bits at level 2 map 2 MiB.
    assert_eq!(e(Entry::Leaf(Mfn(0xABC), Rights::RW), 1), 0x7000_0000_00AB_C001);
    assert_eq!(e(Entry::Leaf(Mfn(0xABC), Rights::READ), 1), 0x3000_0000_00AB_C001);
    assert_eq!(e(Entry::Leaf(Mfn(0x200), Rights::WRITE), 2), 0x5000_0000_0020_0001);
    assert_eq!(Amdvi::EMPTY & 1, 0, "not present");
    assert_ne!(Amdvi::EMPTY >> 9 & 7, 0, "QEMU logs a fault only where the next level is not 0");
}

#[test]
fn whole_large_pages_take_one_entry() {
    let store = Store::shared(10);
    let mut tree = NestedTree::new(store.clone()).unwrap();
    let flush = tree.map(Gfn(512), Mfn(1024), 1024, Rights::RWX).unwrap();
    assert_eq!(flush, Flush { replaced: false });
    assert_eq!(tree.tables(), 3, "levels 4, 3, 2 and no level 1");
    let leaf = tree.translate(Gfn(515)).unwrap();
    assert_eq!(leaf, Leaf { mfn: Mfn(1027), rights: Rights::RWX, run: 509 });
}

#[test]
fn a_split_keeps_the_neighbours() {
    let store = Store::shared(10);
    let mut tree = DeviceTree::new(store.clone()).unwrap();
    let _ = tree.map(Dfn(0), Mfn(512), 512, Rights::RW).unwrap();
    let flush = tree.unmap(Dfn(7), 1).unwrap();
    assert!(flush.replaced);
    assert_eq!(tree.translate(Dfn(7)), None);
    assert_eq!(tree.translate(Dfn(6)).unwrap().mfn, Mfn(518));
    assert_eq!(tree.translate(Dfn(8)).unwrap().mfn, Mfn(520));
}

#[test]
fn ranges_beyond_the_tree_are_refused() {
    let store = Store::shared(10);
    let mut tree = DeviceTree::new(store.clone()).unwrap();
    let end = 1 << 27;
    for (at, to, pages) in
        [(end, 0, 1), (end - 1, 0, 2), (u64::MAX, 0, 2), (0, 1 << 40, 1), (0, u64::MAX, 2), (0, 0, 0)]
    {
        let refused = tree.map(Dfn(at), Mfn(to), pages, Rights::RW);
        assert!(matches!(refused, Err(MapError::Range { .. })), "{at:#x} {to:#x} {pages}");
    }
    assert_eq!(tree.translate(Dfn(end)), None);
    assert_eq!(tree.tables(), 1);
}

#[test]
fn emptied_tables_stay_until_reclaimed() {
    let store = Store::shared(10);
    let mut tree = NestedTree::new(store.clone()).unwrap();
    let _ = tree.map(Gfn(3), Mfn(9), 1, Rights::RW).unwrap();
    let _ = tree.unmap(Gfn(3), 1).unwrap();
    assert_eq!(store.borrow().frames.len(), 4, "kept while a walk cache may point to them");
    tree.reclaim();
    assert_eq!((store.borrow().frames.len(), tree.tables()), (1, 1));
    tree.destroy();
    assert_eq!(store.borrow().frames.len(), 0);
}

#[test]
fn a_failed_map_frees_only_its_own_tables() {
    let store = Store::shared(5);
    let mut tree = NestedTree::new(store.clone()).unwrap();
    let _ = tree.map(Gfn(3), Mfn(9), 1, Rights::RW).unwrap();
    let _ = tree.unmap(Gfn(3), 1).unwrap();
    let refused = tree.map(Gfn(1 << 18), Mfn(9), 1, Rights::RW);
    assert_eq!(refused, Err(MapError::NoMemory));
    assert_eq!(store.borrow().frames.len(), 4, "the three emptied, unflushed tables and the root");
    tree.reclaim();
    assert_eq!(store.borrow().frames.len(), 1);
}

#[derive(Clone, Debug)]
enum Op {
    Map { at: u64, to: u64, pages: u64, rights: Rights },
    Unmap { at: u64, pages: u64 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Few places, so that ranges meet: around large-page borders and table borders.
    let frame = prop_oneof![0u64..1600, Just(0), Just(512), Just(1024), (1u64 << 18) - 600..(1 << 18) + 600];
    let pages = prop_oneof![1u64..8, 1u64..1200, Just(512), Just(1024)];
    let rights = prop_oneof![Just(Rights::READ), Just(Rights::RW)];
    let to = prop_oneof![0u64..4096, Just(512), Just(2048)];
    let op = prop_oneof![
        (frame.clone(), to, pages.clone(), rights).prop_map(|(at, to, pages, rights)| Op::Map {
            at,
            to,
            pages,
            rights
        }),
        (frame, pages).prop_map(|(at, pages)| Op::Unmap { at, pages }),
    ];
    proptest::collection::vec(op, 1..16)
}

/// Runs the operations on a tree with room for `limit` tables and on a map, and compares them after every step.
fn compare<F: Format>(ops: &[Op], limit: usize, from: impl Fn(u64) -> F::From) -> Result<(), TestCaseError> {
    let store = Store::shared(limit);
    let mut tree = Tree::<F, _>::new(store.clone()).unwrap();
    let mut model: BTreeMap<u64, (u64, Rights)> = BTreeMap::new();
    for op in ops {
        let (result, replaces) = match *op {
            Op::Map { at, to, pages, rights } => {
                let replaces = (at..at + pages).any(|f| model.get(&f).is_some_and(|&old| old != (to + f - at, rights)));
                let result = tree.map(from(at), Mfn(to), pages, rights);
                if result.is_ok() {
                    model.extend((0..pages).map(|n| (at + n, (to + n, rights))));
                }
                (result, replaces)
            }
            Op::Unmap { at, pages } => {
                let replaces = model.range(at..at + pages).next().is_some();
                let result = tree.unmap(from(at), pages);
                if result.is_ok() {
                    model.retain(|f, _| !(at..at + pages).contains(f));
                }
                (result, replaces)
            }
        };
        match result {
            Ok(flush) => {
                prop_assert!(flush.replaced || !replaces, "a lost flush: {op:?}");
                if flush.replaced {
                    tree.reclaim();
                }
            }
            Err(MapError::NoMemory) => prop_assert!(store.borrow().frames.len() + 8 > limit, "room was left"),
            Err(e) => prop_assert!(false, "{e:?}"),
        }
        prop_assert_eq!(tree.tables(), store.borrow().frames.len() as u64);
        let mut all = BTreeMap::new();
        tree.each_leaf(&mut |at, leaf| {
            all.extend((0..leaf.run).map(|n| (at + n, (leaf.mfn.0 + n, leaf.rights))))
        });
        prop_assert!(all == model, "the leaves are not the map after {op:?}");
        for f in (0..4096u64).chain((1 << 18) - 700..(1 << 18) + 1900) {
            let leaf = tree.translate(from(f));
            prop_assert_eq!(leaf.map(|l| (l.mfn.0, l.rights)), model.get(&f).copied(), "frame {:#x} after {:?}", f, op);
            let end = leaf.map_or(f, |l| f + l.run - 1);
            prop_assert!(model.contains_key(&end) || leaf.is_none());
        }
    }
    let all = tree.unmap(from(0), 1 << 20);
    if all.is_ok() {
        tree.reclaim();
        prop_assert_eq!(store.borrow().frames.len(), 1, "only the root is left of an empty tree");
    }
    tree.destroy();
    prop_assert!(store.borrow().frames.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn nested_is_a_map(ops in ops(), limit in 1usize..14) {
        compare::<Nested>(&ops, limit, Gfn)?;
    }
    #[test]
    fn amdvi_is_a_map(ops in ops(), limit in 1usize..14) {
        // The device's rights have no EXECUTE; the model never asks for it.
        compare::<Amdvi>(&ops, limit, Dfn)?;
    }
}
