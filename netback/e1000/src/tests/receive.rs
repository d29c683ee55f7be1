use super::*;
use netback::nic::{NicFault, RxError, RxFrame};
use proptest::prelude::*;

#[test]
fn a_frame_comes_in() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    post(&mut d, 0, 4);
    let bytes = pattern(1514, 3);
    model.receive(&bytes);
    assert_eq!(d.rx_poll(), Some(RxFrame { token: 0, len: 1514, end: true, checksum_ok: false, error: false }));
    assert_eq!(d.rx_poll(), None);
    assert_eq!(model.load(buffer(0), 1514), bytes);
}

#[test]
fn buffers_the_device_was_not_told_of_stay_empty() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    d.rx_post(buffer(0), 9).unwrap();
    model.receive(&pattern(60, 0));
    assert_eq!(d.rx_poll(), None);
    let stats = d.stats();
    assert_eq!((stats.rx_missed, stats.rx_frames), (1, 0));
}

#[test]
fn a_jumbo_frame_comes_in_several_buffers() {
    let model = Model::new(Quirks::default());
    let mut d = start_with(&model, Config { max_frame: 9014, ..Config::default() });
    post(&mut d, 0, 8);
    let bytes = pattern(9014, 3);
    model.receive(&bytes);
    let frames: Vec<RxFrame> = std::iter::from_fn(|| d.rx_poll()).collect();
    assert_eq!(frames.iter().map(|f| f.len).collect::<Vec<_>>(), [2048, 2048, 2048, 2048, 822]);
    assert_eq!(frames.iter().map(|f| f.end).collect::<Vec<_>>(), [false, false, false, false, true]);
    let got: Vec<u8> = frames.iter().flat_map(|f| model.load(buffer(f.token as usize), f.len as usize)).collect();
    assert_eq!(got, bytes);
}

#[test]
fn the_ring_takes_one_less_than_its_length() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    let room = d.rx_room();
    assert_eq!(room, usize::from(crate::rx::LEN) - 1);
    post(&mut d, 0, room as u32);
    assert_eq!(d.rx_room(), 0);
    assert_eq!(d.rx_post(buffer(0), 0), Err(RxError::Full));
    model.receive(&[1; 60]);
    assert!(d.rx_poll().is_some());
    assert_eq!(d.rx_room(), 1);
}

#[test]
fn unusable_addresses_are_refused() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    assert_eq!(d.rx_post(0, 0), Err(RxError::BadAddress(0)));
    assert_eq!(d.rx_post(u64::MAX - 2047, 0), Err(RxError::BadAddress(u64::MAX - 2047)));
}

#[test]
fn impossible_lengths_are_faults() {
    // (words 2 and 3, length reported)
    for (word2, word3, len) in [(0, 3, 0), (2049, 3, 2049), (0xffff, 3, 0xffff), (100, 1, 100), (0, 1, 0)] {
        let model = Model::new(Quirks::default());
        let mut d = start(&model);
        post(&mut d, 0, 4);
        model.lie((word2, word3));
        model.receive(&[1; 60]);
        assert_eq!(d.rx_poll(), None);
        assert_eq!(d.fault(), Some(NicFault::RxLength { index: 0, len }));
        assert_eq!((d.rx_poll(), d.rx_room()), (None, 0));
        assert_eq!(d.rx_post(buffer(5), 5), Err(RxError::Faulty));
        assert_eq!(model.peek(0xd0), 0, "a faulty device does not interrupt");
    }
}

#[test]
fn a_frame_without_end_is_a_fault() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    post(&mut d, 0, 8);
    let mut seen = 0;
    for _ in 0..8 {
        model.lie((2048, 1));
        model.receive(&[1; 60]);
        seen += u32::from(d.rx_poll().is_some());
    }
    assert_eq!(seen, 2, "a standard frame and its FCS fit two buffers");
    assert_eq!(d.fault(), Some(NicFault::RxEndless { index: 2 }));
}

#[test]
fn damaged_and_checked_frames_are_told_apart() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    post(&mut d, 0, 4);
    for lie in [(60, 0x0103), (60, 0x0023), (60, 0x2023)] {
        model.lie(lie);
        model.receive(&[1; 60]);
    }
    let got: Vec<(bool, bool)> = std::iter::from_fn(|| d.rx_poll()).map(|f| (f.error, f.checksum_ok)).collect();
    assert_eq!(got, [(true, false), (false, true), (false, false)]);
}

proptest! {
    #[test]
    fn every_buffer_comes_back_once_in_order_with_its_bytes(
        ops in proptest::collection::vec((any::<bool>(), 60usize..1515), 1..600),
    ) {
        let model = Model::new(Quirks::default());
        let mut d = start(&model);
        post(&mut d, 0, 16);
        let (mut next, mut expect) = (16u32, 0u32);
        for (i, (refill, len)) in ops.into_iter().enumerate() {
            let bytes = pattern(len, i as u8);
            model.receive(&bytes);
            if let Some(f) = d.rx_poll() {
                prop_assert_eq!(f.token, expect);
                prop_assert_eq!(f.len as usize, len);
                prop_assert_eq!(model.load(buffer(f.token as usize % 256), len), bytes);
                expect += 1;
            }
            if refill {
                while next < expect + 16 {
                    post(&mut d, next, 1);
                    next += 1;
                }
            }
        }
        prop_assert_eq!(d.fault(), None);
        prop_assert_eq!(model.faults(), []);
    }

    /// Whatever the device writes back, a reported buffer is one that was posted, in order, and no longer than it may be.
    #[test]
    fn a_lying_device_only_loses_frames(lies in proptest::collection::vec((any::<u32>(), any::<u32>()), 1..40)) {
        let model = Model::new(Quirks::default());
        let mut d = start(&model);
        post(&mut d, 0, 40);
        let mut expect = 0;
        for lie in lies {
            model.lie(lie);
            model.receive(&[1; 60]);
            while let Some(f) = d.rx_poll() {
                prop_assert_eq!(f.token, expect);
                prop_assert!(f.len <= 2048);
                expect += 1;
            }
        }
        prop_assert!(expect <= 40);
    }
}
