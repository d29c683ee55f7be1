//! Peers that lie, die and break: the others are served all the same.

use sim::guest::Nature;
use sim::scenario::{Outcome, Scenario, run};

fn holds(scenario: &Scenario) -> Outcome {
    let outcome = run(scenario);
    assert_eq!(outcome.failures, Vec::<String>::new(), "{scenario:?}");
    outcome
}

const HOSTILE: Nature = Nature {
    sg: true,
    gso: true,
    mss: 1448,
    blank: true,
    split_ports: true,
    groups: false,
    packets: 10_000,
    hostile: true,
};

#[test]
fn hostile_guests_harm_only_themselves() {
    let mut closed = 0;
    for seed in 0..150 {
        let mut scenario = Scenario { seed, interleave: 2, offloads: seed % 2 == 0, ..Scenario::default() };
        scenario.guests.insert((seed % 3) as usize, HOSTILE);
        scenario.guests.push(Nature { sg: false, split_ports: false, ..HOSTILE });
        let outcome = holds(&scenario);
        assert_eq!((outcome.reconnects, outcome.refused), (0, 0));
        closed += outcome.closed;
    }
    println!("{closed} vifs closed");
    assert!(closed > 100);
}

#[test]
fn hostile_guests_and_a_backend_that_dies() {
    let mut deaths = 0;
    for seed in 0..100u64 {
        let lives = (0..8).map(|n| 30 + (seed.wrapping_mul(0x85EB_CA6B) >> n) % 400).collect();
        let mut scenario = Scenario { seed, deaths: lives, interleave: 2, ..Scenario::default() };
        scenario.guests.insert((seed % 3) as usize, HOSTILE);
        let outcome = holds(&scenario);
        assert_eq!(outcome.reconnects, 0);
        deaths += outcome.lives - 1;
    }
    println!("{deaths} deaths");
    assert!(deaths > 500);
}

#[test]
fn guests_die_in_every_state() {
    for seed in 0..100u64 {
        let deaths = (0..seed % 4).map(|n| 100 + ((seed * 7919) >> n) % 900).collect();
        let mut scenario = Scenario { seed, deaths, interleave: 4, guest_deaths: 40, ..Scenario::default() };
        scenario.frames_in = 60;
        scenario.guests.push(scenario.guests[0]);
        holds(&scenario);
    }
}

#[test]
fn the_device_breaks_and_is_reset() {
    let mut resets = 0;
    for seed in 0..60 {
        let scenario = Scenario { seed, interleave: 5, device_faults: 60, frames_in: 60, ..Scenario::default() };
        let outcome = holds(&scenario);
        assert_eq!(outcome.reconnects, 0);
        resets += outcome.resets;
    }
    println!("{resets} resets");
    assert!(resets > 60);
}

#[test]
fn a_damaged_survivor_page_costs_a_reconnect_and_nothing_else() {
    let mut reconnects = 0;
    for seed in 0..60u64 {
        let scenario = Scenario { seed, deaths: vec![300 + seed * 13], damage_survivor: true, ..Scenario::default() };
        reconnects += holds(&scenario).reconnects;
    }
    println!("{reconnects} reconnects");
    assert!(reconnects > 0);
}

#[test]
fn a_switch_that_leaks_is_noticed() {
    let mut scenario = Scenario { leaky: true, ..Scenario::default() };
    let failures = run(&scenario).failures;
    assert!(failures.iter().any(|why| why.contains("a frame for")), "{failures:?}");
    scenario.guests.push(HOSTILE);
    let failures = run(&scenario).failures;
    assert!(failures.iter().any(|why| why.contains("guest 7 has a frame")), "{failures:?}");
}

#[test]
fn lost_events_delay_and_damage_nothing() {
    for seed in 0..60 {
        let deaths = (0..seed % 3).map(|n| 200 + seed * 31 + n * 400).collect();
        let scenario = Scenario { seed, deaths, lose_events: 4, interleave: 4, ..Scenario::default() };
        assert_eq!(holds(&scenario).reconnects, 0);
    }
}

#[test]
fn a_flood_from_one_guest_does_not_hold_up_another() {
    for seed in 0..10 {
        let mut scenario = Scenario { seed, ..Scenario::default() };
        scenario.guests[0].packets = 1500;
        scenario.guests[1].packets = 30;
        let outcome = holds(&scenario);
        // The others' share of the work is served while the flood goes on, not after it.
        assert!(outcome.last_done[1] * 4 < outcome.last_done[0], "{:?}", outcome.last_done);
    }
}

#[test]
fn the_first_buffer_of_a_frame_holds_its_ethernet_header() {
    for seed in 0..40 {
        let mut scenario = Scenario { seed, ..Scenario::default() };
        scenario.guests[0].packets = 100;
        scenario.guests.push(scenario.guests[0]);
        holds(&scenario);
    }
}

#[test]
fn small_segments_are_not_left_to_the_nic() {
    for (seed, mss) in (0..40).zip([8, 100, 536, 1000].into_iter().cycle()) {
        let mut scenario = Scenario { seed, ..Scenario::default() };
        scenario.guests[0].mss = mss;
        assert!(holds(&scenario).sent > 0);
    }
}

#[test]
fn multicast_reaches_a_guest_whose_groups_died_with_the_backend() {
    let (mut before, mut after) = (0, 0);
    for seed in 0..20 {
        let mut scenario = Scenario { seed, frames_in: 200, ..Scenario::default() };
        scenario.guests.truncate(1);
        scenario.guests[0] = Nature { groups: true, packets: 0, ..scenario.guests[0] };
        before += holds(&scenario).received;
        let outcome = holds(&Scenario { deaths: vec![150], ..scenario });
        assert_eq!((outcome.lives, outcome.reconnects), (2, 0));
        after += outcome.received;
    }
    assert_eq!(before, 0, "no group was named");
    assert!(after > 0);
}
