//! The pages of a frontend that are mapped: for one request, or kept between requests where the frontend keeps its grants
//! (`feature-persistent`). Kept ones are few: the one that was idle longest goes first.

use crate::Mapped;
use abi::GrantRef;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// A page that a request uses.
pub(crate) enum Held<M> {
    /// For it alone.
    Once(M),
    /// Kept under this reference.
    Kept(GrantRef),
}

struct Kept<M> {
    page: M,
    device_addr: u64,
    uses: u32,
    /// When it became idle.
    idle_since: u64,
}

/// See the module's head.
pub(crate) struct Grants<M> {
    /// Most pages kept; 0 without the feature.
    most: usize,
    kept: BTreeMap<GrantRef, Kept<M>>,
    idle: BTreeMap<u64, GrantRef>,
    clock: u64,
    once: usize,
}

impl<M> Grants<M> {
    pub fn new(most: usize) -> Self {
        Self { most, kept: BTreeMap::new(), idle: BTreeMap::new(), clock: 0, once: 0 }
    }

    /// Pages mapped.
    pub fn mapped(&self) -> usize {
        self.kept.len().saturating_add(self.once)
    }

    /// Of them kept.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Does the frontend keep its grants? Then they are mapped for both directions.
    pub fn persistent(&self) -> bool {
        self.most > 0
    }

    /// Is it mapped?
    pub fn has(&self, gref: GrantRef) -> bool {
        self.kept.contains_key(&gref)
    }

    /// Uses a page that is kept; its device address.
    pub fn reuse(&mut self, gref: GrantRef) -> Option<(Held<M>, u64)> {
        let kept = self.kept.get_mut(&gref)?;
        if kept.uses == 0 {
            self.idle.remove(&kept.idle_since);
        }
        kept.uses = kept.uses.saturating_add(1);
        Some((Held::Kept(gref), kept.device_addr))
    }

    /// A page for the CPU.
    pub fn page<'a>(&'a self, held: &'a Held<M>) -> Option<&'a M> {
        match held {
            Held::Once(page) => Some(page),
            Held::Kept(gref) => self.kept.get(gref).map(|kept| &kept.page),
        }
    }

    /// Takes in a page that was mapped, and keeps it if that is wanted and possible.
    pub fn take_in(&mut self, gref: GrantRef, mapped: Mapped<M>, garbage: &mut Vec<M>) -> (Held<M>, u64) {
        let device_addr = mapped.device_addr;
        let full = self.kept.len() >= self.most;
        if self.kept.contains_key(&gref) || full && !(self.most > 0 && self.evict(garbage)) {
            self.once = self.once.saturating_add(1);
            return (Held::Once(mapped.page), device_addr);
        }
        self.kept.insert(gref, Kept { page: mapped.page, device_addr, uses: 1, idle_since: 0 });
        (Held::Kept(gref), device_addr)
    }

    /// A request is done with a page.
    pub fn release(&mut self, held: Held<M>, garbage: &mut Vec<M>) {
        match held {
            Held::Once(page) => {
                self.once = self.once.saturating_sub(1);
                garbage.push(page);
            }
            Held::Kept(gref) => {
                let Some(kept) = self.kept.get_mut(&gref) else { return };
                kept.uses = kept.uses.saturating_sub(1);
                if kept.uses == 0 {
                    self.clock = self.clock.wrapping_add(1);
                    kept.idle_since = self.clock;
                    self.idle.insert(self.clock, gref);
                }
            }
        }
    }

    /// Gives up the page that was idle longest; false if none is.
    pub fn evict(&mut self, garbage: &mut Vec<M>) -> bool {
        let Some((_, gref)) = self.idle.pop_first() else { return false };
        garbage.extend(self.kept.remove(&gref).map(|kept| kept.page));
        true
    }

    /// Gives up everything that is kept, in use or not.
    pub fn into_kept(self) -> impl Iterator<Item = M> {
        self.kept.into_values().map(|kept| kept.page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_page_goes_first_and_none_in_use() {
        let mut grants = Grants::new(2);
        let mut garbage = Vec::new();
        let page = |n: u32| Mapped { page: n, device_addr: u64::from(n) };
        let take =
            |grants: &mut Grants<u32>, garbage: &mut Vec<u32>, n| grants.take_in(GrantRef(n), page(n), garbage).0;
        let (a, b) = (take(&mut grants, &mut garbage, 1), take(&mut grants, &mut garbage, 2));
        let c = take(&mut grants, &mut garbage, 3);
        assert!(matches!(c, Held::Once(3)), "both that are kept are in use");
        assert_eq!((grants.mapped(), grants.kept()), (3, 2));
        grants.release(b, &mut garbage);
        grants.release(a, &mut garbage);
        grants.release(c, &mut garbage);
        assert_eq!((&garbage[..], grants.mapped()), (&[3][..], 2));
        let (again, addr) = grants.reuse(GrantRef(2)).unwrap();
        assert_eq!(addr, 2);
        take(&mut grants, &mut garbage, 4);
        assert_eq!(garbage, [3, 1], "2 is in use again");
        assert!(!grants.evict(&mut garbage));
        grants.release(again, &mut garbage);
        assert!(grants.evict(&mut garbage) && garbage == [3, 1, 2]);
        assert_eq!(grants.into_kept().collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn without_the_feature_nothing_is_kept() {
        let mut grants = Grants::new(0);
        let (held, _) = grants.take_in(GrantRef(1), Mapped { page: 1, device_addr: 0 }, &mut Vec::new());
        assert!(matches!(held, Held::Once(1)) && !grants.has(GrantRef(1)) && !grants.persistent());
    }
}
