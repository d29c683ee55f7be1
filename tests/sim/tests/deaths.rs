//! The driver domain dies at every point at which it can: after each store to a shared page and between its steps. The
//! guests must not notice.

use ring::mutation::{Mutation, with};
use sim::scenario::{Outcome, Scenario, run};

fn holds(scenario: &Scenario) -> Outcome {
    let outcome = run(scenario);
    assert_eq!(outcome.failures, Vec::<String>::new(), "{scenario:?}");
    outcome
}

fn small(seed: u64) -> Scenario {
    let mut scenario = Scenario { seed, offloads: seed.is_multiple_of(2), frames_in: 10, ..Scenario::default() };
    scenario.guests.iter_mut().for_each(|guest| guest.packets = 8);
    scenario
}

#[test]
fn without_a_death() {
    for seed in 0..40 {
        let outcome = holds(&Scenario { seed, offloads: seed % 2 == 0, ..Scenario::default() });
        assert_eq!((outcome.lives, outcome.reconnects, outcome.refused), (1, 0, 0));
        assert!(outcome.answered >= 40 && outcome.received > 10 && outcome.sent > 10, "{outcome:?}");
    }
}

#[test]
fn one_death_at_every_point() {
    let mut deaths = 0;
    for seed in 0..4 {
        let base = small(seed);
        let quiet = holds(&base);
        for at in 1..=quiet.points {
            let outcome = holds(&Scenario { deaths: vec![at], ..base.clone() });
            assert_eq!(outcome.reconnects, 0, "a guest noticed the death at point {at}");
            deaths += outcome.lives - 1;
        }
    }
    println!("{deaths} deaths");
    assert!(deaths > 2000);
}

#[test]
fn many_deaths_with_peers_that_never_stand_still() {
    let mut deaths = 0;
    for seed in 0..150u64 {
        // Short lives and long ones; a life that dies while it takes up its rings leaves them to the next.
        let lives = (0..12).map(|n| 20 + (seed.wrapping_mul(0x9E37_79B9) >> n) % (60 << (n % 4))).collect();
        let mut scenario =
            Scenario { seed, deaths: lives, interleave: 3, offloads: seed % 3 != 0, ..Scenario::default() };
        let third = scenario.guests[(seed % 2) as usize];
        scenario.guests.push(sim::guest::Nature { sg: false, gso: false, ..third });
        let outcome = holds(&scenario);
        assert_eq!(outcome.reconnects, 0, "a guest noticed: {scenario:?}");
        deaths += outcome.lives - 1;
    }
    println!("{deaths} deaths");
    assert!(deaths > 1000);
}

#[test]
fn a_ring_without_its_record_is_noticed() {
    for mutation in [Mutation::NoRecord, Mutation::SlotsFirst, Mutation::ClearFirst] {
        let base = small(0);
        let points = run(&base).points;
        let noticed = (1..=points).any(|at| {
            let outcome = with(Some(mutation), || run(&Scenario { deaths: vec![at], ..base.clone() }));
            !outcome.failures.is_empty() || outcome.reconnects > 0
        });
        assert!(noticed, "{mutation:?}");
    }
}
