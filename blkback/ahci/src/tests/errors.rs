use super::*;
use blkback::disk::{Change, Fault};

const WRITE: Op = Op::Write { fua: false };

/// Reads of eight sectors each from 0 on.
fn reads(d: &mut Driver, count: u32) {
    (0..count).for_each(|i| submit(d, Op::Read, u64::from(i) * 8, i));
    d.kick();
}

#[test]
fn exactly_the_failed_commands_fail() {
    for setup in setups() {
        for (queue_depth, log) in [(32, true), (32, false), (0, true)] {
            for latency_us in [0, 300] {
                let (model, mut d) = one(setup, DriveSetup { queue_depth, log, latency_us, ..DriveSetup::default() });
                d.interrupts_enable(true);
                for bad in [43, 99] {
                    model.break_sector(0, bad, u32::MAX);
                }
                reads(&mut d, 32);
                let done = run(&model, &mut d, 32);
                let expect = |i| if matches!(i, 5 | 12) { MEDIA_ERROR } else { Ok(()) };
                assert_eq!(done, (0..32).map(|i| (i, expect(i))).collect::<Vec<_>>());
                let s = d.stats(D0);
                assert_eq!((d.fault(), s.errors, s.link_resets), (None, 2, 1), "no link reset but the start's");
                reads(&mut d, 5);
                assert_eq!(run(&model, &mut d, 5).len(), 5, "it goes on");
            }
        }
    }
}

#[test]
fn a_log_that_cannot_be_true_is_not_believed() {
    let (model, mut d) = one(Setup::default(), DriveSetup { latency_us: 50, ..DriveSetup::default() });
    d.interrupts_enable(true);
    let mut other_tag = [0; 512];
    (other_tag[0], other_tag[2], other_tag[511]) = (30, 0x41, 0u8.wrapping_sub(30 + 0x41));
    let mut wrong_sum = [0; 512];
    (wrong_sum[0], wrong_sum[2]) = (1, 0x41);
    for log in [other_tag, wrong_sum] {
        model.break_sector(0, 17, 2);
        model.lie_log(0, log);
        reads(&mut d, 6);
        let done = run(&model, &mut d, 6);
        assert_eq!(done.iter().filter(|(_, r)| r.is_err()).collect::<Vec<_>>(), [&(2, MEDIA_ERROR)]);
        assert_eq!(done.len(), 6);
    }
}

#[test]
fn a_flush_that_fails_fails_all_that_rode_on_it() {
    for setup in setups() {
        let (model, mut d) = one(setup, DriveSetup::default());
        d.interrupts_enable(true);
        model.break_command(0, 0xea, true);
        flush(&mut d, 1);
        flush(&mut d, 2);
        d.kick();
        let done = run(&model, &mut d, 2);
        assert!(done.len() == 2 && done.iter().all(|(_, r)| r.is_err()), "{done:?}");
        model.break_command(0, 0xea, false);
        flush(&mut d, 3);
        d.kick();
        assert_eq!(run(&model, &mut d, 1), [(3, Ok(()))]);
    }
}

#[test]
fn a_stuck_command_is_tried_again_and_then_times_out_and_the_others_go_on() {
    for setup in setups() {
        for queue_depth in [32, 0] {
            let (model, mut d) = one(setup, DriveSetup { queue_depth, ..DriveSetup::default() });
            d.interrupts_enable(true);
            model.stick_sector(0, 8, 1);
            reads(&mut d, 3);
            assert_eq!(run(&model, &mut d, 3), [(0, Ok(())), (1, Ok(())), (2, Ok(()))]);
            model.stick_sector(0, 8, 2);
            reads(&mut d, 3);
            assert_eq!(run(&model, &mut d, 3), [(0, Ok(())), (1, Err(IoError::Timeout)), (2, Ok(()))]);
            assert_eq!((d.fault(), d.stats(D0).recoveries), (None, 3));
        }
    }
}

#[test]
fn interface_errors_are_tried_again_but_not_for_ever() {
    let (model, mut d) = one(Setup::default(), DriveSetup { latency_us: 1000, ..DriveSetup::default() });
    d.interrupts_enable(true);
    reads(&mut d, 4);
    model.raise(0, 1 << 27);
    d.interrupt();
    assert_eq!(run(&model, &mut d, 4).iter().filter(|(_, r)| r.is_ok()).count(), 4);
    submit(&mut d, WRITE, 0, 0);
    d.kick();
    for _ in 0..4 {
        model.raise(0, 1 << 27);
        d.interrupt();
        while d.coming().next().is_some() {
            d.tick();
            model.advance_us(10);
        }
    }
    let done = run(&model, &mut d, 1);
    assert!(matches!(done[..], [(0, Err(IoError::Device { .. }))]), "{done:?}");
}

#[test]
fn what_cannot_be_is_a_fault_until_a_reset() {
    let lies: [(fn(&Model), Fault); 4] = [
        (|m| m.lie_active(0, 1 << 9), Fault::Impossible { drive: D0, found: 1 << 9 }),
        (|m| m.raise(0, 1 << 29), Fault::HostBus(D0)),
        (|m| m.raise(0, 1 << 28), Fault::HostBus(D0)),
        (Model::vanish, Fault::Gone),
    ];
    for (lie, fault) in lies {
        let (model, mut d) = one(Setup::default(), DriveSetup { latency_us: 1_000, ..DriveSetup::default() });
        d.interrupts_enable(true);
        reads(&mut d, 3);
        lie(&model);
        d.interrupt();
        let _ = d.completed();
        assert_eq!(d.fault(), Some(fault));
        assert!(d.completed().is_none() && d.room(D0) == 0);
        let read = Command { op: Op::Read, sector: 0, sectors: 1, segments: &[] };
        assert_eq!(d.submit(D0, &read, 0), Err(blkback::disk::SubmitError::Faulty));
        if fault != Fault::Gone {
            d.reset().unwrap();
            model.advance_us(10_000);
            assert!(over(&mut d).is_empty(), "no token from before");
            reads(&mut d, 3);
            assert_eq!(run(&model, &mut d, 3).len(), 3);
        }
    }
}

#[test]
fn a_command_that_moved_too_much_is_a_fault_and_one_that_moved_too_little_an_error() {
    let (model, mut d) = one(Setup::default(), DriveSetup { queue_depth: 0, ..DriveSetup::default() });
    model.lie_moved(0, 4092);
    reads(&mut d, 1);
    assert!(matches!(run(&model, &mut d, 1)[..], [(0, Err(IoError::Device { .. }))]));
    model.lie_moved(0, 4100);
    reads(&mut d, 1);
    assert!(run(&model, &mut d, 1).is_empty());
    assert_eq!(d.fault(), Some(Fault::Impossible { drive: D0, found: 4100 }));
    d.reset().unwrap();
    // A command bit that nobody gave.
    model.stick_sector(0, 0, 1);
    reads(&mut d, 1);
    model.lie_issued(0, 1 << 20);
    let _ = d.completed();
    assert_eq!(d.fault(), Some(Fault::Impossible { drive: D0, found: 1 << 20 }));
}

#[test]
fn an_unplugged_drive_is_gone_and_another_one_comes() {
    let (model, mut d) = one(Setup::default(), DriveSetup { latency_us: 5_000, ..DriveSetup::default() });
    d.interrupts_enable(true);
    reads(&mut d, 2);
    model.plug(0, None);
    assert_eq!(run(&model, &mut d, 2), [(0, Err(IoError::Gone)), (1, Err(IoError::Gone))]);
    assert_eq!((d.change(), d.change(), d.info(D0).is_none()), (Some(Change::Gone(D0)), None, true));
    model.plug(0, Some(DriveSetup { serial: "OTHER", sectors: 4096, ..DriveSetup::default() }));
    assert!(run(&model, &mut d, 1).is_empty());
    assert_eq!((d.change(), d.info(D0).unwrap().sectors), (Some(Change::Came(D0)), 4096));
    reads(&mut d, 2);
    assert_eq!(run(&model, &mut d, 2), [(0, Ok(())), (1, Ok(()))]);
}

#[test]
fn a_link_that_comes_back_with_the_same_drive_is_no_change() {
    let (model, mut d) = one(Setup::default(), DriveSetup { latency_us: 2_000, ..DriveSetup::default() });
    d.interrupts_enable(true);
    reads(&mut d, 4);
    model.blip(0);
    assert_eq!(run(&model, &mut d, 4).iter().filter(|(_, r)| r.is_ok()).count(), 4);
    assert_eq!((d.change(), d.fault()), (None, None));
}

#[test]
fn a_cache_that_a_reset_switched_on_is_flushed() {
    for setup in setups() {
        let drive = DriveSetup { cache: false, cache_returns: true, ..DriveSetup::default() };
        let (model, mut d) = one(setup, drive);
        d.interrupts_enable(true);
        assert!(!d.info(D0).unwrap().write_cache);
        model.stick_sector(0, 8, 1);
        reads(&mut d, 3);
        assert_eq!(run(&model, &mut d, 3).len(), 3);
        assert!(d.info(D0).unwrap().write_cache && model.drive(0, |d| d.resets.0) > 0);
        model.store(page(0), &pattern(7));
        submit(&mut d, WRITE, 0, 0);
        d.kick();
        assert_eq!(run(&model, &mut d, 1), [(0, Ok(()))]);
        flush(&mut d, 1);
        d.kick();
        assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
        assert_eq!(model.sector(0, 0, true), pattern(7)[..512]);
    }
}

#[test]
fn what_missed_its_deadline_is_tried_one_by_one() {
    let (model, mut d) = one(Setup::default(), DriveSetup { latency_us: 1_000, ..DriveSetup::default() });
    d.interrupts_enable(true);
    (0..4).for_each(|i| model.stick_sector(0, i * 8, 1));
    reads(&mut d, 4);
    while d.stats(D0).recoveries == 0 || d.coming().next().is_some() {
        d.tick();
        model.advance_us(200);
    }
    for i in 0..4 {
        assert_eq!((model.peek(0x134) | model.peek(0x138)).count_ones(), 1);
        assert_eq!(run(&model, &mut d, 1), [(i, Ok(()))]);
    }
}
