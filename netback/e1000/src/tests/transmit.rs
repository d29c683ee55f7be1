use super::*;
use crate::model::sum;
use crate::tx;
use netback::nic::{Checksum, Gso, GsoKind, NicFault, TxError, TxMeta};
use proptest::prelude::*;

const PLAIN: TxMeta = TxMeta { checksum: None, gso: None };

#[test]
fn a_frame_goes_out_and_comes_back_done() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    let bytes = pattern(1514, 1);
    d.tx(&segments(&model, 0, &bytes, 700), &PLAIN, 77).unwrap();
    assert_eq!(model.sent(), Vec::<Vec<u8>>::new(), "nothing before the doorbell");
    assert_eq!(d.tx_done(), None);
    d.tx_flush();
    assert_eq!(model.sent(), [bytes]);
    assert_eq!(d.tx_done(), Some(77));
    assert_eq!(d.tx_done(), None);
    assert_eq!(model.faults(), []);
}

#[test]
fn one_doorbell_and_one_status_for_a_batch() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    let doorbells = model.writes(0x3818);
    for i in 0..10 {
        d.tx(&segments(&model, i, &pattern(100, i as u8), 2048), &PLAIN, i as u32).unwrap();
    }
    d.tx_flush();
    d.tx_flush();
    assert_eq!(model.writes(0x3818) - doorbells, 1);
    assert_eq!(model.counts().1, 1, "one write-back tells of ten frames");
    let done: Vec<u32> = std::iter::from_fn(|| d.tx_done()).collect();
    assert_eq!(done, (0..10).collect::<Vec<_>>());
    assert_eq!(model.sent().len(), 10);
}

#[test]
fn completions_follow_the_devices_progress() {
    let model = Model::new(Quirks { slow_transmit: true, ..Quirks::default() });
    let mut d = start(&model);
    for i in 0..3 {
        d.tx(&segments(&model, i, &pattern(64, 0), 2048), &PLAIN, i as u32).unwrap();
        d.tx_flush();
    }
    assert_eq!(d.tx_done(), None);
    model.transmit(2);
    assert_eq!((d.tx_done(), d.tx_done(), d.tx_done()), (Some(0), Some(1), None));
    model.transmit(9);
    assert_eq!((d.tx_done(), d.tx_done()), (Some(2), None));
}

#[test]
fn the_ring_fills_to_one_less_than_its_length_and_recovers() {
    let model = Model::new(Quirks { slow_transmit: true, ..Quirks::default() });
    let mut d = start(&model);
    let one = segments(&model, 0, &pattern(60, 9), 2048);
    let mut queued = 0;
    while d.tx(&one, &PLAIN, queued).is_ok() {
        queued += 1;
    }
    assert_eq!(queued, u32::from(tx::LEN) - 1);
    assert_eq!(d.tx_room(), 0);
    assert_eq!(d.tx(&one, &PLAIN, 0), Err(TxError::Full));
    d.tx_flush();
    model.transmit(usize::MAX);
    assert_eq!(std::iter::from_fn(|| d.tx_done()).count() as u32, queued);
    assert_eq!(d.tx_room(), usize::from(tx::MAX_SEGMENTS));
    assert_eq!(model.sent().len() as u32, queued);
}

#[test]
fn bad_frames_are_refused_and_leave_no_trace() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    let s = |len| Segment { addr: buffer(0), len };
    let sum = Checksum { start: 34, offset: 16 };
    let cases: [(Vec<Segment>, TxMeta, TxError); 9] = [
        (vec![], PLAIN, TxError::BadSegments(0)),
        (vec![s(60); 65], PLAIN, TxError::BadSegments(65)),
        (vec![s(60), s(0)], PLAIN, TxError::BadSegments(2)),
        (vec![s(16_289)], PLAIN, TxError::BadSegments(1)),
        (vec![Segment { addr: u64::MAX - 9, len: 60 }], PLAIN, TxError::BadSegments(1)),
        (vec![s(13)], PLAIN, TxError::BadLength(13)),
        (vec![s(1519)], PLAIN, TxError::BadLength(1519)),
        (vec![s(51)], TxMeta { checksum: Some(sum), gso: None }, TxError::BadChecksum(sum)),
        (
            vec![s(3000)],
            TxMeta { checksum: None, gso: Some(Gso { kind: GsoKind::TcpV4, mss: 1000, header_len: 54 }) },
            TxError::BadGso(Gso { kind: GsoKind::TcpV4, mss: 1000, header_len: 54 }),
        ),
    ];
    for (segments, meta, error) in cases {
        assert_eq!(d.tx(&segments, &meta, 1), Err(error));
    }
    // A segment that would not fit the wire.
    let gso = Gso { kind: GsoKind::TcpV4, mss: 1465, header_len: 54 };
    assert_eq!(d.tx(&[s(3000)], &TxMeta { checksum: Some(sum), gso: Some(gso) }, 1), Err(TxError::BadGso(gso)));
    d.tx_flush();
    assert!(model.sent().is_empty() && d.tx_done().is_none());
}

/// An Ethernet, IPv4 or IPv6 and TCP header (with 12 bytes of options) in front of `payload`; sums as `TxMeta::gso` wants them
/// if `segment`, else as `TxMeta::checksum` does.
fn tcp_frame(kind: GsoKind, payload: &[u8], segment: bool) -> (Vec<u8>, u16) {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let tcp_len = 32 + payload.len();
    let pseudo_addresses;
    match kind {
        GsoKind::TcpV4 => {
            f.extend([8, 0, 0x45, 0]);
            f.extend(if segment { [0, 0] } else { ((20 + tcp_len) as u16).to_be_bytes() });
            f.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            pseudo_addresses = sum(&f[26..34]);
            if !segment {
                let s = !sum(&f[14..34]);
                f[24..26].copy_from_slice(&s.to_be_bytes());
            }
        }
        GsoKind::TcpV6 => {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend((tcp_len as u16).to_be_bytes());
            f.extend([6, 64]);
            f.extend(pattern(32, 7));
            pseudo_addresses = sum(&f[22..54]);
        }
    }
    let start = f.len() as u16;
    f.extend([0x1f, 0x90, 0xc0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0x80, 0x19, 0xff, 0xff, 0, 0, 0, 0]);
    f.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    let len = if segment { 0 } else { tcp_len as u16 };
    let mut seed = Vec::from(pseudo_addresses.to_be_bytes());
    seed.extend([0, 6]);
    seed.extend(len.to_be_bytes());
    let at = usize::from(start) + 16;
    f[at..at + 2].copy_from_slice(&sum(&seed).to_be_bytes());
    f.extend(payload);
    (f, start)
}

/// Whether a frame's TCP (and IPv4) checksums hold.
fn sums_hold(kind: GsoKind, f: &[u8]) -> bool {
    let (addresses, start, ip_ok) = match kind {
        GsoKind::TcpV4 => (&f[26..34], 34, sum(&f[14..34]) == 0xffff),
        GsoKind::TcpV6 => (&f[22..54], 54, true),
    };
    let mut all = addresses.to_vec();
    all.extend([0, 6]);
    all.extend(((f.len() - start) as u16).to_be_bytes());
    all.extend(&f[start..]);
    ip_ok && sum(&all) == 0xffff
}

#[test]
fn checksums_are_inserted_and_the_context_is_sent_once() {
    for kind in [GsoKind::TcpV4, GsoKind::TcpV6] {
        let model = Model::new(Quirks::default());
        let mut d = start(&model);
        for i in 0..4 {
            let (f, start) = tcp_frame(kind, &pattern(500 + i, 3), false);
            assert!(!sums_hold(kind, &f));
            let meta = TxMeta { checksum: Some(Checksum { start, offset: 16 }), gso: None };
            d.tx(&segments(&model, i, &f, 300), &meta, 0).unwrap();
        }
        d.tx_flush();
        let sent = model.sent();
        assert_eq!(sent.len(), 4);
        assert!(sent.iter().all(|f| sums_hold(kind, f)));
        assert_eq!(model.counts().0, 1);
    }
}

#[test]
fn a_context_does_not_outlive_a_reset() {
    let model = Model::new(Quirks::default());
    let mut d = start(&model);
    let (f, start) = tcp_frame(GsoKind::TcpV4, &[1, 2, 3], false);
    let meta = TxMeta { checksum: Some(Checksum { start, offset: 16 }), gso: None };
    d.tx(&segments(&model, 0, &f, 2048), &meta, 0).unwrap();
    d.tx_flush();
    d.reset().unwrap();
    d.tx(&segments(&model, 0, &f, 2048), &meta, 0).unwrap();
    d.tx_flush();
    assert!(model.sent().iter().all(|f| sums_hold(GsoKind::TcpV4, f)));
    assert_eq!(model.counts().0, 2);
}

proptest! {
    #[test]
    fn segmentation_keeps_every_byte(
        len in 1usize..30_000, mss in 88u16..1432, piece in 60usize..4096, before in 0u32..300,
    ) {
        let model = Model::new(Quirks::default());
        let mut d = start(&model);
        // Start anywhere on the ring, so that frames wrap.
        for _ in 0..before {
            d.tx(&segments(&model, 0, &[0; 60], 60), &PLAIN, 0).unwrap();
            d.tx_flush();
            prop_assert_eq!(d.tx_done(), Some(0));
        }
        let _ = model.sent();
        let payload = pattern(len, 5);
        let (f, start) = tcp_frame(GsoKind::TcpV4, &payload, true);
        let header = usize::from(start) + 32;
        let meta = TxMeta {
            checksum: Some(Checksum { start, offset: 16 }),
            gso: Some(Gso { kind: GsoKind::TcpV4, mss, header_len: header as u16 }),
        };
        let s = segments(&model, 0, &f, piece);
        prop_assume!(s.len() <= usize::from(tx::MAX_SEGMENTS));
        d.tx(&s, &meta, 1).unwrap();
        d.tx_flush();
        prop_assert_eq!(d.tx_done(), Some(1));
        let sent = model.sent();
        prop_assert_eq!(sent.len(), len.div_ceil(usize::from(mss)));
        let mut whole = Vec::new();
        for (i, f) in sent.iter().enumerate() {
            prop_assert!(sums_hold(GsoKind::TcpV4, f), "segment {} of {}", i, sent.len());
            let at = usize::from(start);
            let seq = u32::from_be_bytes(f[at + 4..at + 8].try_into().unwrap());
            prop_assert_eq!(seq as usize, 5 + whole.len());
            prop_assert_eq!(f[at + 13] & 9 == 9, i + 1 == sent.len(), "FIN and PSH only at the end");
            whole.extend_from_slice(&f[header..]);
        }
        prop_assert_eq!(whole, payload);
        prop_assert_eq!(model.faults(), []);
    }

    #[test]
    fn every_token_comes_back_once_in_order(ops in proptest::collection::vec((0usize..3, 1usize..6), 1..400)) {
        let model = Model::new(Quirks { slow_transmit: true, ..Quirks::default() });
        let mut d = start(&model);
        let (mut queued, mut done) = (0u32, 0u32);
        for (op, n) in ops {
            match op {
                0 => {
                    let room = d.tx_room();
                    let s = vec![Segment { addr: buffer(0), len: 64 }; n];
                    match d.tx(&s, &PLAIN, queued) {
                        Ok(()) => queued += 1,
                        Err(e) => {
                            prop_assert_eq!(e, TxError::Full);
                            prop_assert!(n > room);
                        }
                    }
                }
                1 => d.tx_flush(),
                _ => model.transmit(n),
            }
            while let Some(token) = d.tx_done() {
                prop_assert_eq!(token, done);
                done += 1;
            }
        }
        d.tx_flush();
        model.transmit(usize::MAX);
        while let Some(token) = d.tx_done() {
            prop_assert_eq!(token, done);
            done += 1;
        }
        prop_assert_eq!(done, queued);
        prop_assert_eq!(d.fault(), None);
    }
}

#[test]
fn the_first_frame_of_one_segment_after_a_segmented_one_is_split() {
    let model = Model::new(Quirks { slow_transmit: true, ..Quirks::default() });
    let mut d = start(&model);
    let (f, at) = tcp_frame(GsoKind::TcpV4, &pattern(3000, 5), true);
    let gso = Gso { kind: GsoKind::TcpV4, mss: 1000, header_len: at + 32 };
    let meta = TxMeta { checksum: Some(Checksum { start: at, offset: 16 }), gso: Some(gso) };
    d.tx(&segments(&model, 0, &f, 4096), &meta, 0).unwrap();
    let plain = pattern(200, 1);
    for (segment, token) in [(100, 1), (200, 2), (200, 3)] {
        d.tx(&segments(&model, 4, &plain, segment), &PLAIN, token).unwrap();
    }
    d.tx_flush();
    // A context and two; two segments; one in two; one.
    for (descriptors, frames) in [(3, 3), (2, 1), (1, 0), (1, 1), (1, 1)] {
        model.transmit(descriptors);
        assert_eq!(model.sent().len(), frames);
    }
    assert_eq!(std::iter::from_fn(|| d.tx_done()).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn a_rewritten_descriptor_is_a_fault() {
    let model = Model::new(Quirks { slow_transmit: true, ..Quirks::default() });
    let mut d = start(&model);
    d.tx(&segments(&model, 0, &pattern(60, 0), 60), &PLAIN, 3).unwrap();
    d.tx_flush();
    // Descriptor 0 of the transmit ring at 0x1000: done, but with another length.
    model.store(MEMORY + 0x1000 + 8, &0xab10_003du32.to_le_bytes());
    model.store(MEMORY + 0x1000 + 12, &1u32.to_le_bytes());
    assert_eq!(d.tx_done(), None);
    assert_eq!(d.fault(), Some(NicFault::Descriptor { index: 0, found: 0xab10_003d, expected: 0xab10_003c }));
    assert_eq!(d.tx(&segments(&model, 0, &[0; 60], 60), &PLAIN, 0), Err(TxError::Faulty));
    assert_eq!(d.tx_room(), 0);
}

#[test]
fn done_before_the_doorbell_is_a_fault() {
    let model = Model::new(Quirks { slow_transmit: true, ..Quirks::default() });
    let mut d = start(&model);
    // Enough in one batch for status to be asked for before the doorbell.
    for i in 0..40 {
        d.tx(&segments(&model, 0, &pattern(60, 0), 60), &PLAIN, i).unwrap();
    }
    model.store(MEMORY + 0x1000 + 31 * 16 + 12, &1u32.to_le_bytes());
    assert_eq!(d.tx_done(), None);
    assert!(matches!(d.fault(), Some(NicFault::Descriptor { index: 31, .. })), "{:?}", d.fault());
}

#[test]
fn a_device_that_does_not_send_counts_as_hung_only_with_a_link() {
    let model = Model::new(Quirks { slow_transmit: true, ..Quirks::default() });
    let mut d = start(&model);
    d.tx(&segments(&model, 0, &pattern(60, 0), 60), &PLAIN, 3).unwrap();
    d.tx_flush();
    assert_eq!(d.tx_done(), None);
    model.poke(8, 0);
    model.advance_us(3_000_000);
    assert_eq!((d.tx_done(), d.fault()), (None, None));
    model.poke(8, 3);
    model.advance_us(1_000_000);
    assert_eq!((d.tx_done(), d.fault()), (None, None));
    model.advance_us(1_500_000);
    assert_eq!((d.tx_done(), d.fault()), (None, Some(NicFault::TxHung { in_flight: 1 })));
}
