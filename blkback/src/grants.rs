//! The pages of a frontend that are mapped: for one request, or kept between requests where the frontend keeps its grants
//! (`feature-persistent`). Kept ones are few: the one that was idle longest goes first.
//!
//! Every page of every request passes here, so nothing is searched: references index a table, idle pages are a linked list in it.

use crate::Mapped;
use abi::GrantRef;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// References from here on are not kept, whoever names them: the table stays small.
const KEPT_BELOW: u32 = 8192;
/// No place.
const NONE: u16 = u16::MAX;

/// A page that a request uses.
pub(crate) enum Held<M> {
    /// For it alone.
    Once(M),
    /// Kept at this place.
    Kept(u16),
}

/// For each segment of some requests the page it has, if any, and where the disk sees it.
pub(crate) type Known<M> = VecDeque<Option<(Held<M>, u64)>>;

struct Kept<M> {
    gref: GrantRef,
    page: M,
    device_addr: u64,
    uses: u32,
    /// Its neighbours in the list of idle pages, from the longest idle to the last.
    before: u16,
    after: u16,
}

/// See the module's head.
pub(crate) struct Grants<M> {
    /// Most pages kept; 0 without the feature.
    most: usize,
    /// Place of a reference, by its number.
    places: Vec<u16>,
    kept: Vec<Option<Kept<M>>>,
    free: Vec<u16>,
    longest: u16,
    last: u16,
    once: usize,
}

impl<M> Grants<M> {
    pub fn new(most: usize) -> Self {
        let most = most.min(usize::from(NONE));
        let (places, kept, free) = (Vec::new(), Vec::new(), Vec::new());
        Self { most, places, kept, free, longest: NONE, last: NONE, once: 0 }
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

    fn at(&mut self, place: u16) -> Option<&mut Kept<M>> {
        self.kept.get_mut(usize::from(place))?.as_mut()
    }

    /// Is it mapped?
    pub fn has(&self, gref: GrantRef) -> bool {
        self.place(gref).is_some()
    }

    /// Uses a page that is kept; its device address.
    pub fn reuse(&mut self, gref: GrantRef) -> Option<(Held<M>, u64)> {
        let place = self.place(gref)?;
        let kept = self.at(place)?;
        let idle = kept.uses == 0;
        kept.uses = kept.uses.saturating_add(1);
        let device_addr = kept.device_addr;
        if idle {
            self.unlink(place);
        }
        Some((Held::Kept(place), device_addr))
    }

    /// A page for the CPU.
    pub fn page<'a>(&'a self, held: &'a Held<M>) -> Option<&'a M> {
        match held {
            Held::Once(page) => Some(page),
            Held::Kept(place) => Some(&self.kept.get(usize::from(*place))?.as_ref()?.page),
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
        let kept = Some(Kept { gref, page: mapped.page, device_addr, uses: 1, before: NONE, after: NONE });
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
        (Held::Kept(place), device_addr)
    }

    /// A request is done with a page.
    pub fn release(&mut self, held: Held<M>, garbage: &mut Vec<M>) {
        match held {
            Held::Once(page) => {
                self.once = self.once.saturating_sub(1);
                garbage.push(page);
            }
            Held::Kept(place) => {
                let last = self.last;
                let Some(kept) = self.at(place) else { return };
                kept.uses = kept.uses.saturating_sub(1);
                if kept.uses > 0 {
                    return;
                }
                (kept.before, kept.after) = (last, NONE);
                match self.at(last) {
                    Some(before) => before.after = place,
                    None => self.longest = place,
                }
                self.last = place;
            }
        }
    }

    fn unlink(&mut self, place: u16) {
        let Some(kept) = self.at(place) else { return };
        let (before, after) = (kept.before, kept.after);
        (kept.before, kept.after) = (NONE, NONE);
        match self.at(before) {
            Some(kept) => kept.after = after,
            None => self.longest = after,
        }
        match self.at(after) {
            Some(kept) => kept.before = before,
            None => self.last = before,
        }
    }

    /// Gives up the page that was idle longest; false if none is.
    pub fn evict(&mut self, garbage: &mut Vec<M>) -> bool {
        let place = self.longest;
        self.unlink(place);
        let Some(kept) = self.kept.get_mut(usize::from(place)).and_then(Option::take) else { return false };
        if let Some(entry) = self.places.get_mut(kept.gref.0 as usize) {
            *entry = NONE;
        }
        self.free.push(place);
        garbage.push(kept.page);
        true
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
    use std::collections::VecDeque;

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

    proptest! {
        /// Against a list that is searched: what is kept, in which order idle pages go, and that none in use does.
        #[test]
        fn the_longest_idle_page_goes_first(most in 1usize..6, steps in proptest::collection::vec((0u8..3, 0u32..9), 0..200)) {
            let mut grants = Grants::new(most);
            let mut garbage: Vec<u32> = Vec::new();
            let mut held: Vec<(u32, Held<u32>)> = Vec::new();
            let (mut idle, mut kept): (VecDeque<u32>, Vec<u32>) = (VecDeque::new(), Vec::new());
            for (what, n) in steps {
                garbage.clear();
                let mut gone = Vec::new();
                match what {
                    0 => {
                        let use_of = match grants.reuse(GrantRef(n)) {
                            Some((use_of, addr)) => {
                                prop_assert!(kept.contains(&n) && addr == u64::from(n));
                                idle.retain(|other| *other != n);
                                use_of
                            }
                            None => {
                                prop_assert!(!kept.contains(&n));
                                if kept.len() == most {
                                    gone.extend(idle.pop_front());
                                    kept.retain(|other| !gone.contains(other));
                                }
                                if kept.len() < most {
                                    kept.push(n);
                                }
                                grants.take_in(GrantRef(n), page(n), &mut garbage).0
                            }
                        };
                        prop_assert_eq!(grants.page(&use_of), Some(&n));
                        held.push((n, use_of));
                    }
                    1 if !held.is_empty() => {
                        let (n, use_of) = held.swap_remove(n as usize % held.len());
                        let once = matches!(use_of, Held::Once(_));
                        grants.release(use_of, &mut garbage);
                        if once {
                            gone.push(n);
                        } else if !held.iter().any(|(m, other)| *m == n && matches!(other, Held::Kept(_))) {
                            idle.push_back(n);
                        }
                    }
                    2 => {
                        let any = grants.evict(&mut garbage);
                        gone.extend(idle.pop_front());
                        kept.retain(|other| !gone.contains(other));
                        prop_assert_eq!(any, !gone.is_empty());
                    }
                    _ => {}
                }
                prop_assert_eq!(&garbage, &gone);
                let once = held.iter().filter(|(_, use_of)| matches!(use_of, Held::Once(_))).count();
                prop_assert_eq!((grants.kept(), grants.mapped()), (kept.len(), kept.len() + once));
            }
            let mut all: Vec<u32> = grants.into_kept().collect();
            all.sort_unstable();
            kept.sort_unstable();
            prop_assert_eq!(all, kept);
        }
    }
}
