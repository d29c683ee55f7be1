use super::*;
use blkback::disk::SubmitError;

const WRITE: Op = Op::Write { fua: false };
const FUA: Op = Op::Write { fua: true };

fn drives() -> Vec<DriveSetup> {
    let normal = DriveSetup::default();
    vec![
        normal.clone(),
        DriveSetup { queue_depth: 0, ..normal.clone() },
        DriveSetup { sector_size: 4096, ..normal.clone() },
        DriveSetup { queue_depth: 0, sector_size: 4096, fua: false, ..normal.clone() },
        DriveSetup { cache: false, ..normal.clone() },
        DriveSetup { latency_us: 700, fua: false, ..normal },
    ]
}

#[test]
fn what_is_written_is_read_on_every_drive() {
    for setup in setups() {
        for drive in drives() {
            let (model, mut d) = one(setup, drive);
            d.interrupts_enable(true);
            let info = *d.info(D0).unwrap();
            for i in 0..info.depth.into() {
                model.store(page(i as usize), &pattern(i as u8));
                submit(&mut d, WRITE, u64::from(i) * 8, i);
            }
            assert_eq!(d.room(D0), 0);
            d.kick();
            let done = run(&model, &mut d, info.depth.into());
            assert_eq!(done, (0..info.depth.into()).map(|i| (i, Ok(()))).collect::<Vec<_>>());
            for i in 0..info.depth.into() {
                model.store(page(i as usize), &[0; 4096]);
                submit(&mut d, Op::Read, u64::from(i) * 8, i);
            }
            d.kick();
            assert_eq!(run(&model, &mut d, info.depth.into()).len(), info.depth.into());
            for i in 0..info.depth.into() {
                assert_eq!(model.load(page(i as usize), 4096), pattern(i as u8));
            }
            let s = d.stats(D0);
            let bytes = u64::from(info.depth) * 4096;
            assert_eq!((s.commands, s.read_bytes, s.written_bytes), (2 * u64::from(info.depth), bytes, bytes));
            assert_eq!((s.errors, s.recoveries, d.fault()), (0, 0, None));
        }
    }
}

#[test]
fn the_drive_is_described() {
    let (_, d) = one(QEMU, DriveSetup { sector_size: 4096, queue_depth: 20, ..DriveSetup::default() });
    let info = d.info(D0).unwrap();
    assert_eq!((d.drives(), info.depth, info.sectors, info.sector_size), (6, 20, 0x1_0000_0000, 4096));
    assert_eq!((info.write_cache, info.fua, info.max_discard), (true, true, 64 * 65535));
    assert_eq!(&info.serial, b"MODEL-1             ");
    assert!(d.info(D1).is_none() && d.room(D1) == 0);
}

#[test]
fn a_flush_covers_what_was_done_and_only_then_is_it_durable() {
    for setup in setups() {
        for drive in drives() {
            let (cache, fua) = (drive.cache, drive.fua);
            let (model, mut d) = one(setup, drive);
            let step = u64::from(4096 / d.info(D0).unwrap().sector_size);
            model.store(page(0), &pattern(1));
            submit(&mut d, WRITE, 0, 0);
            d.kick();
            run(&model, &mut d, 1);
            assert_eq!(model.sector(0, 0, true) == model.sector(0, 0, false), !cache);
            flush(&mut d, 1);
            d.kick();
            assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
            assert_eq!(model.drive(0, |d| d.flushes), u32::from(cache), "none where there is no cache");
            assert_eq!(model.sector(0, 0, true), model.sector(0, 0, false));

            model.store(page(2), &pattern(2));
            submit(&mut d, FUA, step, 2);
            d.kick();
            assert_eq!(run(&model, &mut d, 1), [(2, Ok(()))]);
            model.cut_power(0);
            assert_eq!(model.sector(0, step, false)[..512], pattern(2)[..512]);
            assert_eq!(model.drive(0, |d| d.flushes), u32::from(cache) * (1 + u32::from(!fua)));
            assert_eq!(d.stats(D0).flushes, 1, "a flush of the driver's own is not counted");
            assert_eq!(d.stats(D0).written_bytes, 8192);
        }
    }
}

#[test]
fn a_flush_goes_alone_and_neither_starves_nor_is_overtaken() {
    for setup in setups() {
        let (model, mut d) = one(setup, DriveSetup { latency_us: 1000, ..DriveSetup::default() });
        model.drive(0, |d| d.commands.clear());
        for i in 0..4 {
            submit(&mut d, WRITE, u64::from(i) * 8, i);
        }
        d.kick();
        flush(&mut d, 10);
        submit(&mut d, Op::Read, 0, 11);
        flush(&mut d, 12);
        d.kick();
        // The model panics when a flush meets queued commands.
        assert_eq!(run(&model, &mut d, 7).len(), 7);
        let order: Vec<u8> = model.drive(0, |d| d.commands.iter().map(|c| c.0).collect());
        assert_eq!(order, [0x61, 0x61, 0x61, 0x61, 0xea, 0x60], "the second flush rides on the first");
    }
}

#[test]
fn a_discard_is_one_command_with_ranges() {
    for setup in setups() {
        let (model, mut d) = one(setup, DriveSetup::default());
        for i in 0..3 {
            model.store(page(i), &pattern(9));
            submit(&mut d, WRITE, [0, 65_535 + 80, 200_000][i], i as u32);
        }
        d.kick();
        run(&model, &mut d, 3);
        d.submit(D0, &Command { op: Op::Discard, sector: 8, sectors: 65_535 + 80, segments: &[] }, 5).unwrap();
        d.kick();
        assert_eq!(run(&model, &mut d, 1), [(5, Ok(()))]);
        let there = |lba| model.sector(0, lba, false) != vec![0; 512];
        // The range ends before 65,623: the first eight sectors and the last of the second write stay.
        assert_eq!([0, 7, 65_615, 65_622, 200_000].map(there), [true, true, false, false, true]);
        let (model, mut d) = one(setup, DriveSetup { trim: false, ..DriveSetup::default() });
        assert_eq!(d.info(D0).unwrap().max_discard, 0);
        let discard = Command { op: Op::Discard, sector: 0, sectors: 8, segments: &[] };
        assert_eq!(d.submit(D0, &discard, 0), Err(SubmitError::Unsupported));
        drop(model);
    }
}

#[test]
fn segments_are_scattered_and_neighbours_joined() {
    let (model, mut d) = one(Setup::default(), DriveSetup::default());
    model.store(page(0), &pattern(1));
    model.store(page(1), &pattern(2));
    // Pages 1 and 0, then 0 and 1 as neighbours in pieces of 512 bytes.
    let apart = [Segment { addr: page(1), len: 4096 }, Segment { addr: page(0), len: 4096 }];
    let pieces: Vec<Segment> = (0..16).map(|i| Segment { addr: page(0) + i * 512, len: 512 }).collect();
    for (token, segments) in [(0, &apart[..]), (1, &pieces[..])] {
        let sector = u64::from(token) * 16;
        d.submit(D0, &Command { op: WRITE, sector, sectors: 16, segments }, token).unwrap();
    }
    // PRDTL in the headers, written when they are issued.
    d.kick();
    let prds = |slot: usize| blkback::disk::DmaMemory::read(&model, slot * 32) >> 16;
    assert_eq!([prds(0), prds(1)], [2, 1]);
    assert_eq!(run(&model, &mut d, 2).len(), 2);
    assert_eq!(model.sector(0, 0, false), pattern(2)[..512]);
    assert_eq!(model.sector(0, 8, false), pattern(1)[..512]);
    assert_eq!(model.sector(0, 16, false), pattern(1)[..512]);
    // Neighbours beyond 4 MiB are not one region.
    let big = [Segment { addr: 0x1000_0000, len: 4 << 20 }, Segment { addr: 0x1040_0000, len: 4 << 20 }];
    d.submit(D0, &Command { op: Op::Read, sector: 0, sectors: 16384, segments: &big }, 9).unwrap();
    d.kick();
    assert_eq!(prds(0), 2);
}

#[test]
fn commands_outside_of_the_drive_or_with_bad_segments_are_refused() {
    let (model, mut d) = one(Setup { wide: false, ..Setup::default() }, DriveSetup::default());
    let seg = |addr, len| Segment { addr, len };
    let end = d.info(D0).unwrap().sectors;
    let mut refused = |op, sector, sectors, segments: &[Segment]| {
        d.submit(D0, &Command { op, sector, sectors, segments }, 0).unwrap_err()
    };
    let one = [seg(page(0), 512)];
    for (sector, sectors) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 3), (0, 0), (0, 0x1_0000)] {
        for op in [Op::Read, WRITE] {
            assert_eq!(refused(op, sector, sectors, &one), SubmitError::BadRange { sector, sectors });
        }
    }
    assert!(matches!(refused(Op::Discard, end - 1, 2, &[]), SubmitError::BadRange { .. }));
    assert!(matches!(refused(Op::Discard, 0, 64 * 65535 + 1, &[]), SubmitError::BadRange { .. }));
    assert!(matches!(refused(Op::Flush, 1, 0, &[]), SubmitError::BadRange { .. }));
    let many = vec![seg(page(0), 4); 129];
    let bad: [&[Segment]; 10] = [
        &[],
        &[seg(page(0), 1024)],
        &[seg(page(0), 256)],
        &[seg(page(0) + 2, 512)],
        &[seg(page(0), 510), seg(page(1), 2)],
        &[seg(page(0), 512), seg(page(1), 0)],
        &[seg(u64::MAX - 511, 512)],
        &[seg(1 << 32, 512)],
        &[seg((1 << 32) - 256, 512)],
        &many,
    ];
    for segments in bad {
        assert_eq!(refused(Op::Read, 0, 1, segments), SubmitError::BadSegments(segments.len()), "{segments:?}");
    }
    assert_eq!(refused(Op::Read, 0, 16384, &[seg(0, 8 << 20)]), SubmitError::BadSegments(1));
    assert_eq!(refused(Op::Flush, 0, 0, &one), SubmitError::BadSegments(1));
    assert_eq!(refused(Op::Discard, 0, 1, &one), SubmitError::BadSegments(1));
    let read = Command { op: Op::Read, sector: end - 1, sectors: 1, segments: &one };
    assert_eq!(d.submit(D1, &read, 0), Err(SubmitError::NoDrive(D1)));
    assert_eq!(d.submit(DriveId(200), &read, 0), Err(SubmitError::NoDrive(DriveId(200))));
    for token in 0..32 {
        d.submit(D0, &read, token).unwrap();
    }
    assert_eq!(d.submit(D0, &read, 32), Err(SubmitError::Full));
    d.kick();
    assert_eq!(run(&model, &mut d, 32).len(), 32);
}

#[test]
fn interrupts_come_once_and_only_when_wanted() {
    for setup in setups() {
        let (model, mut d) = one(setup, DriveSetup { latency_us: 50, ..DriveSetup::default() });
        submit(&mut d, Op::Read, 0, 0);
        d.kick();
        model.advance_us(100);
        assert!(!model.line(), "off");
        assert_eq!(over(&mut d).len(), 1);
        d.interrupts_enable(true);
        assert!(!model.line(), "what was polled does not interrupt");
        submit(&mut d, Op::Read, 0, 1);
        flush(&mut d, 2);
        d.kick();
        model.advance_us(100);
        assert!(model.line());
        d.interrupt();
        assert!(!model.line());
        assert_eq!(over(&mut d).len(), 1);
        model.advance_us(100);
        assert!(model.line(), "the flush that waited was given by the interrupt");
        d.interrupts_enable(false);
        assert!(!model.line());
        assert_eq!(over(&mut d), [(2, Ok(()))]);
    }
}

#[test]
fn registers_are_touched_seldom() {
    let (model, mut d) = one(QEMU, DriveSetup { latency_us: 50, ..DriveSetup::default() });
    d.interrupts_enable(true);
    let _ = model.accesses();
    for i in 0..32 {
        submit(&mut d, Op::Read, 0, i);
    }
    d.kick();
    assert_eq!(model.accesses(), (0, 2), "PxSACT and PxCI");
    model.advance_us(100);
    d.interrupt();
    assert_eq!(model.accesses(), (3, 2), "IS, PxIS and PxSACT are read, PxIS and IS written");
    assert_eq!(over(&mut d).len(), 32);
    d.tick();
    assert_eq!(model.accesses(), (0, 0));
}
