//! The table against a naive model: a map from frame to owner and pins, searched from the bottom.

use super::*;
use proptest::prelude::*;

const FRAMES: u64 = 40;
const A: Owner = Owner::Domain(DomId(1));
const B: Owner = Owner::Domain(DomId(2));

fn mfn(n: u64) -> Mfn {
    Mfn(n)
}

#[derive(Clone, Debug)]
enum Op {
    Allocate(Owner, u32, u64),
    Free(u64, Owner),
    Release(u64, Owner),
    Pin(u64, Owner),
    Unpin(u64),
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![Just(A), Just(B), Just(Owner::Hypervisor)]
}

fn op() -> impl Strategy<Value = Op> {
    let frame = || 0..FRAMES + 4;
    prop_oneof![
        (owner(), 0u32..4, 0..FRAMES + 4).prop_map(|(o, n, l)| Op::Allocate(o, n, l)),
        (frame(), owner()).prop_map(|(f, o)| Op::Free(f, o)),
        (frame(), owner()).prop_map(|(f, o)| Op::Release(f, o)),
        (frame(), owner()).prop_map(|(f, o)| Op::Pin(f, o)),
        frame().prop_map(Op::Unpin),
    ]
}

/// The naive model: does the same by looking at everything.
struct Model(Vec<(Owner, u32)>);

impl Model {
    fn apply(&mut self, op: &Op) -> Option<u64> {
        match *op {
            Op::Allocate(owner, order, limit) => {
                let run = 1usize << order;
                let end = (limit as usize).min(self.0.len());
                let start = (0..end)
                    .step_by(run)
                    .find(|&s| s + run <= end && self.0[s..s + run].iter().all(|f| f.0 == Owner::Free))?;
                self.0[start..start + run].fill((owner, 0));
                Some(start as u64)
            }
            Op::Free(f, owner) => {
                let frame = self.0.get_mut(f as usize).filter(|x| **x == (owner, 0))?;
                frame.0 = Owner::Free;
                Some(0)
            }
            Op::Release(f, owner) => {
                let frame = self.0.get_mut(f as usize).filter(|x| x.0 == owner)?;
                frame.0 = if frame.1 == 0 { Owner::Free } else { Owner::Orphan };
                Some(0)
            }
            Op::Pin(f, owner) => {
                self.0.get_mut(f as usize).filter(|x| x.0 == owner)?.1 += 1;
                Some(0)
            }
            Op::Unpin(f) => {
                let frame = self.0.get_mut(f as usize).filter(|x| x.1 > 0)?;
                frame.1 -= 1;
                if *frame == (Owner::Orphan, 0) {
                    frame.0 = Owner::Free;
                }
                Some(0)
            }
        }
    }
}

proptest! {
    #[test]
    fn table_agrees_with_the_model(ops in prop::collection::vec(op(), 1..120)) {
        let mut storage = vec![Frame::RESERVED; FRAMES as usize];
        let mut table = FrameTable::new(&mut storage);
        table.add_ram(mfn(3), FRAMES);
        let mut model = Model((0..FRAMES).map(|n| (if n < 3 { Owner::Hypervisor } else { Owner::Free }, 0)).collect());
        for op in &ops {
            let did = match *op {
                Op::Allocate(o, n, l) => table.allocate_contiguous(o, n, mfn(l)).ok().map(|f| f.0),
                Op::Free(f, o) => table.free(mfn(f), o).ok().map(|()| 0),
                Op::Release(f, o) => table.release(mfn(f), o).ok().map(|_| 0),
                Op::Pin(f, o) => table.pin(mfn(f), o).ok().map(|()| 0),
                Op::Unpin(f) => table.unpin(mfn(f)).ok().map(|()| 0),
            };
            prop_assert_eq!(did, model.apply(op), "{:?}", op);
            for (n, &(owner, pins)) in model.0.iter().enumerate() {
                prop_assert_eq!(table.owner(mfn(n as u64)), Some(owner));
                prop_assert_eq!(table.pins(mfn(n as u64)), pins);
            }
            let count = |o: Owner| model.0.iter().filter(|f| f.0 == o).count() as u64;
            prop_assert_eq!(table.free_count(), count(Owner::Free));
            prop_assert_eq!(table.usage(DomId(1)).frames, count(A));
            prop_assert_eq!(table.usage(DomId(2)).frames, count(B));
        }
    }
}

#[test]
fn an_orphan_reaches_its_next_owner_only_when_the_last_pin_is_gone() {
    let mut storage = vec![Frame::RESERVED; 1];
    let mut table = FrameTable::new(&mut storage);
    table.add_ram(mfn(0), 1);
    let f = table.allocate(A, Mfn(u64::MAX)).unwrap();
    table.pin(f, A).unwrap();
    assert_eq!(table.free(f, A), Err(FrameError::Pinned(f)));
    assert_eq!(table.release(f, A), Ok(false));
    assert_eq!(table.allocate(B, Mfn(u64::MAX)), Err(FrameError::OutOfMemory { order: 0 }));
    assert_eq!(table.pin(f, A), Err(FrameError::NotOwner(f, Owner::Orphan)));
    table.unpin(f).unwrap();
    assert_eq!(table.allocate(B, Mfn(u64::MAX)), Ok(f));
    assert_eq!(table.usage(DomId(1)), Usage { frames: 0, peak: 1 });
}

#[test]
fn ram_that_boot_uses_is_never_added_twice() {
    let mut storage = vec![Frame::RESERVED; 4];
    let mut table = FrameTable::new(&mut storage);
    table.add_ram(mfn(1), 2);
    let f = table.allocate(A, Mfn(u64::MAX)).unwrap();
    table.add_ram(mfn(0), 100);
    assert_eq!((table.owner(f), table.ram_count()), (Some(A), 4));
}
