//! Grants against a naive model: a list of the uses that live, from which pins and bits are counted anew after each step.

use super::*;
use crate::frames::Frame;
use proptest::prelude::*;
use std::cell::RefCell;

const DOMS: u16 = 3;
const REFS: u32 = 4;
const FRAMES: u64 = 12;
const HANDLES: usize = 3;

/// A table as the granting domain has it, with an optional rewrite of the header under the hypervisor's feet.
#[derive(Default)]
struct Table {
    entries: RefCell<Vec<(u32, u32)>>,
    meddle: Option<u32>,
}

impl EntryTable for Table {
    fn header(&self, gref: GrantRef) -> Option<u32> {
        self.entries.borrow().get(gref.0 as usize).map(|e| e.0)
    }
    fn frame(&self, gref: GrantRef) -> Option<u32> {
        self.entries.borrow().get(gref.0 as usize).map(|e| e.1)
    }
    fn exchange(&self, gref: GrantRef, current: u32, new: u32) -> bool {
        let entry = &mut self.entries.borrow_mut()[gref.0 as usize];
        if let Some(meddle) = self.meddle {
            entry.0 ^= meddle;
        }
        let same = entry.0 == current;
        if same {
            entry.0 = new;
        }
        same
    }
    fn clear(&self, gref: GrantRef, bits: u32) {
        self.entries.borrow_mut()[gref.0 as usize].0 &= !bits;
    }
}

fn header(flags: u16, dom: DomId) -> u32 {
    u32::from(flags) | u32::from(dom.0) << 16
}

/// Frame `gfn` of domain `d` is machine frame `d * 4 + gfn`.
fn translate(d: DomId) -> impl Fn(Gfn) -> Option<Mfn> {
    move |gfn| (gfn.0 < 4).then_some(Mfn(u64::from(d.0) * 4 + gfn.0))
}

fn frames(storage: &mut [Frame]) -> FrameTable<'_> {
    let mut t = FrameTable::new(storage);
    t.add_ram(Mfn(0), FRAMES);
    for d in 0..DOMS {
        t.allocate_contiguous(Owner::Domain(DomId(d)), 2, Mfn(u64::MAX)).unwrap();
    }
    t
}

fn map(
    grants: &mut Grants,
    want: Want,
    place: Place,
    table: &Table,
    frames: &mut FrameTable<'_>,
) -> Result<(u32, Mfn), GrantError> {
    if !grants.has_room(want.user) {
        return Err(GrantError::NoHandle);
    }
    let access = grants.acquire(want, table, frames, translate(want.grantor))?;
    let mfn = access.mfn();
    Ok((grants.hold(place, access).unwrap(), mfn))
}

#[derive(Clone, Debug)]
enum Op {
    Entry(u16, u32, u16, u16, u32),
    Acquire(u16, u16, u32, bool),
    Map(u16, u16, u32, bool),
    Release(usize),
    Unmap(u16, u32, u64),
    TakeBack(u16),
    Forget(u16),
}

fn op() -> impl Strategy<Value = Op> {
    let dom = || 0..DOMS;
    let gref = || 0..REFS + 1;
    prop_oneof![
        4 => (dom(), 0..REFS, prop_oneof![3 => Just(1u16), 1 => Just(5), 1 => Just(0), 1 => Just(2)], dom(), 0u32..5)
            .prop_map(|(d, g, f, u, n)| Op::Entry(d, g, f, u, n)),
        4 => (dom(), dom(), gref(), any::<bool>()).prop_map(|(u, d, g, r)| Op::Acquire(u, d, g, r)),
        4 => (dom(), dom(), gref(), any::<bool>()).prop_map(|(u, d, g, r)| Op::Map(u, d, g, r)),
        3 => (0usize..8).prop_map(Op::Release),
        3 => (dom(), 0u32..4, 0u64..2).prop_map(|(u, h, g)| Op::Unmap(u, h, g)),
        1 => dom().prop_map(Op::TakeBack),
        1 => dom().prop_map(Op::Forget),
    ]
}

/// One use of the model.
#[derive(Clone, Debug, PartialEq)]
struct Use {
    want: Want,
    mfn: u64,
    /// The grantor has not started anew since.
    current: bool,
    handle: Option<u32>,
}

#[derive(Default)]
struct Model {
    uses: Vec<Use>,
    /// Headers as they must be, by domain and reference.
    headers: BTreeMap<(u16, u32), (u32, u32)>,
}

impl Model {
    fn current(&self, d: u16, g: u32) -> Vec<&Use> {
        let of = |u: &&Use| u.current && (u.want.grantor.0, u.want.gref.0) == (d, g);
        self.uses.iter().filter(of).collect()
    }

    fn acquire(&mut self, want: Want, handle: Option<u32>) -> Result<(), i16> {
        let (d, g) = (want.grantor.0, want.gref.0);
        let (head, frame) = self.headers.get(&(d, g)).copied().ok_or(status::BAD_GNTREF)?;
        let active = self.current(d, g);
        if active.iter().any(|u| u.want.user != want.user) {
            return Err(status::GENERAL_ERROR);
        }
        let first = active.is_empty();
        let first_write = !want.readonly && active.iter().all(|u| u.want.readonly);
        let flags = head as u16;
        let permits = flags & 3 == 1 && (head >> 16) as u16 == want.user.0 && (want.readonly || flags & 4 == 0);
        if (first || first_write) && !permits {
            return Err(status::GENERAL_ERROR);
        }
        let mfn = active.first().map_or(u64::from(d) * 4 + u64::from(frame), |u| u.mfn);
        if first && frame >= 4 {
            // The hypervisor set and cleared the bits.
            self.headers.get_mut(&(d, g)).unwrap().0 &= !if want.readonly { 8 } else { 24 };
            return Err(status::BAD_PAGE);
        }
        if first || first_write {
            self.headers.get_mut(&(d, g)).unwrap().0 |= if want.readonly { 8 } else { 24 };
        }
        self.uses.push(Use { want, mfn, current: true, handle });
        Ok(())
    }

    fn release(&mut self, index: usize) {
        let gone = self.uses.remove(index);
        if !gone.current {
            return;
        }
        let (d, g) = (gone.want.grantor.0, gone.want.gref.0);
        let left = self.current(d, g);
        let mut clear = 0;
        if left.iter().all(|u| u.want.readonly) {
            clear |= 16;
        }
        if left.is_empty() {
            clear |= 8;
        }
        self.headers.get_mut(&(d, g)).unwrap().0 &= !clear;
    }

    fn release_held(&mut self, user: u16, handle: Option<u32>) {
        while let Some(i) = self
            .uses
            .iter()
            .position(|u| u.want.user.0 == user && u.handle.is_some() && (handle.is_none() || u.handle == handle))
        {
            self.release(i);
        }
    }
}

proptest! {
    #[test]
    fn grants_agree_with_the_model(ops in prop::collection::vec(op(), 1..120)) {
        let mut storage = vec![Frame::RESERVED; FRAMES as usize];
        let mut frames = frames(&mut storage);
        let (mut grants, mut model) = (Grants::new(), Model::default());
        let tables: Vec<Table> = (0..DOMS).map(|_| Table::default()).collect();
        let mut open: Vec<Access> = Vec::new();
        for d in 0..DOMS {
            grants.add_domain(DomId(d), HANDLES);
            *tables[d as usize].entries.borrow_mut() = vec![(0, 0); REFS as usize];
            model.headers.extend((0..REFS).map(|g| ((d, g), (0, 0))));
        }
        for op in ops {
            match op {
                Op::Entry(d, g, flags, user, frame) => {
                    tables[d as usize].entries.borrow_mut()[g as usize] = (header(flags, DomId(user)), frame);
                    model.headers.insert((d, g), (header(flags, DomId(user)), frame));
                }
                Op::Acquire(u, d, g, readonly) => {
                    let want = Want { user: DomId(u), grantor: DomId(d), gref: GrantRef(g), readonly };
                    let got = grants.acquire(want, &tables[d as usize], &mut frames, translate(want.grantor));
                    prop_assert_eq!(got.as_ref().map(|_| ()).map_err(|e| e.status()), model.acquire(want, None));
                    open.extend(got);
                }
                Op::Map(u, d, g, readonly) => {
                    let want = Want { user: DomId(u), grantor: DomId(d), gref: GrantRef(g), readonly };
                    let place = Place { gfn: Gfn(0), host: true, device: false };
                    let taken: Vec<u32> = model.uses.iter().filter(|x| x.want.user.0 == u).filter_map(|x| x.handle).collect();
                    prop_assert_eq!(grants.has_room(want.user), taken.len() < HANDLES);
                    let got = map(&mut grants, want, place, &tables[d as usize], &mut frames);
                    let expected = if taken.len() == HANDLES {
                        Err(status::NO_DEVICE_SPACE)
                    } else {
                        let handle = (0..).find(|h| !taken.contains(h)).unwrap();
                        model.acquire(want, Some(handle)).map(|()| handle)
                    };
                    prop_assert_eq!(got.map(|(handle, _)| handle).map_err(GrantError::status), expected);
                }
                Op::Release(i) => {
                    if i < open.len() {
                        let access = open.remove(i);
                        let at = model.uses.iter().enumerate().filter(|(_, u)| u.handle.is_none()).nth(i).unwrap().0;
                        let table = &tables[access.grantor().0 as usize];
                        grants.release(access, Some(table), &mut frames);
                        model.release(at);
                    }
                }
                Op::Unmap(u, handle, gfn) => {
                    let held = model.uses.iter().any(|x| x.want.user.0 == u && x.handle == Some(handle));
                    match grants.unmap(DomId(u), handle, Gfn(gfn)) {
                        Ok(m) => {
                            prop_assert!(held && gfn == 0);
                            let table = &tables[m.access.grantor().0 as usize];
                            grants.release(m.access, Some(table), &mut frames);
                            model.release_held(u, Some(handle));
                        }
                        Err(GrantError::BadHandle(_)) => prop_assert!(!held),
                        Err(e) => prop_assert!(held && e == GrantError::BadAddress(Gfn(1))),
                    }
                }
                Op::TakeBack(u) => {
                    for m in grants.take_back_all(DomId(u)) {
                        let table = &tables[m.access.grantor().0 as usize];
                        grants.release(m.access, Some(table), &mut frames);
                    }
                    model.release_held(u, None);
                    prop_assert_eq!(grants.held(DomId(u)), 0);
                }
                Op::Forget(d) => {
                    grants.forget_grantor(DomId(d));
                    for u in model.uses.iter_mut().filter(|u| u.want.grantor.0 == d) {
                        u.current = false;
                    }
                    for g in 0..REFS {
                        tables[d as usize].entries.borrow_mut()[g as usize] = (0, 0);
                        model.headers.insert((d, g), (0, 0));
                    }
                }
            }
            for n in 0..FRAMES {
                let uses = model.uses.iter().filter(|u| u.mfn == n).count() as u32;
                prop_assert_eq!(frames.pins(Mfn(n)), uses, "pins of frame {}", n);
            }
            for (&(d, g), &(head, _)) in &model.headers {
                prop_assert_eq!(tables[d as usize].header(GrantRef(g)), Some(head), "entry {} of {}", g, d);
                prop_assert_eq!(grants.in_use(DomId(d), GrantRef(g)), !model.current(d, g).is_empty());
            }
        }
    }
}

const A: DomId = DomId(0);
const B: DomId = DomId(1);

fn want(readonly: bool) -> Want {
    Want { user: B, grantor: A, gref: GrantRef(1), readonly }
}

fn table(flags: u16) -> Table {
    Table { entries: RefCell::new(vec![(0, 0), (header(flags, B), 2)]), meddle: None }
}

#[test]
fn an_entry_that_keeps_changing_is_given_up() {
    let mut storage = vec![Frame::RESERVED; FRAMES as usize];
    let mut frames = frames(&mut storage);
    let t = Table { meddle: Some(1 << 9), ..table(GTF_PERMIT_ACCESS) };
    let got = Grants::new().acquire(want(true), &t, &mut frames, translate(A));
    assert_eq!(got, Err(GrantError::Unstable(GrantRef(1))));
    let revoked = Table { meddle: Some(1), ..table(GTF_PERMIT_ACCESS) };
    let got = Grants::new().acquire(want(true), &revoked, &mut frames, translate(A));
    assert!(matches!(got, Err(GrantError::Denied(_))), "revoked between the read and the exchange");
    assert_eq!(frames.pins(Mfn(2)), 0);
}

#[test]
fn read_only_is_enforced_and_leaves_no_trace() {
    let mut storage = vec![Frame::RESERVED; FRAMES as usize];
    let mut frames = frames(&mut storage);
    let (mut grants, t) = (Grants::new(), table(GTF_PERMIT_ACCESS | GTF_READONLY));
    let read = grants.acquire(want(true), &t, &mut frames, translate(A)).unwrap();
    assert!(matches!(grants.acquire(want(false), &t, &mut frames, translate(A)), Err(GrantError::Denied(_))));
    assert_eq!((frames.pins(Mfn(2)), t.header(GrantRef(1)).unwrap() as u16), (1, 1 | 4 | 8));
    grants.release(read, Some(&t), &mut frames);
    assert_eq!((frames.pins(Mfn(2)), t.header(GrantRef(1)).unwrap() as u16), (0, 1 | 4));
}

#[test]
fn a_restarted_grantors_frame_and_entries_are_safe_from_old_mappings() {
    let mut storage = vec![Frame::RESERVED; FRAMES as usize];
    let mut frames = frames(&mut storage);
    let (mut grants, t) = (Grants::new(), table(GTF_PERMIT_ACCESS));
    grants.add_domain(B, HANDLES);
    let place = Place { gfn: Gfn(9), host: true, device: true };
    let (handle, mfn) = map(&mut grants, want(false), place, &t, &mut frames).unwrap();
    grants.forget_grantor(A);
    assert_eq!(frames.release(mfn, Owner::Domain(A)), Ok(false));
    // The new instance grants the same reference with another frame, and it is in use when the old mapping goes.
    *t.entries.borrow_mut() = vec![(0, 0), (header(GTF_PERMIT_ACCESS, B), 3)];
    let new = grants.acquire(want(true), &t, &mut frames, translate(A)).unwrap();
    let old = grants.unmap(B, handle, Gfn(9)).unwrap();
    assert_eq!(old.place, place);
    grants.release(old.access, Some(&t), &mut frames);
    assert_eq!(frames.owner(mfn), Some(Owner::Free));
    assert_eq!((new.mfn(), t.header(GrantRef(1)).unwrap() as u16), (Mfn(3), 1 | 8));
    grants.release(new, Some(&t), &mut frames);
}

#[test]
fn a_frame_the_grantor_does_not_own_is_no_grant() {
    let mut storage = vec![Frame::RESERVED; FRAMES as usize];
    let mut frames = frames(&mut storage);
    let t = table(GTF_PERMIT_ACCESS);
    let foreign = |_| Some(Mfn(4));
    let got = Grants::new().acquire(want(true), &t, &mut frames, foreign);
    assert_eq!(got.map_err(GrantError::status), Err(status::BAD_PAGE));
    assert_eq!(t.header(GrantRef(1)), Some(header(GTF_PERMIT_ACCESS, B)));
}
