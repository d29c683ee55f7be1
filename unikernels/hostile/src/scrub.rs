//! What a domain finds in the memory it is given: all of it is read before it is used, then filled, and left so for the next owner.

use crate::report::Report;
use abi::PAGE_SIZE;
use alloc::vec::Vec;
use libxenrt::log;
use libxenrt::memory::{Pages, usage};

/// Pages taken at a time.
const RUN: usize = 256;
/// Left to the heap.
const REST: usize = 64;
/// Nobody's memory begins so.
const PATTERN: u64 = 0x5a5a_a5a5_c3c3_3c3c;

/// Reads, fills, and says what was found.
pub fn scrub(r: &mut Report) {
    let (free, all) = usage();
    let mut runs = Vec::new();
    while usage().0 > RUN + REST
        && let Some(run) = Pages::alloc(RUN)
    {
        runs.push(run);
    }
    let pages = runs.len() * RUN;
    let found: usize = runs.iter().map(filled).sum();
    log::info!("hostile: scrub: {pages} of {free} free pages ({all} in all) read, {found} words are not zero");
    r.holds("it is given most of its memory free", pages * 10 > all * 9);
    r.holds("all of it is zero", found == 0);
    runs.iter().for_each(fill);
    // That what is there would have been seen.
    r.holds("it is filled", runs.iter().map(filled).sum::<usize>() == pages * WORDS);
    log::info!("hostile: scrub: {pages} pages are filled");
}

const WORDS: usize = PAGE_SIZE / size_of::<u64>();

fn words(run: &Pages) -> impl Iterator<Item = *mut u64> {
    let base = run.base().as_ptr().cast::<u64>();
    (0..run.count() * WORDS).map(move |at| base.wrapping_add(at))
}

/// Words that are not zero.
fn filled(run: &Pages) -> usize {
    // SAFETY: the words of a run that we own; volatile, as nothing says how it came by its content.
    words(run).filter(|word| unsafe { word.read_volatile() } != 0).count()
}

fn fill(run: &Pages) {
    // SAFETY: as above.
    words(run).for_each(|word| unsafe { word.write_volatile(PATTERN) });
}
