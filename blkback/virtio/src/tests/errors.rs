use super::*;
use blkback::disk::Fault;

fn reads(d: &mut Driver, count: u32) {
    (0..count).for_each(|i| submit(d, Op::Read, i.into(), i));
    d.kick();
}

#[test]
fn exactly_the_failed_commands_fail() {
    for setup in setups() {
        let (model, mut d) = one(setup);
        model.break_sector(5 * 8 + 3);
        model.break_sector(2 * 8);
        reads(&mut d, 8);
        let expect = |i| if matches!(i, 2 | 5) { IO_ERROR } else { Ok(()) };
        assert_eq!(run(&model, &mut d, 8), (0..8).map(|i| (i, expect(i))).collect::<Vec<_>>());
        submit(&mut d, FUA, 2, 2);
        submit(&mut d, FUA, 1, 1);
        d.kick();
        assert_eq!(run(&model, &mut d, 2), [(1, Ok(())), (2, IO_ERROR)]);
        assert_eq!((d.fault(), d.stats(D0).errors, d.stats(D0).recoveries), (None, 3, 0));
    }
}

#[test]
fn what_the_device_does_not_do_is_told_from_an_error() {
    let (model, mut d) = one(Setup::default());
    model.lie(Lie::Status(2));
    reads(&mut d, 1);
    assert_eq!(run(&model, &mut d, 1), [(0, Err(IoError::Unsupported))]);
    model.lie(Lie::Len(512));
    reads(&mut d, 1);
    assert_eq!(run(&model, &mut d, 1), [(0, Err(IoError::Device { status: 0, error: 0 }))], "less than was asked for");
    assert_eq!(d.fault(), None);
}

#[test]
fn a_lie_is_a_fault_and_after_a_reset_it_goes_on() {
    for setup in setups() {
        let per_slot = u32::from(setup.queue_size) / u32::from(one(setup.clone()).1.info(D0).unwrap().depth);
        let lies = [
            (Lie::Head(7 * per_slot), 7 * per_slot),
            (Lie::Head(1), 1),
            (Lie::Head(0x1_0000), 0x1_0000),
            (Lie::Head(u32::MAX), u32::MAX),
            (Lie::Head(setup.queue_size.into()), setup.queue_size.into()),
            (Lie::Len(4098), 4098),
            (Lie::Status(3), 3),
            (Lie::NoStatus, 0xff),
            (Lie::Index(6), 7),
            (Lie::Index(0x8000), 0x8001),
            (Lie::Index(0xfffd), 0xfffe),
        ];
        for (lie, found) in lies {
            let (model, mut d) = one(setup.clone());
            model.lie(lie);
            let count = if matches!(lie, Lie::Index(_)) { 1 } else { 3 };
            reads(&mut d, count);
            let done = run(&model, &mut d, 3);
            assert!(done.iter().all(|(_, result)| result.is_ok()), "{lie:?}: {done:?}");
            assert_eq!(d.fault(), Some(Fault::Impossible { drive: D0, found }), "{lie:?} on {setup:?}");
            assert_eq!((d.completed(), d.room(D0)), (None, 0));
            let segments = [Segment { addr: page(0), len: 4096 }];
            let command = Command { op: Op::Read, sector: 0, sectors: 8, segments: &segments };
            assert_eq!(d.submit(D0, &command, 9), Err(SubmitError::Faulty));
            d.reset().unwrap();
            reads(&mut d, 4);
            assert_eq!(run(&model, &mut d, 4), fine(4), "{lie:?}");
        }
    }
}

#[test]
fn a_head_named_twice_is_a_fault() {
    let (model, mut d) = one(Setup { latency_us: 1000, ..Setup::default() });
    model.lie(Lie::Twice);
    reads(&mut d, 4);
    let done = run(&model, &mut d, 4);
    assert!(done.len() <= 1 && matches!(d.fault(), Some(Fault::Impossible { .. })), "{done:?} {:?}", d.fault());
}

#[test]
fn a_command_that_does_not_end_is_tried_again_and_then_fails_alone() {
    for setup in setups() {
        for (times, ends) in [(1, Ok(())), (2, Err(IoError::Timeout))] {
            let (model, mut d) = one(setup.clone());
            model.stick_sector(3 * 8, times);
            (0..5).for_each(|i| model.store(page(i), &pattern(i as u8)));
            (0..5).for_each(|i| submit(&mut d, WRITE, i.into(), i));
            d.kick();
            let from = model.now_us();
            let done = run(&model, &mut d, 5);
            assert_eq!(done, (0..5).map(|i| (i, if i == 3 { ends } else { Ok(()) })).collect::<Vec<_>>());
            let took = model.now_us() - from;
            assert!(took < u64::from(times) * 5_200_000, "{took} us");
            assert_eq!((d.stats(D0).recoveries, d.fault()), (times.into(), None));
            reads(&mut d, 3);
            assert_eq!(run(&model, &mut d, 3), fine(3));
        }
    }
}

#[test]
fn what_was_with_the_device_is_given_again_after_its_reset() {
    let (model, mut d) = one(Setup { latency_us: 9_000_000, reset_us: 5_000, ..Setup::default() });
    (0..8).for_each(|i| submit(&mut d, WRITE, i.into(), i));
    d.kick();
    model.advance_us(3_000_000);
    (8..16).for_each(|i| submit(&mut d, WRITE, i.into(), i));
    d.kick();
    model.change(|setup| setup.latency_us = 100);
    assert_eq!(run(&model, &mut d, 16), fine(16));
    assert_eq!(
        (d.stats(D0).recoveries, model.resets()),
        (1, 4),
        "one, and one at each initialisation beside the first"
    );
}

#[test]
fn a_device_that_gave_up_or_has_gone_is_found_out() {
    for setup in setups() {
        let (model, mut d) = one(Setup { latency_us: 1_000_000, ..setup.clone() });
        reads(&mut d, 2);
        model.need_reset();
        assert!(run(&model, &mut d, 2).is_empty());
        assert_eq!(d.fault(), Some(Fault::HostBus(D0)));
        d.reset().unwrap();
        reads(&mut d, 2);
        assert_eq!(run(&model, &mut d, 2), fine(2));
        reads(&mut d, 2);
        model.vanish();
        assert!(run(&model, &mut d, 2).is_empty());
        assert_eq!(d.fault(), Some(Fault::Gone));
        assert_eq!(d.reset(), Err(ResetError::Gone));
    }
}

#[test]
fn memory_that_is_refused_is_a_fault() {
    let (model, mut d) = one(Setup::default());
    let away = [Segment { addr: 0x8000_0000, len: 4096 }];
    d.submit(D0, &Command { op: Op::Read, sector: 0, sectors: 8, segments: &away }, 1).unwrap();
    d.kick();
    run(&model, &mut d, 1);
    assert_eq!(d.fault(), Some(Fault::HostBus(D0)));
}
