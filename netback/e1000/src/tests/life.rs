use super::*;
use crate::MAX_RESETS;
use netback::nic::{Link, NicFault, ResetError, RxFilter, TxError, TxMeta};

const RCTL: usize = 0x100;
const PLAIN: TxMeta = TxMeta { checksum: None, gso: None };

fn try_start(model: &Model, before: Before) -> Result<Driver, ResetError> {
    E1000::start(model.clone(), model.clone(), model.clone(), Config::default(), before)
}

#[test]
fn start_reads_the_address_and_sets_up() {
    let model = Model::new(Quirks::default());
    // A predecessor has overwritten the station address.
    model.poke(0x5400, 0xdead_beef);
    let d = start(&model);
    assert_eq!(d.mac(), [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    assert_eq!((model.peek(0x5400), model.peek(0x5404)), (0x1200_5452, 0x8000_5634));
    assert_eq!((model.peek(0x2800), model.peek(0x2808)), (0x10_0000, 4096));
    assert_eq!((model.peek(0x3800), model.peek(0x3808)), (0x10_1000, 4096));
    // EN, MPE, BAM, SECRC.
    assert_eq!(model.peek(RCTL), 0x0400_8012);
    // EN, PSP, CT = 15, COLD = 64, RTLC.
    assert_eq!(model.peek(0x400), 0x0104_00fa);
    assert_eq!(model.peek(0xd0), 0, "masked");
    // 125 us in units of 256 ns.
    assert_eq!(model.peek(0xc4), 489);
}

#[test]
fn failures_to_start_say_why() {
    let model = Model::new(Quirks { gone: true, ..Quirks::default() });
    assert_eq!(try_start(&model, Before::Quiet).err(), Some(ResetError::Gone));
    let model = Model::new(Quirks { stuck_in_reset: true, ..Quirks::default() });
    assert!(matches!(try_start(&model, Before::Quiet).err(), Some(ResetError::Timeout { waited_us: 20_000.. })));
    let model = Model::new(Quirks { no_eeprom: true, ..Quirks::default() });
    assert!(matches!(try_start(&model, Before::Quiet).err(), Some(ResetError::Timeout { .. })));
    for mac in [[0; 6], [1, 0, 0, 0, 0, 1], [0xff; 6]] {
        let model = Model::new(Quirks::default());
        model.set_mac(mac);
        assert_eq!(try_start(&model, Before::Quiet).err(), Some(ResetError::BadMac(mac)));
    }
}

#[test]
fn vifs_come_and_go_without_a_word_to_rctl() {
    let model = Model::new(QEMU);
    let mut d = start(&model);
    let before = model.writes(RCTL);
    let (a, b) = ([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8]);
    for unicast in [&[][..], &[a], &[a, b], &[b], &[]] {
        d.set_receive_filter(&RxFilter { unicast, all_multicast: !unicast.is_empty(), ..RxFilter::default() });
        let expect = |mac: Option<&[u8; 6]>| mac.map_or(0, |m| 0x8000_0000 | u32::from(m[5]) << 8);
        assert_eq!(model.peek(0x540c), expect(unicast.first()));
        assert_eq!(model.peek(0x5414), expect(unicast.get(1)));
    }
    assert_eq!(model.writes(RCTL), before);
}

/// The way of a restart in place: the predecessor had everything on; bus mastership is away until the rings are posted.
fn restart(quirks: Quirks) -> (Model, Driver, u32) {
    let model = Model::new(quirks);
    let mut dead = start(&model);
    post(&mut dead, 0, 50);
    dead.interrupts_enable(true);
    model.advance_us(2_000_000);
    for i in 0..7 {
        model.receive(&[i; 60]);
        dead.tx(&segments(&model, 200, &[i; 60], 60), &PLAIN, 0).unwrap();
        dead.tx_flush();
    }
    let _ = model.sent();
    model.set_master(false);
    drop(dead);
    model.receive(&[9; 60]);
    model.store(buffer(0), &[0xee; 2048]);
    let rctl_writes = model.writes(RCTL);
    let d = try_start(&model, Before::Quiet).unwrap();
    let rctl_writes = model.writes(RCTL) - rctl_writes;
    (model, d, rctl_writes)
}

#[test]
fn a_new_instance_takes_over_from_a_dead_one() {
    for quirks in [Quirks::default(), QEMU] {
        let (model, mut d, _) = restart(quirks);
        assert!(!model.line(), "quiet");
        post(&mut d, 100, 20);
        assert_eq!(model.load(buffer(0), 2048), [0xee; 2048], "nothing written for the dead one");
        model.set_master(true);
        let f = d.rx_poll().expect("the frame that waited");
        assert_eq!((f.token, f.len), (100, 60));
        assert_eq!(model.load(buffer(100), 60), [9; 60]);
        d.tx(&segments(&model, 201, &[7; 60], 60), &PLAIN, 5).unwrap();
        d.tx_flush();
        assert_eq!(model.sent(), [[7; 60]]);
        assert_eq!(d.tx_done(), Some(5));
        assert_eq!((model.faults(), d.fault()), (vec![], None));
    }
}

#[test]
fn a_restart_does_not_make_qemu_deaf() {
    let (_, _, writes) = restart(QEMU);
    assert_eq!(writes, 0, "QEMU receives nothing for a second after a write to RCTL");
    let (_, _, writes) = restart(Quirks::default());
    assert_eq!(writes, 1, "hardware clears RCTL in reset");
}

#[test]
fn reset_in_the_middle_forgets_and_goes_on() {
    let model = Model::new(Quirks { slow_transmit: true, ..Quirks::default() });
    let mut d = start(&model);
    d.interrupts_enable(true);
    post(&mut d, 0, 10);
    for i in 0..5 {
        d.tx(&segments(&model, 100, &[1; 60], 60), &PLAIN, i).unwrap();
    }
    d.tx_flush();
    model.transmit(2);
    model.receive(&[3; 60]);
    d.reset().unwrap();
    assert_eq!((d.tx_done(), d.rx_poll()), (None, None));
    assert_eq!((d.rx_room(), d.tx_room()), (255, 64));
    let _ = model.sent();
    post(&mut d, 50, 3);
    model.receive(&[4; 60]);
    assert_eq!(d.rx_poll().map(|f| f.token), Some(50));
    d.tx(&segments(&model, 100, &[2; 60], 60), &PLAIN, 9).unwrap();
    d.tx_flush();
    model.transmit(9);
    assert_eq!(model.sent(), [[2; 60]]);
    assert_eq!(d.tx_done(), Some(9));
    assert_ne!(model.peek(0xd0), 0, "interrupts are on again");
    assert_eq!(d.stats().resets, 1);
}

#[test]
fn endless_resets_are_refused() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    for _ in 0..MAX_RESETS {
        d.reset().unwrap();
    }
    assert_eq!(d.reset(), Err(ResetError::TooMany(MAX_RESETS)));
    assert_eq!(d.tx(&segments(&model, 0, &[0; 60], 60), &PLAIN, 0), Err(TxError::Faulty));
}

#[test]
fn progress_makes_resets_harmless() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    for i in 0..3 * MAX_RESETS {
        d.reset().unwrap();
        post(&mut d, i, 1);
        model.receive(&[0; 60]);
        assert!(d.rx_poll().is_some());
    }
}

#[test]
fn a_device_that_leaves_the_bus_is_noticed() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    model.set_quirks(Quirks { gone: true, ..Quirks::default() });
    assert!(d.interrupt().is_empty());
    assert_eq!(d.fault(), Some(NicFault::Gone));
    assert_eq!(d.link(), Link::default());
    assert_eq!(d.stats().rx_frames, 0);
    assert_eq!(d.reset(), Err(ResetError::Gone));
}

#[test]
fn interrupts_tell_causes_and_fall_silent() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    post(&mut d, 0, 1);
    d.interrupts_enable(true);
    assert!(!model.line());
    model.receive(&[0; 60]);
    assert!(model.line());
    let c = d.interrupt();
    assert!(c.rx && !c.link && !c.overrun);
    assert!(!model.line());
    model.receive(&[0; 60]);
    assert!(d.interrupt().overrun);
    d.interrupts_enable(false);
    model.receive(&[0; 60]);
    assert!(!model.line());
}

#[test]
fn transmission_interrupts_only_a_sleeper_with_frames_in_flight() {
    let model = Model::new(Quirks { slow_transmit: true, ..Quirks::default() });
    let mut d = start(&model);
    d.interrupts_enable(true);
    assert_eq!(model.peek(0xd0) & 1, 0);
    d.tx(&segments(&model, 0, &[0; 60], 60), &PLAIN, 1).unwrap();
    d.tx_flush();
    d.interrupts_enable(true);
    assert_eq!(model.peek(0xd0) & 1, 1);
    model.transmit(9);
    assert!(model.line() && d.interrupt().tx);
    assert_eq!(d.tx_done(), Some(1));
    d.interrupts_enable(true);
    assert_eq!(model.peek(0xd0) & 1, 0);
}

#[test]
fn the_link_is_read_from_the_device() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    assert_eq!(d.link(), Link { up: true, mbit: 1000, full_duplex: true });
    model.poke(8, 0x42);
    assert_eq!(d.link(), Link { up: true, mbit: 100, full_duplex: false });
    assert_eq!(model.peek(0x400) >> 12 & 0x3ff, 0x200, "collision distance of half duplex");
    model.poke(8, 0x80);
    assert_eq!(d.link(), Link::default());
}

#[test]
fn the_filter_is_written_when_it_changes_and_kept_over_a_reset() {
    let model = Model::new(Quirks::default());
    let mut d = start_with(&model, Config { open_groups: false, ..Config::default() });
    d.set_receive_filter(&RxFilter { promiscuous: true, all_multicast: true, ..RxFilter::default() });
    assert_eq!(model.peek(RCTL), 0x0400_801a);
    let group = [0x01, 0, 0x5e, 0, 0, 0x01];
    let other = [2, 0, 0, 0, 0, 9];
    let filter = RxFilter { unicast: &[other], multicast: &[group], ..RxFilter::default() };
    d.set_receive_filter(&filter);
    for _ in 0..2 {
        assert_eq!(model.peek(RCTL), 0x0400_8002);
        assert_eq!((model.peek(0x5408), model.peek(0x540c)), (0x0000_0002, 0x8000_0900));
        // Bits 47:36 of 01:00:5e:00:00:01 are 0x010: word 0, bit 16.
        assert_eq!(model.peek(0x5200), 1 << 16);
        d.reset().unwrap();
    }
}

#[test]
fn counters_accumulate_over_resets_and_qemus_sticky_ones_are_not_counted_twice() {
    for quirks in [Quirks::default(), Quirks { sticky_missed: true, ..Quirks::default() }] {
        let model = Model::new(quirks);
        let mut d = start(&model);
        post(&mut d, 0, 2);
        for _ in 0..5 {
            model.receive(&[0; 60]);
        }
        for _ in 0..3 {
            let s = d.stats();
            assert_eq!((s.rx_frames, s.rx_missed, s.rx_bytes), (2, 3, 128));
        }
        model.receive(&[0; 60]);
        assert_eq!(d.stats().rx_missed, 4);
        d.reset().unwrap();
        post(&mut d, 0, 2);
        model.receive(&[0; 60]);
        d.tx(&segments(&model, 9, &[0; 100], 60), &PLAIN, 0).unwrap();
        d.tx_flush();
        let s = d.stats();
        assert_eq!((s.rx_frames, s.tx_frames, s.tx_bytes, s.resets), (3, 1, 104, 1));
    }
}

#[test]
fn dma_fault_injection_reads_and_writes_where_told() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    post(&mut d, 0, 3);
    d.point_dma_at(0x9000_0000);
    model.receive(&[1; 60]);
    let faults: Vec<(u64, bool)> = model.faults().iter().map(|f| (f.addr, f.write)).collect();
    assert_eq!(faults, [(0x9000_0000, false), (0x9000_0000, true)]);
}
