use super::*;
use crate::transport::RESET_US;
use crate::{MAX_RESETS, StartError};
use blkback::disk::Fault;

#[test]
fn a_restart_over_requests_in_flight_reads_nothing_of_the_dead() {
    for setup in setups() {
        let (model, mut dead) = one(Setup { latency_us: 400, ..setup.clone() });
        let depth = u32::from(dead.info(D0).unwrap().depth);
        dead.interrupts_enable(true);
        (0..depth).for_each(|i| submit(&mut dead, WRITE, i.into(), i));
        dead.kick();
        model.advance_us(500);
        drop(dead);
        // Buffers and rings belong to somebody else now.
        model.set_master(false);
        let from = model.now_us();
        let stopped = Stopped::stop(open(&model)).unwrap();
        assert!(!model.line());
        assert_eq!(model.running(), 0);
        model.set_master(true);
        let mut d = stopped.start(model.clone(), config(&setup)).unwrap();
        assert!(model.now_us() - from <= 2 * setup.reset_us + 10);
        (0..depth).for_each(|i| submit(&mut d, WRITE, i.into(), i));
        d.kick();
        assert_eq!(run(&model, &mut d, depth as usize), fine(depth));
        assert!(model.refused().is_empty());
    }
}

#[test]
fn devices_that_cannot_be_driven_are_told_of() {
    let fails = |setup: Setup| {
        let model = Model::new(setup.clone());
        Stopped::stop(open(&model)).unwrap().start(model.clone(), config(&setup)).unwrap_err()
    };
    let usual = Setup::default;
    // Its DMA would pass the IOMMU by.
    assert!(matches!(fails(usual().without(&[model::ACCESS_PLATFORM])), StartError::Features(_)));
    assert!(matches!(fails(usual().without(&[model::VERSION_1])), StartError::Features(_)));
    assert_eq!(fails(Setup { refuses: true, ..usual() }), StartError::Refused);
    assert_eq!(fails(Setup { restless: true, ..usual() }), StartError::Unreadable);
    assert_eq!(fails(Setup { no_vector: true, ..usual() }), StartError::Vector);
    assert!(matches!(fails(Setup { blk_size: 2048, ..usual() }), StartError::Drive(_)));
    assert!(matches!(fails(Setup { capacity: 0, ..usual() }), StartError::Drive(_)));
    assert!(matches!(fails(Setup { size_max: 100, ..usual().with(model::SIZE_MAX) }), StartError::Drive(_)));
    assert_eq!(fails(Setup { queue_size: 0, ..usual() }), StartError::Queue(0));
    assert_eq!(fails(Setup { queue_size: 1, ..usual() }), StartError::Queue(1));
    assert_eq!(fails(Setup { queue_size: 2, ..usual().without(&[model::INDIRECT]) }), StartError::Queue(2));
    let text = format!("{}", fails(usual().without(&[model::ACCESS_PLATFORM])));
    assert!(text.contains("iommu_platform=on"), "it says the remedy: {text}");
}

#[test]
fn the_smallest_queues_work() {
    for (queue_size, features) in [(2, vec![]), (3, vec![]), (4, vec![model::INDIRECT]), (8, vec![model::INDIRECT])] {
        let (model, mut d) = one(Setup { queue_size, ..Setup::default().without(&features) });
        assert_eq!(d.room(D0), 1);
        for i in 0..10 {
            submit(&mut d, WRITE, i.into(), i);
            d.kick();
            assert_eq!(run(&model, &mut d, 1), [(i, Ok(()))]);
        }
    }
}

#[test]
fn a_device_that_does_not_come_out_of_its_reset_is_given_up_in_time() {
    let model = Model::new(Setup::default());
    model.stick_reset(true);
    let from = model.now_us();
    // It was at work: its status is not 0 before.
    let running = Model::new(Setup::default());
    let driver = start(&running, &Setup::default());
    drop(driver);
    running.stick_reset(true);
    assert_eq!(Stopped::stop(open(&running)).err(), Some(ResetError::Timeout { waited_us: RESET_US }));
    assert_eq!(model.now_us(), from);
    running.vanish();
    assert_eq!(Stopped::stop(open(&running)).err(), Some(ResetError::Gone));

    // While it runs: a command is late, the device does not reset.
    let (model, mut d) = one(Setup::default());
    model.stick_sector(0, 1);
    submit(&mut d, Op::Read, 0, 0);
    d.kick();
    model.stick_reset(true);
    assert!(run(&model, &mut d, 1).is_empty());
    assert_eq!(d.fault(), Some(Fault::PortStuck(D0)));
    assert!(matches!(d.reset(), Err(ResetError::Timeout { .. })));
    model.stick_reset(false);
    model.advance_us(1);
    d.reset().unwrap();
    submit(&mut d, Op::Read, 0, 0);
    d.kick();
    assert_eq!(run(&model, &mut d, 1), fine(1));
}

#[test]
fn a_device_that_is_another_after_its_reset_is_gone() {
    let (model, mut d) = one(Setup::default());
    model.change(|setup| setup.capacity -= 8);
    assert_eq!(d.reset(), Err(ResetError::Gone));
}

#[test]
fn resets_end_some_time_and_a_command_makes_them_count_anew() {
    let (model, mut d) = one(Setup::default());
    for _ in 0..MAX_RESETS {
        submit(&mut d, Op::Read, 0, 0);
        d.reset().unwrap();
        assert_eq!((d.completed(), d.room(D0)), (None, 64), "what was before is forgotten");
    }
    assert_eq!(d.reset(), Err(ResetError::TooMany(MAX_RESETS)));
    submit(&mut d, Op::Read, 0, 0);
    d.kick();
    assert_eq!(run(&model, &mut d, 1), fine(1));
    d.reset().unwrap();
}

#[test]
fn memory_that_does_not_do_is_refused() {
    struct Small;
    impl blkback::disk::DmaMemory for Small {
        fn device_addr(&self) -> u64 {
            0x1000
        }
        fn len_bytes(&self) -> usize {
            0x1000
        }
        fn read(&self, _: usize) -> u32 {
            0
        }
        fn load_acquire(&self, _: usize) -> u32 {
            0
        }
        fn write(&self, _: usize, _: u32) {}
        fn fence(&self) {}
    }
    let model = Model::new(Setup::default());
    let stopped = Stopped::stop(open(&model)).unwrap();
    let error = stopped.start(Small, Config::default()).err();
    assert_eq!(error, Some(StartError::Reset(ResetError::BadMemory { addr: 0x1000, len: 0x1000 })));
}

#[test]
fn dma_fault_injection_writes_where_told() {
    for setup in setups() {
        for busy in [false, true] {
            let (model, mut d) = one(Setup { latency_us: 500, ..setup.clone() });
            if busy {
                (0..d.room(D0) as u32).for_each(|i| submit(&mut d, Op::Read, i.into(), i));
                d.kick();
                model.advance_us(2_000);
            }
            d.point_dma_at(0x9000_0000);
            model.advance_us(2_000);
            assert!(model.refused().iter().any(|r| r.addr == 0x9000_0000 && r.write));
        }
    }
}
