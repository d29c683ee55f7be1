//! The pages of a frontend that are mapped: for one request, or kept between requests where the frontend keeps its grants
//! (`feature-persistent`). Kept ones are few: which idle one goes first a clock's hand says, that passes over those used since it was
//! there last.
//!
//! Every page of every request passes here, 256 for a MiB: use and release are a look at a table and a count each, and pages at places
//! in a row, as a frontend's buffer takes them, are used and held as one.

use crate::Mapped;
use abi::{GrantRef, PAGE_SIZE};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// References from here on are not kept, whoever names them: the table stays small.
const KEPT_BELOW: u32 = 8192;
/// No place.
const NONE: u16 = u16::MAX;

/// Pages that a request uses.
pub(crate) enum Held<M> {
    /// For it alone.
    Once(M),
    /// Kept, at this place and so many in a row.
    Kept(u16, u16),
}

impl<M> Held<M> {
    /// Appends pages, to the last run where it continues it.
    pub fn append(self, all: &mut Vec<Self>) {
        if let (Some(Self::Kept(first, count)), Self::Kept(next, more)) = (all.last_mut(), &self)
            && next.checked_sub(*first) == Some(*count)
            && let Some(joined) = count.checked_add(*more)
        {
            *count = joined;
            return;
        }
        all.push(self);
    }
}

/// For each segment of some requests the page it has, if any, and where the disk sees it.
pub(crate) type Known<M> = VecDeque<Option<(Held<M>, u64)>>;

struct Kept<M> {
    gref: GrantRef,
    page: M,
    device_addr: u64,
    uses: u32,
    /// Used since the hand was there.
    recent: bool,
}

/// See the module's head.
pub(crate) struct Grants<M> {
    /// Most pages kept; 0 without the feature.
    most: usize,
    /// Place of a reference, by its number.
    places: Vec<u16>,
    kept: Vec<Option<Kept<M>>>,
    free: Vec<u16>,
    /// Kept pages that no request uses.
    idle: usize,
    hand: usize,
    once: usize,
}

impl<M> Grants<M> {
    pub fn new(most: usize) -> Self {
        let most = most.min(usize::from(NONE));
        let (places, kept, free) = (Vec::new(), Vec::new(), Vec::new());
        Self { most, places, kept, free, idle: 0, hand: 0, once: 0 }
    }

    /// Pages mapped.
    pub fn mapped(&self) -> usize {
        self.kept().saturating_add(self.once)
    }

    /// Of them kept.
    pub fn kept(&self) -> usize {
        self.kept.len().saturating_sub(self.free.len())
    }

    /// Does the frontend keep its grants? Then they are mapped for both directions.
    pub fn persistent(&self) -> bool {
        self.most > 0
    }

    fn place(&self, gref: GrantRef) -> Option<u16> {
        self.places.get(gref.0 as usize).copied().filter(|&place| place != NONE)
    }

    /// Is it mapped?
    pub fn has(&self, gref: GrantRef) -> bool {
        self.place(gref).is_some()
    }

    /// Uses a page that is kept; its device address.
    pub fn reuse(&mut self, gref: GrantRef) -> Option<(Held<M>, u64)> {
        let place = self.place(gref)?;
        let kept = self.kept.get_mut(usize::from(place))?.as_mut()?;
        self.idle = self.idle.saturating_sub(usize::from(kept.uses == 0));
        kept.uses = kept.uses.saturating_add(1);
        Some((Held::Kept(place, 1), kept.device_addr))
    }

    /// How many of `pages` pages from reference `gref` on are not kept.
    pub fn missing(&self, gref: GrantRef, pages: u16) -> usize {
        let (first, pages) = (gref.0 as usize, usize::from(pages));
        let known = self.places.get(first..).unwrap_or_default();
        let kept = known.iter().take(pages).filter(|&&place| place != NONE).count();
        pages.saturating_sub(kept)
    }

    /// Uses as many of `pages` pages from reference `gref` on as are kept at places in a row and lie in a row for the device: where the
    /// first is there, and how many they are. `None` if the first is not kept.
    pub fn reuse_run(&mut self, gref: GrantRef, pages: u16) -> Option<(Held<M>, u64, u16)> {
        let place = self.place(gref)?;
        let places = self.places.get(gref.0 as usize..)?.iter().zip(place..NONE);
        let in_row = places.take(usize::from(pages)).take_while(|(at, expected)| *at == expected).count();
        let base = self.kept.get(usize::from(place))?.as_ref()?.device_addr;
        let (mut expected, mut count, mut idle): (u64, u16, usize) = (base, 0, 0);
        for kept in self.kept.get_mut(usize::from(place)..)?.iter_mut().take(in_row).map_while(Option::as_mut) {
            if kept.device_addr != expected {
                break;
            }
            expected = expected.saturating_add(PAGE_SIZE as u64);
            idle = idle.saturating_add(usize::from(kept.uses == 0));
            kept.uses = kept.uses.saturating_add(1);
            count = count.saturating_add(1);
        }
        self.idle = self.idle.saturating_sub(idle);
        (count > 0).then_some((Held::Kept(place, count), base, count))
    }

    /// A page for the CPU, the first of those held.
    pub fn page<'a>(&'a self, held: &'a Held<M>) -> Option<&'a M> {
        match held {
            Held::Once(page) => Some(page),
            Held::Kept(place, _) => Some(&self.kept.get(usize::from(*place))?.as_ref()?.page),
        }
    }

    /// Takes in a page that was mapped, and keeps it if that is wanted and possible.
    pub fn take_in(&mut self, gref: GrantRef, mapped: Mapped<M>, garbage: &mut Vec<M>) -> (Held<M>, u64) {
        let device_addr = mapped.device_addr;
        let can_keep = self.most > 0 && gref.0 < KEPT_BELOW && !self.has(gref);
        if !can_keep || self.kept() >= self.most && !self.evict(garbage) {
            self.once = self.once.saturating_add(1);
            return (Held::Once(mapped.page), device_addr);
        }
        let kept = Some(Kept { gref, page: mapped.page, device_addr, uses: 1, recent: false });
        let place = match self.free.pop() {
            Some(place) => {
                if let Some(empty) = self.kept.get_mut(usize::from(place)) {
                    *empty = kept;
                }
                place
            }
            None => {
                self.kept.push(kept);
                self.kept.len().saturating_sub(1) as u16
            }
        };
        if self.places.len() <= gref.0 as usize {
            self.places.resize((gref.0 as usize).saturating_add(1), NONE);
        }
        if let Some(entry) = self.places.get_mut(gref.0 as usize) {
            *entry = place;
        }
        (Held::Kept(place, 1), device_addr)
    }

    /// A request is done with what it held.
    pub fn release(&mut self, held: Held<M>, garbage: &mut Vec<M>) {
        match held {
            Held::Once(page) => {
                self.once = self.once.saturating_sub(1);
                garbage.push(page);
            }
            Held::Kept(first, count) => {
                let (first, count) = (usize::from(first), usize::from(count));
                for kept in self.kept.iter_mut().skip(first).take(count).flatten() {
                    kept.uses = kept.uses.saturating_sub(1);
                    kept.recent = true;
                    self.idle = self.idle.saturating_add(usize::from(kept.uses == 0));
                }
            }
        }
    }

    /// Gives up an idle page; false if there is none.
    pub fn evict(&mut self, garbage: &mut Vec<M>) -> bool {
        if self.idle == 0 {
            return false;
        }
        // In the second round none is recent any more.
        for _ in 0..self.kept.len().saturating_mul(2) {
            let place = self.hand;
            self.hand = place.wrapping_add(1).checked_rem(self.kept.len()).unwrap_or(0);
            let Some(entry) = self.kept.get_mut(place) else { continue };
            let Some(kept) = entry.take_if(|kept| kept.uses == 0 && !core::mem::take(&mut kept.recent)) else {
                continue;
            };
            if let Some(entry) = self.places.get_mut(kept.gref.0 as usize) {
                *entry = NONE;
            }
            self.idle = self.idle.saturating_sub(1);
            self.free.push(place as u16);
            garbage.push(kept.page);
            return true;
        }
        false
    }

    /// Gives up everything that is kept, in use or not.
    pub fn into_kept(self) -> impl Iterator<Item = M> {
        self.kept.into_iter().flatten().map(|kept| kept.page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(n: u32) -> Mapped<u32> {
        Mapped { page: n, device_addr: u64::from(n) }
    }

    #[test]
    fn without_the_feature_nothing_is_kept() {
        let mut grants = Grants::new(0);
        let (held, _) = grants.take_in(GrantRef(1), page(1), &mut Vec::new());
        assert!(matches!(held, Held::Once(1)) && !grants.has(GrantRef(1)) && !grants.persistent());
        assert_eq!((grants.mapped(), grants.kept()), (1, 0));
    }

    #[test]
    fn far_references_are_not_kept() {
        let mut grants = Grants::new(4);
        let (held, _) = grants.take_in(GrantRef(u32::MAX), page(1), &mut Vec::new());
        assert!(matches!(held, Held::Once(1)) && !grants.has(GrantRef(u32::MAX)));
    }

    #[test]
    fn pages_in_a_row_are_held_as_one() {
        let (mut grants, mut garbage, mut held) = (Grants::new(8), Vec::new(), Vec::new());
        for n in [1, 2, 3] {
            grants.take_in(GrantRef(n), page(n), &mut garbage).0.append(&mut held);
        }
        for n in [2, 2, 3] {
            grants.reuse(GrantRef(n)).unwrap().0.append(&mut held);
        }
        assert!(matches!(held[..], [Held::Kept(0, 3), Held::Kept(1, 1), Held::Kept(1, 2)]));
        held.drain(..2).for_each(|held| grants.release(held, &mut garbage));
        assert!(grants.evict(&mut garbage) && !grants.evict(&mut garbage), "two are still used");
        assert_eq!(garbage, [1]);
    }

    #[test]
    fn a_run_goes_as_far_as_places_and_addresses_do() {
        let (mut grants, mut garbage) = (Grants::new(8), Vec::new());
        let addr = |n: u64| n * PAGE_SIZE as u64;
        // References 10 to 14 at places in a row, the fourth elsewhere for the device; 16 comes before 15.
        for (gref, at) in
            [(10, addr(5)), (11, addr(6)), (12, addr(7)), (13, addr(9)), (14, addr(10)), (16, addr(11)), (15, addr(12))]
        {
            let (held, _) = grants.take_in(GrantRef(gref), Mapped { page: gref, device_addr: at }, &mut garbage);
            grants.release(held, &mut garbage);
        }
        assert_eq!((grants.missing(GrantRef(10), 7), grants.missing(GrantRef(9), 9)), (0, 2));
        assert_eq!(grants.missing(GrantRef(u32::MAX), 3), 3);
        let mut run = |gref, pages| {
            grants.reuse_run(GrantRef(gref), pages).map(|(held, at, count)| match held {
                Held::Kept(place, run) => (place, run, at, count),
                Held::Once(_) => unreachable!(),
            })
        };
        assert_eq!(run(10, 2), Some((0, 2, addr(5), 2)), "no more than asked for");
        assert_eq!(run(10, 7), Some((0, 3, addr(5), 3)));
        assert_eq!(run(13, 4), Some((3, 2, addr(9), 2)));
        assert_eq!(run(15, 2), Some((6, 1, addr(12), 1)));
        assert_eq!((run(9, 2), run(10, 0), run(u32::MAX, 2)), (None, None, None));
        // 16 alone is idle; of the others each use counts.
        assert!(grants.evict(&mut garbage) && !grants.evict(&mut garbage) && garbage == [16]);
        grants.release(Held::Kept(0, 3), &mut garbage);
        assert!(
            grants.evict(&mut garbage) && !grants.evict(&mut garbage),
            "two of them are held by the first run as well"
        );
        assert_eq!(garbage, [16, 12]);
    }

    #[test]
    fn who_was_used_since_the_last_round_stays() {
        let (mut grants, mut garbage) = (Grants::new(3), Vec::new());
        for n in [1, 2, 3] {
            let (held, _) = grants.take_in(GrantRef(n), page(n), &mut garbage);
            grants.release(held, &mut garbage);
        }
        assert!(grants.evict(&mut garbage), "the first of the second round");
        let (held, _) = grants.reuse(GrantRef(2)).unwrap();
        grants.release(held, &mut garbage);
        assert!(grants.evict(&mut garbage));
        assert_eq!(garbage, [1, 3]);
    }

    proptest! {
        /// Against lists that are searched: what is kept, that none in use is given up, and that one is wherever one is idle.
        #[test]
        fn only_idle_pages_are_given_up(most in 1usize..6, steps in proptest::collection::vec((0u8..3, 0u32..9), 0..200)) {
            let mut grants = Grants::new(most);
            let mut garbage: Vec<u32> = Vec::new();
            let mut held: Vec<(u32, Held<u32>)> = Vec::new();
            let mut kept: Vec<u32> = Vec::new();
            for (what, n) in steps {
                garbage.clear();
                let in_use = |held: &[(u32, Held<u32>)], n| held.iter().any(|(m, one)| *m == n && matches!(one, Held::Kept(..)));
                let idle = kept.iter().filter(|n| !in_use(&held, **n)).count();
                let mut once = None;
                match what {
                    0 => {
                        let full = kept.len() == most;
                        let (use_of, evicts) = match grants.reuse(GrantRef(n)) {
                            Some((use_of, addr)) => {
                                prop_assert!(kept.contains(&n) && addr == u64::from(n));
                                (use_of, false)
                            }
                            None => {
                                prop_assert!(!kept.contains(&n));
                                (grants.take_in(GrantRef(n), page(n), &mut garbage).0, full && idle > 0)
                            }
                        };
                        prop_assert_eq!(garbage.len(), usize::from(evicts));
                        prop_assert_eq!(grants.page(&use_of), Some(&n));
                        held.push((n, use_of));
                    }
                    1 if !held.is_empty() => {
                        let (n, use_of) = held.swap_remove(n as usize % held.len());
                        once = matches!(use_of, Held::Once(_)).then_some(n);
                        grants.release(use_of, &mut garbage);
                        prop_assert_eq!(garbage.len(), usize::from(once.is_some()));
                    }
                    2 => prop_assert_eq!(grants.evict(&mut garbage), idle > 0),
                    _ => {}
                }
                if once.is_none() {
                    for gone in &garbage {
                        prop_assert!(kept.contains(gone) && !in_use(&held, *gone));
                    }
                    kept.retain(|n| !garbage.contains(n));
                }
                if what == 0 && in_use(&held, n) && !kept.contains(&n) {
                    kept.push(n);
                }
                let once = held.iter().filter(|(_, use_of)| matches!(use_of, Held::Once(_))).count();
                prop_assert_eq!((grants.kept(), grants.mapped()), (kept.len(), kept.len() + once));
                prop_assert!(kept.iter().all(|n| grants.has(GrantRef(*n))));
            }
            let mut all: Vec<u32> = grants.into_kept().collect();
            all.sort_unstable();
            kept.sort_unstable();
            prop_assert_eq!(all, kept);
        }
    }
}
