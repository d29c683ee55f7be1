//! The backend dies after every single store it makes, alone and twice, with the frontend moving at every access.

use super::world::{History, Outcome, run};
use proptest::prelude::*;

/// Indices at which wrapping shows.
const STARTS: [u32; 3] = [0, u32::MAX - 2, u32::MAX];

fn history(start: u32, total: u32) -> History {
    History { start, total, batch: 2, depth: 3, kills: vec![], steps: vec![] }
}

/// Runs `each` for every history with `kills` deaths and `steps` moves of the frontend by itself; returns how many.
pub fn every_history<const N: usize, const REQ: usize, const RSP: usize>(
    base: &History,
    kills: usize,
    steps: usize,
) -> Result<u64, String> {
    let quiet = run::<N, REQ, RSP>(base)?;
    let mut histories = 0;
    let mut at_kill = vec![0u64; kills];
    // A replay makes some stores again, hence the margin; a death after the end of the work just does not happen.
    let (stores, accesses) = (quiet.stores + 8, quiet.accesses + 8);
    loop {
        let mut at_step = vec![1u64; steps];
        loop {
            let history = History { kills: at_kill.clone(), steps: at_step.clone(), ..base.clone() };
            run::<N, REQ, RSP>(&history).map_err(|why| format!("{why} in {history:?}"))?;
            histories += 1;
            if !next(&mut at_step, accesses) {
                break;
            }
        }
        if !next(&mut at_kill, stores) {
            return Ok(histories);
        }
    }
}

/// The next ascending sequence of numbers up to `limit`; false after the last.
fn next(sequence: &mut [u64], limit: u64) -> bool {
    for i in (0..sequence.len()).rev() {
        if sequence[i] < limit {
            let value = sequence[i] + 1;
            sequence[i..].fill(value);
            return true;
        }
    }
    false
}

#[test]
fn quiet_histories_execute_each_request_once() {
    for start in STARTS {
        let Outcome { executed, instances, .. } = run::<4, 3, 1>(&history(start, 11)).unwrap();
        assert_eq!((executed, instances), (11, 1));
    }
}

#[test]
fn death_after_every_store_tx_shape() {
    let mut histories = 0;
    for start in STARTS {
        histories += every_history::<4, 3, 1>(&history(start, 7), 1, 1).unwrap();
    }
    println!("{histories} histories");
    assert!(histories > 10_000);
}

#[test]
fn death_after_every_store_rx_and_block_shape() {
    let mut histories = every_history::<4, 2, 2>(&history(u32::MAX - 2, 7), 1, 1).unwrap();
    histories += every_history::<2, 7, 4>(&history(u32::MAX, 5), 1, 1).unwrap();
    println!("{histories} histories");
    assert!(histories > 10_000);
}

#[test]
fn two_deaths_after_every_pair_of_stores() {
    let mut histories = 0;
    for start in STARTS {
        histories += every_history::<4, 2, 2>(&history(start, 6), 2, 0).unwrap();
    }
    histories += every_history::<2, 3, 1>(&history(u32::MAX, 3), 3, 0).unwrap();
    println!("{histories} histories");
    assert!(histories > 10_000);
}

#[test]
fn two_moves_of_the_frontend_around_every_death() {
    let base = History { batch: 1, depth: 2, ..history(u32::MAX, 3) };
    let histories = every_history::<2, 2, 2>(&base, 1, 2).unwrap();
    println!("{histories} histories");
    assert!(histories > 50_000);
}

#[test]
fn a_half_written_publication_is_finished_by_the_next_instance() {
    let base = history(7, 6);
    let quiet = run::<4, 2, 2>(&base).unwrap();
    let finished: u64 = (0..quiet.stores)
        .map(|at| run::<4, 2, 2>(&History { kills: vec![at], ..base.clone() }).unwrap().finished)
        .sum();
    assert!(finished > 0, "no death fell between record and rsp_prod");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn real_rings_survive_any_deaths(
        start in prop_oneof![any::<u32>(), (u32::MAX - 600)..=u32::MAX],
        total in 1u32..700,
        batch in 1u32..40,
        depth in 1u32..300,
        kills in prop::collection::vec(0u64..9000, 0..12),
        steps in prop::collection::vec(1u64..9000, 0..400),
    ) {
        let (mut kills, mut steps) = (kills, steps);
        kills.sort_unstable();
        steps.sort_unstable();
        let history = History { start, total, batch, depth, kills, steps };
        prop_assert_eq!(run::<256, 3, 1>(&history).map(|_| ()), Ok(()));
        prop_assert_eq!(run::<256, 2, 2>(&history).map(|_| ()), Ok(()));
        prop_assert_eq!(run::<32, 28, 4>(&history).map(|_| ()), Ok(()));
    }
}
