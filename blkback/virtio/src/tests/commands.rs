use super::*;

#[test]
fn what_is_written_is_read_on_every_device() {
    for setup in setups() {
        let (model, mut d) = one(setup);
        let depth = u32::from(d.info(D0).unwrap().depth);
        for round in 0..40 {
            for i in 0..depth {
                model.store(page(i), &pattern((i + round) as u8));
                submit(&mut d, WRITE, u64::from(i), i);
            }
            assert_eq!(d.room(D0), 0);
            assert_eq!(
                d.submit(D0, &Command { op: Op::Flush, sector: 0, sectors: 0, segments: &[] }, 99),
                Err(SubmitError::Full)
            );
            d.kick();
            assert_eq!(run(&model, &mut d, depth as usize), fine(depth));
            for i in 0..depth {
                model.store(page(i), &[0; 4096]);
                submit(&mut d, Op::Read, u64::from(i), i);
            }
            d.kick();
            assert_eq!(run(&model, &mut d, depth as usize), fine(depth));
            for i in 0..depth {
                assert_eq!(model.load(page(i), 4096), pattern((i + round) as u8));
            }
        }
        let s = d.stats(D0);
        let bytes = 40 * u64::from(depth) * 4096;
        assert_eq!((s.commands, s.read_bytes, s.written_bytes), (80 * u64::from(depth), bytes, bytes));
        assert_eq!((s.errors, s.recoveries, d.fault()), (0, 0, None));
        assert!(model.refused().is_empty());
    }
}

#[test]
fn the_drive_is_described() {
    let (model, d) = one(Setup { blk_size: 4096, exponent: 2, capacity: 803, ..Setup::default().with(model::RO) });
    let info = d.info(D0).unwrap();
    assert_eq!((d.drives(), info.sectors, info.sector_size, info.physical_sector_size), (1, 100, 4096, 16384));
    assert_eq!((info.depth, info.max_segments, info.max_discard, info.discard_granularity), (64, 128, 1 << 17, 1));
    assert_eq!((info.write_cache, info.fua, info.read_only), (true, false, true));
    assert!(d.info(DriveId(1)).is_none() && d.room(DriveId(1)) == 0);
    let known: &[u32] = &[
        model::SEG_MAX,
        model::RO,
        model::BLK_SIZE,
        model::FLUSH,
        model::TOPOLOGY,
        model::CONFIG_WCE,
        model::DISCARD,
        model::INDIRECT,
        model::EVENT_IDX,
        model::VERSION_1,
        model::ACCESS_PLATFORM,
    ];
    assert_eq!(model.agreed(), known.iter().fold(0, |all, bit| all | 1 << bit), "nothing that it does not know");

    let bare = [
        model::SEG_MAX,
        model::BLK_SIZE,
        model::FLUSH,
        model::TOPOLOGY,
        model::CONFIG_WCE,
        model::DISCARD,
        model::INDIRECT,
        model::EVENT_IDX,
    ];
    let (_, d) = one(Setup { blk_size: 77, seg_max: 0, ..Setup::default().without(&bare) });
    let info = d.info(D0).unwrap();
    assert_eq!((info.sector_size, info.max_segments, info.max_discard, info.write_cache), (512, 1, 0, false));
    let (_, d) = one(Setup { size_max: 1500, ..Setup::default().with(model::SIZE_MAX) });
    assert_eq!(d.info(D0).unwrap().max_segment, 1024);
}

#[test]
fn a_flush_covers_what_was_done_and_a_forced_write_is_followed_by_one() {
    for setup in setups() {
        let (model, mut d) = one(setup);
        let cache = d.info(D0).unwrap().write_cache;
        model.store(page(0), &pattern(1));
        submit(&mut d, WRITE, 0, 0);
        d.kick();
        run(&model, &mut d, 1);
        assert_eq!(model.sector(0, true) == model.sector(0, false), !cache);
        flush(&mut d, 1);
        d.kick();
        assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
        assert_eq!(model.sector(0, true), pattern(1)[..512]);

        model.log();
        model.store(page(2), &pattern(2));
        submit(&mut d, FUA, 1, 2);
        d.kick();
        assert_eq!(run(&model, &mut d, 1), [(2, Ok(()))]);
        model.cut_power();
        assert_eq!(model.sector(8, false), pattern(2)[..512]);
        assert_eq!(model.log(), if cache { vec![1, 4] } else { vec![1] }, "none where there is no cache");
        assert_eq!((d.stats(D0).flushes, d.stats(D0).written_bytes), (1, 8192), "the driver's own is not counted");
    }
}

#[test]
fn a_discard_forgets_its_sectors_and_no_other() {
    for blk_size in [512, 4096] {
        let (model, mut d) = one(Setup { blk_size, ..Setup::default() });
        for i in 0..3 {
            model.store(page(i), &pattern(9));
            submit(&mut d, WRITE, u64::from(i), i);
        }
        d.kick();
        run(&model, &mut d, 3);
        let ratio = 4096 / blk_size;
        let one = Command { op: Op::Discard, sector: ratio.into(), sectors: ratio, segments: &[] };
        d.submit(D0, &one, 7).unwrap();
        d.kick();
        assert_eq!(run(&model, &mut d, 1), [(7, Ok(()))]);
        let kept: Vec<bool> = [0, 7, 8, 15, 16].map(|s| model.sector(s, false) != [0; 512]).into();
        assert_eq!(kept, [true, true, false, false, true]);
    }
}

#[test]
fn short_requests_are_chains_and_long_ones_tables() {
    let (model, mut d) = one(Setup::default());
    for (count, chains) in [(1, (3, 0)), (2, (4, 0)), (3, (5, 1)), (128, (130, 1))] {
        let segments: Vec<Segment> =
            (0..count).map(|i| Segment { addr: page(i % 64) + u64::from(i / 64) * 512, len: 512 }).collect();
        for op in [WRITE, Op::Read] {
            d.submit(D0, &Command { op, sector: 0, sectors: count, segments: &segments }, 1).unwrap();
            d.kick();
            assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
            assert_eq!(model.chains(), chains);
        }
    }
    let (model, mut d) = one(Setup::default().without(&[model::INDIRECT]));
    let info = *d.info(D0).unwrap();
    assert_eq!((info.depth, info.max_segments), (8, 30));
    let segments: Vec<Segment> = (0..30).map(|i| Segment { addr: page(i), len: 512 }).collect();
    d.submit(D0, &Command { op: Op::Read, sector: 0, sectors: 30, segments: &segments }, 1).unwrap();
    d.kick();
    assert_eq!((run(&model, &mut d, 1), model.chains()), (vec![(1, Ok(()))], (32, 0)));
}

#[test]
fn segments_go_where_they_belong() {
    let (model, mut d) = one(Setup::default());
    model.store(page(0), &pattern(1));
    let pieces = [(1024, 512), (0, 1024), (3000, 512)].map(|(at, len)| Segment { addr: page(0) + at, len });
    d.submit(D0, &Command { op: WRITE, sector: 100, sectors: 4, segments: &pieces }, 1).unwrap();
    d.kick();
    assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
    let p = pattern(1);
    assert_eq!(model.sector(100, false), p[1024..1536]);
    assert_eq!([model.sector(101, false), model.sector(102, false)].concat(), p[..1024]);
    assert_eq!(model.sector(103, false), p[3000..3512]);
}

#[test]
fn what_is_outside_of_the_drive_or_not_sound_is_refused() {
    let (model, mut d) = one(Setup { capacity: 1000, seg_max: 2, ..Setup::default() });
    let one = Segment { addr: page(0), len: 512 };
    let mut check = |op, sector, sectors, segments: &[Segment]| {
        d.submit(D0, &Command { op, sector, sectors, segments }, 1).unwrap_err()
    };
    let range = |sector, sectors| SubmitError::BadRange { sector, sectors };
    assert_eq!(check(Op::Read, 1000, 1, &[one]), range(1000, 1));
    assert_eq!(check(Op::Read, u64::MAX, 2, &[one]), range(u64::MAX, 2));
    assert_eq!(check(WRITE, 0, 0, &[]), range(0, 0));
    assert_eq!(check(Op::Flush, 1, 0, &[]), range(1, 0));
    assert_eq!(check(Op::Discard, 999, 2, &[]), range(999, 2));
    assert_eq!(check(Op::Discard, 0, 1, &[one]), SubmitError::BadSegments(1));
    assert_eq!(check(Op::Read, 0, 2, &[one]), SubmitError::BadSegments(1));
    assert_eq!(check(Op::Read, 0, 3, &[one, one, one]), SubmitError::BadSegments(3));
    let empty = Segment { len: 0, ..one };
    assert_eq!(check(Op::Read, 0, 1, &[one, empty]), SubmitError::BadSegments(2));
    let wraps = Segment { addr: u64::MAX - 100, len: 512 };
    assert_eq!(check(Op::Read, 0, 1, &[wraps]), SubmitError::BadSegments(1));
    assert_eq!(
        d.submit(DriveId(1), &Command { op: Op::Flush, sector: 0, sectors: 0, segments: &[] }, 1),
        Err(SubmitError::NoDrive(DriveId(1)))
    );
    d.kick();
    assert_eq!((model.running(), d.room(D0)), (0, 64));

    let (_, mut d) = one_read_only();
    let refused =
        [WRITE, Op::Discard].map(|op| d.submit(D0, &Command { op, sector: 0, sectors: 1, segments: &[one] }, 1));
    assert_eq!(refused, [Err(SubmitError::Unsupported); 2]);
    let (_, mut d) = super::one(Setup::default().without(&[model::DISCARD]));
    let discard = d.submit(D0, &Command { op: Op::Discard, sector: 0, sectors: 1, segments: &[] }, 1);
    assert_eq!(discard, Err(SubmitError::Unsupported));
}

fn one_read_only() -> (Model, Driver) {
    one(Setup::default().with(model::RO))
}

#[test]
fn neither_side_signals_more_than_it_must() {
    for setup in setups() {
        let eager = setup.eager;
        let (model, mut d) = one(setup);
        let depth = u32::from(d.info(D0).unwrap().depth).min(32);
        (0..depth).for_each(|i| submit(&mut d, Op::Read, i.into(), i));
        d.kick();
        d.kick();
        assert_eq!(model.signals().1, 1, "one notification for all of them");
        // More, one by one, while it works: a device that looks by itself is not told.
        let mut done = 0;
        for i in depth..depth + 8 {
            if d.room(D0) == 0 {
                break;
            }
            submit(&mut d, Op::Read, i.into(), i);
            d.kick();
        }
        if eager {
            assert_eq!(model.signals().1, 0);
        }
        // Polled, it does not interrupt.
        for _ in 0..100_000 {
            model.advance_us(10);
            done += over(&mut d).len();
        }
        assert!(done >= depth as usize);
        assert_eq!(model.signals().0, 0, "interrupts were not asked for");
        submit(&mut d, Op::Read, 0, 0);
        d.kick();
        assert_eq!(run(&model, &mut d, 1), fine(1));
        assert!(model.signals().0 <= 1);
    }
}

#[test]
fn indices_wrap_and_nothing_is_lost() {
    for setup in setups() {
        let (model, mut d) = one(setup);
        let info = *d.info(D0).unwrap();
        if !info.write_cache {
            continue; // A flush would not reach it.
        }
        let depth = u32::from(info.depth);
        // Batches that are no divisor of 2^16, so that one lies across.
        let batch = depth - 1;
        for _ in 0..70_000 / batch {
            (0..batch).for_each(|i| flush(&mut d, i));
            d.kick();
            assert_eq!(run(&model, &mut d, batch as usize).len(), batch as usize);
        }
        assert_eq!((d.fault(), d.stats(D0).recoveries), (None, 0));
    }
}
