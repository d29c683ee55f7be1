use super::*;
use crate::{MAX_RESETS, Unserved};
use blkback::disk::{Clock, Fault, ResetError};

#[test]
fn a_restart_over_commands_in_flight_takes_a_millisecond_and_no_link_reset() {
    for setup in setups() {
        let drive = DriveSetup { latency_us: 400, ..DriveSetup::default() };
        let (model, mut dead) = one(setup, drive);
        dead.interrupts_enable(true);
        for i in 0..32 {
            submit(&mut dead, Op::Write { fua: false }, u64::from(i) * 8, i);
        }
        dead.kick();
        drop(dead);
        // Buffers and command lists belong to somebody else now.
        model.set_master(false);
        let from = model.now_us();
        let stopped = Stopped::stop(model.clone(), model.clone()).unwrap();
        assert!(!model.line());
        model.set_master(true);
        let mut d = stopped.start(model.clone(), Config::default()).unwrap();
        submit(&mut d, Op::Read, 0, 1);
        d.kick();
        let took = model.now_us() - from;
        assert!(took < 2_000, "{took} us");
        assert_eq!(model.drive(0, |d| d.resets), (1, 1), "by link where nothing was known, then by FIS");
        assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
        assert!(model.refused().is_empty(), "nothing of the dead one was read");
    }
}

#[test]
fn a_restart_over_a_command_that_is_not_queued_works_as_well() {
    for setup in setups() {
        let (model, mut dead) = one(setup, DriveSetup { queue_depth: 0, ..DriveSetup::default() });
        model.stick_sector(0, 0, 1);
        submit(&mut dead, Op::Read, 0, 0);
        dead.kick();
        drop(dead);
        let from = model.now_us();
        let mut d = start(&model);
        submit(&mut d, Op::Read, 0, 1);
        d.kick();
        assert!(model.now_us() - from < 5_000);
        assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
    }
}

/// Stops with bus mastership taken away and starts with it, as the hypervisor and the wiring do; what was refused with it on.
fn restart(model: &Model) -> (Driver, Vec<crate::model::Refused>) {
    model.set_master(false);
    let stopped = Stopped::stop(model.clone(), model.clone()).unwrap();
    // Without mastership nothing gets as far as the IOMMU.
    let _ = model.refused();
    model.set_master(true);
    let d = stopped.start(model.clone(), Config::default()).unwrap();
    model.advance_us(100_000);
    (d, model.refused())
}

#[test]
fn a_command_that_is_alone_at_a_death_neither_delays_nor_disturbs_the_next_life() {
    for setup in setups() {
        for (op, queue_depth) in [(Op::Flush, 32), (Op::Read, 0), (Op::Discard, 32)] {
            for latency_us in [600, 1_020, 1_100, 5_000, 50_000] {
                let (model, mut dead) = one(setup, DriveSetup { queue_depth, latency_us, ..DriveSetup::default() });
                match op {
                    Op::Read => submit(&mut dead, op, 0, 0),
                    Op::Flush => flush(&mut dead, 0),
                    _ => dead.submit(D0, &Command { op, sector: 0, sectors: 8, segments: &[] }, 0).unwrap(),
                }
                dead.kick();
                drop(dead);
                let from = model.now_us();
                let (mut d, refused) = restart(&model);
                assert!(d.info(D0).is_some() && refused.is_empty());
                submit(&mut d, Op::Read, 0, 1);
                d.kick();
                assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
                let took = model.now_us() - from - 100_000;
                assert!(took < 5_000 + latency_us * 4, "{setup:?} {op:?} {latency_us}: {took} us");
            }
        }
    }
}

#[test]
fn a_stray_read_of_a_dead_life_is_over_before_the_next_one_may_reach_memory() {
    for setup in setups() {
        // Beside nothing, beside queued commands, with every tag taken (which on hardware is refused), behind a flush.
        for (reads, flushes) in [(0, 0), (5, 0), (32, 0), (0, 1)] {
            if reads == 32 && !setup.qemu {
                continue;
            }
            for latency_us in [300, 3_000, 30_000] {
                let (model, mut dead) = one(setup, DriveSetup { latency_us, ..DriveSetup::default() });
                (0..reads).for_each(|i| submit(&mut dead, Op::Read, u64::from(i) * 8, i));
                (0..flushes).for_each(|i| flush(&mut dead, i));
                dead.kick();
                dead.point_dma_at(0x9000_0000);
                drop(dead);
                let (mut d, refused) = restart(&model);
                assert!(refused.is_empty(), "{setup:?}: {refused:x?}");
                submit(&mut d, Op::Read, 0, 1);
                d.kick();
                assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
            }
        }
    }
}

#[test]
fn commands_of_a_dead_life_that_ended_untold_end_none_of_the_next() {
    // When all of them end: before the port is stopped, while nobody receives, while the next life resets the drive.
    for (setup, latency_us) in setups().into_iter().flat_map(|s| [(s, 100), (s, 400), (s, 3_000)]) {
        for known in [true, false] {
            let (model, mut dead) = one(setup, DriveSetup { latency_us, ..DriveSetup::default() });
            (0..32).for_each(|i| submit(&mut dead, Op::Read, u64::from(i) * 8, i));
            dead.kick();
            if !known {
                // A port that does not listen is one of which the next life knows nothing.
                blkback::disk::Mmio::write32(&model, 0x114, 0);
            }
            drop(dead);
            model.advance_us(200);
            model.set_master(false);
            let stopped = Stopped::stop(model.clone(), model.clone()).unwrap();
            model.advance_us(400);
            model.set_master(true);
            let mut d = stopped.start(model.clone(), Config::default()).unwrap();
            let mut ended = Vec::new();
            for i in 0..4 {
                submit(&mut d, Op::Read, u64::from(i) * 8, i);
                d.kick();
                model.advance_us(latency_us / 4);
                d.interrupt();
                ended.extend(over(&mut d));
            }
            assert!(
                ended.len() <= 1,
                "{setup:?} {latency_us} {known}: {ended:?} of four that began one after the other"
            );
            assert_eq!(ended.len() + run(&model, &mut d, 4 - ended.len()).len(), 4);
        }
    }
}

#[test]
fn a_drive_whose_first_sector_cannot_be_read_comes_up_all_the_same() {
    for setup in setups() {
        for sector_size in [512, 4096] {
            let drive = DriveSetup { latency_us: 300, sector_size, ..DriveSetup::default() };
            let (model, mut dead) = one(setup, drive);
            submit(&mut dead, Op::Read, 8, 0);
            dead.kick();
            drop(dead);
            model.break_sector(0, 0, 1);
            let (mut d, refused) = restart(&model);
            assert!(d.info(D0).is_some() && refused.is_empty());
            submit(&mut d, Op::Read, 0, 1);
            d.kick();
            assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))], "it failed once, the driver's own read");
            assert_eq!(model.drive(0, |d| d.resets), (2, 1), "by FIS after the error");
        }
    }
}

#[test]
fn a_death_while_a_drive_is_brought_up_leaves_nothing_unknown() {
    for setup in setups() {
        let (model, mut dead) = one(setup, DriveSetup { latency_us: 4_000, ..DriveSetup::default() });
        (0..8).for_each(|i| submit(&mut dead, Op::Write { fua: false }, u64::from(i) * 8, i));
        dead.kick();
        drop(dead);
        // The next life stops the port, starts the list and dies.
        let _ = Stopped::stop(model.clone(), model.clone()).unwrap();
        let cmd = model.peek(0x118);
        blkback::disk::Mmio::write32(&model, 0x118, cmd | 1 << 4);
        blkback::disk::Mmio::write32(&model, 0x118, cmd | 1 << 4 | 1);
        let before = model.drive(0, |d| d.resets.1);
        let (mut d, refused) = restart(&model);
        assert!(refused.is_empty());
        assert_eq!(model.drive(0, |d| d.resets.1), before + 1, "by link, whatever the registers say");
        submit(&mut d, Op::Read, 0, 1);
        d.kick();
        assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
    }
}

#[test]
fn an_idle_restart_resets_nothing() {
    for setup in setups() {
        let (model, dead) = one(setup, DriveSetup::default());
        drop(dead);
        let before = model.drive(0, |d| d.resets);
        let d = start(&model);
        assert!(d.info(D0).is_some());
        assert_eq!((model.drive(0, |d| d.resets), model.resets()), (before, 0));
    }
}

#[test]
fn a_predecessor_that_died_holding_comreset_is_no_problem() {
    let (model, dead) = one(Setup::default(), DriveSetup::default());
    drop(dead);
    let _ = Stopped::stop(model.clone(), model.clone()).unwrap();
    blkback::disk::Mmio::write32(&model, 0x12c, 1);
    model.advance_us(5_000);
    let d = start(&model);
    assert!(d.info(D0).is_some());
}

#[test]
fn a_port_that_does_not_stop_costs_a_reset_of_the_controller() {
    let (model, mut d) = one(Setup::default(), DriveSetup::default());
    model.stick_sector(0, 0, 1);
    submit(&mut d, Op::Read, 0, 0);
    d.kick();
    model.stick_port(0, true);
    assert!(run(&model, &mut d, 1).is_empty());
    assert_eq!(d.fault(), Some(Fault::PortStuck(D0)));
    d.reset().unwrap();
    assert_eq!(model.resets(), 1);
    submit(&mut d, Op::Read, 0, 1);
    d.kick();
    assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
}

#[test]
fn failures_to_start_say_why() {
    let stop = |model: &Model| Stopped::stop(model.clone(), model.clone());
    let model = Model::new(Setup::default(), vec![]);
    model.vanish();
    assert_eq!(stop(&model).err(), Some(ResetError::Gone));
    let (model, dead) = one(Setup::default(), DriveSetup::default());
    drop(dead);
    model.stick_port(0, true);
    model.stick_reset(true);
    assert!(matches!(stop(&model).err(), Some(ResetError::Timeout { .. })));
    let model = Model::new(Setup { bios_us: Some(u64::MAX / 2), ..Setup::default() }, vec![]);
    assert!(matches!(stop(&model).err(), Some(ResetError::Timeout { .. })));
    let model = Model::new(Setup { bios_us: Some(40_000), ..Setup::default() }, vec![]);
    assert!(stop(&model).is_ok());
}

#[test]
fn devices_that_are_no_disks_are_told_of() {
    let model = Model::new(
        Setup::default(),
        vec![Some(DriveSetup { signature: 0xeb14_0101, ..DriveSetup::default() }), Some(DriveSetup::default())],
    );
    let d = start(&model);
    assert_eq!(d.unserved(D0), Some(Unserved::Signature(0xeb14_0101)));
    assert!(d.info(D0).is_none() && d.info(D1).is_some());
}

#[test]
fn there_is_memory_for_four_drives_wherever_they_are() {
    let drives = (0..6).map(|i| (i != 0).then(DriveSetup::default)).collect();
    let d = start(&Model::new(Setup::default(), drives));
    let served: Vec<bool> = (0..6).map(|i| d.info(DriveId(i)).is_some()).collect();
    assert_eq!(served, [false, true, true, true, true, false]);
    assert_eq!(d.unserved(DriveId(5)), Some(Unserved::NoMemory));
}

#[test]
fn staggered_drives_are_told_to_spin_up() {
    let (_, d) = one(Setup { staggered: true, ..Setup::default() }, DriveSetup::default());
    assert!(d.info(D0).is_some());
}

#[test]
fn resets_end_some_time_and_a_command_makes_them_count_anew() {
    let (model, mut d) = one(Setup::default(), DriveSetup::default());
    for _ in 0..MAX_RESETS {
        d.reset().unwrap();
    }
    assert_eq!(d.reset(), Err(ResetError::TooMany(MAX_RESETS)));
    submit(&mut d, Op::Read, 0, 0);
    d.kick();
    run(&model, &mut d, 1);
    d.reset().unwrap();
}

#[test]
fn dma_fault_injection_writes_where_told() {
    for setup in setups() {
        for (reads, flushes) in [(0, 0), (5, 0), (32, 0), (0, 1)] {
            if reads == 32 && !setup.qemu {
                continue;
            }
            let (model, mut d) = one(setup, DriveSetup { latency_us: 500, ..DriveSetup::default() });
            (0..reads).for_each(|i| submit(&mut d, Op::Read, u64::from(i) * 8, i));
            (0..flushes).for_each(|i| flush(&mut d, i));
            d.kick();
            d.point_dma_at(0x9000_0000);
            (0..15).for_each(|_| model.advance_us(100));
            assert!(model.refused().iter().any(|r| r.addr == 0x9000_0000 && r.write), "{setup:?} {reads} {flushes}");
        }
    }
}

#[test]
fn an_identification_that_did_not_come_whole_is_asked_for_again() {
    for setup in setups() {
        let (model, dead) = one(setup, DriveSetup::default());
        drop(dead);
        model.lie_moved(0, 508);
        let mut d = start(&model);
        run(&model, &mut d, 0);
        assert!(d.info(D0).is_some() && d.unserved(D0).is_none());
        submit(&mut d, Op::Read, 0, 1);
        d.kick();
        assert_eq!(run(&model, &mut d, 1), [(1, Ok(()))]);
        drop(d);
        // One that never does is given up.
        model.break_command(0, 0xec, true);
        let d = start(&model);
        assert!(d.info(D0).is_none() && d.unserved(D0).is_some() && d.fault().is_none() && d.coming().count() == 0);
    }
}
