//! Block devices while the driver domain dies at every point at which it can, the controller fails, guests lie, the power is lost.

use blkback::mutation::{Mutation, with};
use sim::blk::disk::Shape;
use sim::blk::guest::Nature;
use sim::blk::scenario::{Outcome, SECTORS, Scenario, place, run};

fn holds(scenario: &Scenario) -> Outcome {
    let outcome = run(scenario);
    assert_eq!(outcome.failures, Vec::<String>::new(), "{scenario:?}");
    outcome
}

fn small(seed: u64) -> Scenario {
    let mut scenario = Scenario { seed, ..Scenario::default() };
    scenario.guests.iter_mut().for_each(|guest| guest.requests = 8);
    scenario
}

/// A drive with sectors of 4096 bytes, whose guests know it.
fn big_sectors(mut scenario: Scenario) -> Scenario {
    scenario.shape = Shape { sector_size: 4096, sectors: 256, ..scenario.shape };
    scenario.guests.iter_mut().for_each(|guest| guest.granularity = 8);
    scenario
}

#[test]
fn without_a_death() {
    let (mut overlaps, mut deepest) = (0, 0);
    for seed in 0..60 {
        let scenario = Scenario { seed, ..Scenario::default() };
        for scenario in [scenario.clone(), big_sectors(scenario)] {
            let outcome = holds(&scenario);
            assert_eq!(
                (outcome.lives, outcome.reconnects, outcome.errors, outcome.answered),
                (1, 0, 0, 60),
                "{outcome:?}"
            );
            overlaps += outcome.overlaps;
            deepest = deepest.max(outcome.deepest);
        }
    }
    assert!(overlaps > 300 && deepest == 6, "{overlaps} {deepest}");
}

#[test]
fn one_death_at_every_point() {
    let (mut deaths, mut replayed) = (0, 0);
    for seed in 0..6 {
        let mut base = small(seed);
        if seed % 3 == 2 {
            base = big_sectors(base);
        }
        let quiet = holds(&base);
        for at in 1..=quiet.points {
            let outcome = holds(&Scenario { deaths: vec![at], ..base.clone() });
            assert_eq!((outcome.reconnects, outcome.errors), (0, 0), "a guest noticed the death at point {at}");
            deaths += outcome.lives - 1;
            replayed += outcome.replayed;
        }
    }
    println!("{deaths} deaths, {replayed} requests done again");
    assert!(deaths > 1500 && replayed > 1000, "{deaths} {replayed}");
}

/// Fewer lists of segments are kept than the guests use, again and again.
fn few_kept(mut scenario: Scenario) -> Scenario {
    scenario.config.persistent = 2;
    scenario.guests.iter_mut().for_each(|guest| guest.requests = 200);
    scenario
}

#[test]
fn a_kept_list_of_segments_is_there_when_its_request_is_read() {
    for seed in 0..60 {
        let scenario = few_kept(Scenario { seed, interleave: 4, ..Scenario::default() });
        let outcome = holds(&scenario);
        assert_eq!((outcome.errors, outcome.answered), (0, 400), "{outcome:?}");
    }
}

/// Short lives and long ones; a life that dies while it takes up its rings leaves them to the next.
fn lives(seed: u64) -> Vec<u64> {
    (0..12).map(|n| 20 + (seed.wrapping_mul(0x9E37_79B9) >> n) % (60 << (n % 4))).collect()
}

#[test]
fn many_deaths_with_peers_that_never_stand_still() {
    let mut deaths = 0;
    for seed in 0..200u64 {
        let mut scenario = Scenario { seed, deaths: lives(seed), interleave: 3, ..Scenario::default() };
        let third = scenario.guests[(seed % 2) as usize];
        scenario.guests.push(Nature { order: 2, indirect: false, ..third });
        scenario.shape.depth = [1, 4, 32][(seed % 3) as usize];
        let outcome = holds(&scenario);
        assert_eq!((outcome.reconnects, outcome.errors), (0, 0), "a guest noticed: {scenario:?}");
        deaths += outcome.lives - 1;
    }
    println!("{deaths} deaths");
    assert!(deaths > 1500);
}

#[test]
fn what_was_flushed_survives_a_loss_of_power() {
    let (mut flushes, mut answered) = (0, 0);
    for seed in 0..300u64 {
        let base = Scenario { seed, power_loss: 60 + seed * 7, interleave: 4, ..Scenario::default() };
        let base = if seed % 4 == 3 { big_sectors(base) } else { base };
        let deaths = if seed % 2 == 0 { lives(seed) } else { vec![] };
        let outcome = holds(&Scenario { deaths, ..base });
        flushes += outcome.flushes;
        answered += outcome.answered;
    }
    println!("{flushes} flushes, {answered} answers");
    assert!(flushes > 1000 && answered > 5000, "{flushes} {answered}");
}

#[test]
fn a_controller_that_fails_is_given_its_commands_again() {
    let mut resets = 0;
    for seed in 0..80u64 {
        let deaths = if seed % 2 == 0 { lives(seed) } else { vec![] };
        let scenario = Scenario { seed, device_faults: 60, deaths, interleave: 4, ..Scenario::default() };
        let outcome = holds(&scenario);
        assert_eq!((outcome.reconnects, outcome.errors), (0, 0));
        resets += outcome.resets;
    }
    assert!(resets > 100, "{resets}");
}

#[test]
fn a_bad_sector_fails_the_requests_that_need_it_and_no_other() {
    let mut errors = 0;
    for seed in 0..40u64 {
        let scenario = Scenario { seed, bad_sectors: vec![77, 78], deaths: lives(seed), ..Scenario::default() };
        let outcome = holds(&scenario);
        assert!(outcome.errors < 25, "{outcome:?}");
        assert_eq!(outcome.reconnects, 0);
        errors += outcome.errors;
    }
    assert!(errors > 80, "{errors}");
}

#[test]
fn a_drive_that_is_pulled_out_ends_its_vbds_and_not_the_domain() {
    for seed in 0..40u64 {
        let outcome = holds(&Scenario { seed, pull_out: 100 + seed * 5, ..Scenario::default() });
        assert_eq!(outcome.lives, 1);
    }
}

#[test]
fn a_drive_in_the_place_of_another_gets_none_of_its_requests() {
    for seed in 0..120u64 {
        let deaths = if seed % 2 == 0 { lives(seed) } else { vec![] };
        let scenario = Scenario {
            seed,
            exchange: 50 + seed * 5,
            deaths,
            interleave: 4 * (seed as u32 % 3),
            ..Scenario::default()
        };
        let outcome = holds(&scenario);
        assert!(outcome.refusals.iter().all(Option::is_some), "{outcome:?} {scenario:?}");
    }
}

#[test]
fn guests_close_and_begin_again() {
    let mut reconnects = 0;
    for seed in 0..60u64 {
        let deaths = if seed % 2 == 0 { lives(seed) } else { vec![] };
        let mut scenario = Scenario { seed, closes: 40, deaths, interleave: 5, ..Scenario::default() };
        scenario.guests.iter_mut().for_each(|guest| guest.requests = 60);
        let outcome = holds(&scenario);
        assert_eq!(outcome.errors, 0);
        reconnects += outcome.reconnects;
    }
    assert!(reconnects > 60, "{reconnects}");
}

#[test]
fn lost_events_delay_and_lose_nothing() {
    for seed in 0..60u64 {
        let outcome = holds(&Scenario { seed, lose_events: 5, deaths: lives(seed), ..Scenario::default() });
        assert_eq!((outcome.errors, outcome.reconnects), (0, 0));
    }
}

#[test]
fn a_survivor_page_of_garbage_costs_a_reconnect_and_no_data() {
    let mut reconnects = 0;
    for seed in 0..60u64 {
        let scenario =
            Scenario { seed, damage_survivor: true, deaths: lives(seed), interleave: 5, ..Scenario::default() };
        let outcome = holds(&scenario);
        assert_eq!(outcome.errors, 0);
        reconnects += outcome.reconnects;
    }
    assert!(reconnects > 100, "{reconnects}");
}

#[test]
fn hostile_neighbours_reach_nothing_and_delay_nobody() {
    let (mut closed, mut with, mut without) = (0, 0, 0);
    for seed in 0..150u64 {
        let mut scenario = Scenario { seed, interleave: 3, ..Scenario::default() };
        if seed % 3 == 0 {
            scenario.deaths = lives(seed);
        }
        without += holds(&scenario).last_done.iter().sum::<u64>();
        let honest = scenario.guests[0];
        let hostile =
            Nature { hostile: true, requests: 1 << 30, persistent: seed % 2 == 0, order: (seed % 3) as u32, ..honest };
        scenario.guests.push(hostile);
        scenario.guest_deaths = if seed % 5 == 0 { 300 } else { 0 };
        let outcome = holds(&scenario);
        assert_eq!((outcome.reconnects, outcome.errors), (0, 0), "an honest guest noticed: {scenario:?}");
        assert!(
            outcome.last_done[..2].iter().all(|&done| done > 0),
            "an honest guest did not come to its end: {outcome:?}"
        );
        closed += outcome.closed;
        with += outcome.last_done[..2].iter().sum::<u64>();
    }
    println!("{closed} vbds closed; steps {without} without, {with} with a hostile neighbour");
    assert!(closed > 50, "{closed}");
    assert!(with < without * 4, "{with} {without}");
}

#[test]
fn a_flood_of_requests_does_not_starve_a_neighbour() {
    let (mut alone, mut beside) = (0, 0);
    for seed in 0..30u64 {
        let mut scenario = Scenario { seed, ..Scenario::default() };
        scenario.guests.truncate(1);
        alone += holds(&scenario).last_done[0];
        let flood = Nature { order: 2, requests: 600, ..scenario.guests[0] };
        scenario.guests.push(flood);
        let done = holds(&scenario).last_done;
        assert!(done[0] * 3 < done[1], "{done:?}");
        beside += done[0];
    }
    println!("{alone} steps alone, {beside} beside a flood");
    assert!(beside < alone * 4, "{alone} {beside}");
}

/// A table of two partitions, the vbds of the first two guests, with the backup at the end.
fn partitioned(sectors: u64) -> Vec<(usize, Vec<u8>)> {
    use gpt_disk_types::{
        Crc32, GptHeader, GptHeaderRevision, GptHeaderSignature, GptPartitionEntry, GptPartitionType,
    };
    use gpt_disk_types::{Guid, LbaLe, U32Le};
    let entry = |n: usize, name: &str| {
        let mut entry = GptPartitionEntry {
            partition_type_guid: GptPartitionType(Guid::from_bytes([0xAA; 16])),
            unique_partition_guid: Guid::from_bytes([n as u8 + 1; 16]),
            starting_lba: LbaLe::from_u64(place(n)),
            ending_lba: LbaLe::from_u64(place(n) + SECTORS - 1),
            ..GptPartitionEntry::default()
        };
        let mut label = entry.name;
        name.chars().enumerate().for_each(|(at, c)| label.set_char(at, c).expect("a short name"));
        entry.name = label;
        entry
    };
    let mut array = vec![0; 128 * 128];
    for (at, entry) in [entry(0, "root"), entry(1, "data")].iter().enumerate() {
        array[at * 128..][..128].copy_from_slice(bytemuck::bytes_of(entry));
    }
    let mut parts = Vec::new();
    for (own, other, at) in [(1, sectors - 1, 2), (sectors - 1, 1, sectors - 33)] {
        let mut header = GptHeader {
            signature: GptHeaderSignature::EFI_COMPATIBLE_PARTITION_TABLE_HEADER,
            revision: GptHeaderRevision::VERSION_1_0,
            my_lba: LbaLe::from_u64(own),
            alternate_lba: LbaLe::from_u64(other),
            first_usable_lba: LbaLe::from_u64(34),
            last_usable_lba: LbaLe::from_u64(sectors - 34),
            partition_entry_lba: LbaLe::from_u64(at),
            number_of_partition_entries: U32Le::from_u32(128),
            partition_entry_array_crc32: Crc32(U32Le::from_u32(crc32fast::hash(&array))),
            ..GptHeader::default()
        };
        header.update_header_crc32();
        parts.push((own as usize * 512, bytemuck::bytes_of(&header).to_vec()));
        parts.push((at as usize * 512, array.clone()));
    }
    parts
}

#[test]
fn partitions_are_vbds_and_what_is_none_is_refused_with_its_reason() {
    for seed in 0..40u64 {
        let mut scenario = Scenario { seed, preset: partitioned(2048), ..Scenario::default() };
        if seed % 2 == 0 {
            scenario.deaths = lives(seed);
        }
        if seed % 5 == 4 {
            // The primary is damaged: the backup serves.
            scenario.preset[0].1[20] ^= 1;
        }
        scenario.guests.extend([scenario.guests[0]; 3]);
        let bad = ["drive=0,partition=name:none", "drive=7", "half of it"];
        let names = ["drive=0,partition=1", "drive=0,partition=name:data"].iter().chain(&bad);
        scenario.sources = names.map(ToString::to_string).enumerate().collect();
        let outcome = holds(&scenario);
        assert_eq!((outcome.errors, outcome.answered), (0, 60), "{outcome:?}");
        assert_eq!(outcome.refusals[..2], [None, None]);
        let why: Vec<&str> = outcome.refusals[2..].iter().map(|why| why.as_deref().unwrap_or("")).collect();
        assert_eq!(why, ["no such partition", "drive 7 is not there", "source \"half of it\" is not understood"]);
    }
}

/// Where a fault is put into the backend, some scenario of those above must show it.
#[test]
fn every_mutation_is_noticed() {
    use Mutation::{
        EarlyAnswer, EarlyEviction, EarlyFlush, EarlyUnmap, NoFlush, NoOffset, NoOverlapOrder, ReleaseWhenDone,
        ResetIsDone,
    };
    for mutation in [
        EarlyAnswer,
        EarlyEviction,
        EarlyFlush,
        EarlyUnmap,
        NoFlush,
        NoOffset,
        NoOverlapOrder,
        ReleaseWhenDone,
        ResetIsDone,
    ] {
        let shows = |scenario: Scenario| !with(Some(mutation), || run(&scenario)).failures.is_empty();
        let noticed = (0..400u64).any(|seed| {
            let base = Scenario { seed, interleave: 4, ..Scenario::default() };
            match mutation {
                EarlyEviction => shows(few_kept(base)),
                ResetIsDone => shows(Scenario { device_faults: 60, ..base }),
                NoFlush | EarlyFlush => shows(Scenario { power_loss: 60 + seed * 7, ..base }),
                _ => shows(Scenario { deaths: lives(seed), ..base }),
            }
        });
        assert!(noticed, "{mutation:?}");
    }
}
