//! Segments in a row as one piece: whole pages whose references follow each other, as a frontend's buffer has them. What is asked of
//! each segment of a request is asked once of a run; a page that stands alone is a run of one.

use abi::GrantRef;
use abi::io::blkif::{SECTORS_PER_PAGE, Segment};
use alloc::vec::Vec;

/// One segment, or whole pages of consecutive references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first page.
    pub first: Segment,
    /// How many; more than one only of whole pages.
    pub pages: u16,
}

impl Run {
    /// Appends a segment, to the last run where it continues it.
    pub fn append(runs: &mut Vec<Self>, segment: Segment) {
        if let Some(last) = runs.last_mut()
            && last.first.gref.0.checked_add(u32::from(last.pages)) == Some(segment.gref.0)
            && is_whole(last.first)
            && is_whole(segment)
            && let Some(pages) = last.pages.checked_add(1)
        {
            last.pages = pages;
            return;
        }
        runs.push(Self { first: segment, pages: 1 });
    }

    /// The reference of page `n`.
    pub fn gref(&self, n: u16) -> GrantRef {
        GrantRef(self.first.gref.0.saturating_add(u32::from(n)))
    }

    /// Its segments, one for each page.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + use<> {
        let run = *self;
        (0..run.pages).map(move |n| Segment { gref: run.gref(n), ..run.first })
    }
}

fn is_whole(segment: Segment) -> bool {
    segment.first_sect == 0 && segment.last_sect == SECTORS_PER_PAGE.saturating_sub(1)
}

/// Pages of all.
pub(crate) fn pages(runs: &[Run]) -> u64 {
    runs.iter().fold(0, |all: u64, run| all.saturating_add(u64::from(run.pages)))
}

#[cfg(test)]
pub(crate) fn runs(segments: &[Segment]) -> Vec<Run> {
    let mut runs = Vec::new();
    segments.iter().for_each(|&segment| Run::append(&mut runs, segment));
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(gref: u32, first_sect: u8, last_sect: u8) -> Segment {
        Segment { gref: GrantRef(gref), first_sect, last_sect, pad: 0 }
    }

    #[test]
    fn only_whole_pages_in_a_row_are_joined() {
        let of = |segments: &[Segment]| runs(segments).iter().map(|run| run.pages).collect::<Vec<_>>();
        assert_eq!(of(&[segment(5, 0, 7), segment(6, 0, 7), segment(7, 0, 7)]), [3]);
        assert_eq!(of(&[segment(5, 0, 7), segment(7, 0, 7), segment(6, 0, 7), segment(6, 0, 7)]), [1, 1, 1, 1]);
        assert_eq!(of(&[segment(5, 1, 7), segment(6, 0, 7), segment(7, 0, 6), segment(8, 0, 7)]), [1, 1, 1, 1]);
        assert_eq!(of(&[segment(5, 0, 8), segment(6, 0, 8)]), [1, 1], "what leaves its page stays to be refused");
        assert_eq!(of(&[segment(u32::MAX, 0, 7), segment(0, 0, 7)]), [1, 1]);
    }

    proptest! {
        /// Nothing is lost, added or put elsewhere.
        #[test]
        fn the_segments_come_back(all in proptest::collection::vec((0u32..4, 0u8..2, 6u8..9), 0..40)) {
            let all: Vec<Segment> = all.iter().map(|&(gref, first, last)| segment(gref, first, last)).collect();
            let runs = runs(&all);
            prop_assert_eq!(runs.iter().flat_map(Run::segments).collect::<Vec<_>>(), &all[..]);
            prop_assert_eq!(pages(&runs), all.len() as u64);
        }
    }
}
