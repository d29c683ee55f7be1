//! The list of mutations: each, put into the ring code, must make a suite of this crate fail. What only a weak memory
//! model shows (fences, orderings) has its list in `tests/models`.

use super::crash::every_history;
use super::world::History;
use super::{corrupt, lies};
use crate::mutation::{Mutation, with};

fn crash_suite() -> Result<(), String> {
    let base = History { start: u32::MAX - 1, total: 5, batch: 2, depth: 3, kills: vec![], steps: vec![] };
    every_history::<4, 3, 1>(&base, 1, 1)?;
    every_history::<4, 2, 2>(&base, 1, 0)?;
    let base = History { total: 3, batch: 1, depth: 1, ..base };
    every_history::<4, 2, 2>(&base, 0, 3)?;
    Ok(())
}

fn corrupt_suite() -> Result<(), String> {
    corrupt::flipped_bits_are_noticed()?;
    corrupt::another_position_is_refused()?;
    corrupt::another_ring_is_left_alone()
}

fn lies_suite() -> Result<(), String> {
    lies::jumps_are_faults(u32::MAX - 2)?;
    let climb = (1..=40).rev().map(|prod| (0, prod)).collect();
    lies::backend_among_lies(climb, 0)
}

type Suite = fn() -> Result<(), String>;

#[test]
fn every_mutation_makes_a_suite_fail() {
    let list: [(Mutation, Suite); 9] = [
        (Mutation::NoRecord, crash_suite),
        (Mutation::SlotsFirst, crash_suite),
        (Mutation::ClearFirst, crash_suite),
        (Mutation::IndexFirst, crash_suite),
        (Mutation::NoRecheck, crash_suite),
        (Mutation::SkipCrc, corrupt_suite),
        (Mutation::AnyPosition, corrupt_suite),
        (Mutation::AnyRing, corrupt_suite),
        (Mutation::TrustProducer, lies_suite),
    ];
    for suite in [crash_suite, corrupt_suite, lies_suite] {
        assert_eq!(suite(), Ok(()), "without a mutation");
    }
    for (mutation, suite) in list {
        let why = with(Some(mutation), suite).expect_err(&format!("{mutation:?} was not noticed"));
        println!("{mutation:?}: {why}");
    }
}
