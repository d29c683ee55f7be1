use super::*;
use crate::headers::tests::tcp;
use crate::offload::{Segmenter, fill_checksum};
use crate::pool::tests::{Bytes, frame, pool};
use proptest::prelude::*;

/// A segment as it comes from the wire: only ACK set (and PSH), checksums right.
fn segment(pool: &mut Pool<Bytes>, v6: bool, seq: u32, payload: &[u8], edit: impl FnOnce(&mut [u8])) -> Chunk {
    let mut bytes = tcp(v6, payload);
    let t = if v6 { 54 } else { 34 };
    bytes[t + 4..t + 8].copy_from_slice(&seq.to_be_bytes());
    bytes[t + 13] = ACK;
    edit(&mut bytes);
    if !v6 {
        bytes[24..26].fill(0);
        let ip = !fold(sum(&bytes[14..34], 0));
        bytes[24..26].copy_from_slice(&ip.to_be_bytes());
    }
    let chunks = frame(pool, &bytes, &[bytes.len()]);
    let head = Head::of(pool, &chunks);
    set_gso_form(pool, &chunks, &head, &head.headers.unwrap(), bytes.len() as u32, None);
    fill_checksum(pool, &chunks, &head.headers.unwrap());
    chunks[0]
}

/// What `receive` does with one frame; frames that go on are appended.
fn arrive(gro: &mut Gro, pool: &mut Pool<Bytes>, chunk: Chunk, out: &mut Vec<Whole>) {
    let mut chunks = Chunks::new();
    chunks.push(chunk).unwrap();
    let head = Head::of(pool, &chunks);
    match Segment::of(&head, chunk.len.into()).filter(|s| s.verify(pool, &head, chunk)) {
        Some(segment) => out.extend(gro.add(pool, &head, segment, chunk)),
        None => {
            out.extend(gro.take(pool, &head));
            out.push((chunks, Offload::default()));
        }
    }
}

fn drain(gro: &mut Gro, pool: &mut Pool<Bytes>, out: &mut Vec<Whole>) {
    while let Some(whole) = gro.drain(pool) {
        out.push(whole);
    }
}

fn whole(pool: &Pool<Bytes>, chunks: &Chunks) -> Vec<u8> {
    let mut out = vec![0; 1 << 16];
    let n = pool.read(chunks, 0, &mut out);
    out.truncate(n);
    out
}

/// Frames on from `segments` of one flow: (sequence number, payload, edit).
fn run(v6: bool, segments: &[(u32, Vec<u8>, fn(&mut [u8]))]) -> Vec<(usize, Option<Cut>)> {
    let mut pool = pool(64, 0);
    let (mut gro, mut out) = (Gro::default(), Vec::new());
    for (seq, payload, edit) in segments {
        let chunk = segment(&mut pool, v6, *seq, payload, edit);
        arrive(&mut gro, &mut pool, chunk, &mut out);
    }
    drain(&mut gro, &mut pool, &mut out);
    let held: usize = out.iter().map(|(chunks, _)| chunks.len()).sum();
    assert_eq!((held, pool.out()), (segments.len(), segments.len()), "no buffer is lost or doubled");
    out.iter().map(|(chunks, offload)| (chunks.len(), offload.cut)).collect()
}

fn same(_: &mut [u8]) {}

proptest! {
    /// What is joined is, cut again, what came: every byte, every header.
    #[test]
    fn cutting_gives_the_segments_back(v6: bool, mss in 1usize..1400, count in 2usize..20, last in 1usize..1400, first: u32) {
        let mut pool = pool(128, 4);
        let (mut gro, mut out) = (Gro::default(), Vec::new());
        let last = last.min(mss);
        let mut sent = Vec::new();
        for n in 0..count {
            let len = if n + 1 == count { last } else { mss };
            let payload: Vec<u8> = (0..len).map(|i| (i * 7 + n) as u8).collect();
            let seq = first.wrapping_add((n * mss) as u32);
            let id = (0x1234 + n as u16).to_be_bytes();
            let push = n + 1 == count;
            let chunk = segment(&mut pool, v6, seq, &payload, |bytes| {
                if !v6 { bytes[18..20].copy_from_slice(&id); }
                if push { bytes[if v6 { 67 } else { 47 }] |= PSH; }
            });
            let mut chunks = Chunks::new();
            chunks.push(chunk).unwrap();
            sent.push(whole(&pool, &chunks));
            arrive(&mut gro, &mut pool, chunk, &mut out);
        }
        drain(&mut gro, &mut pool, &mut out);
        prop_assert_eq!(out.len(), 1);
        let (chunks, offload) = out.pop().unwrap();
        let cut = offload.cut.unwrap();
        prop_assert_eq!((usize::from(cut.mss), offload.blank, offload.valid), (mss, true, true));
        let head = Head::of(&pool, &chunks);
        let len = chunks.iter().map(|c| u32::from(c.len)).sum();
        let mut cutter = Segmenter::new(&head, cut).unwrap();
        let mut got = Vec::new();
        while let Some((part, _)) = cutter.next(&mut pool, &head, &chunks, len) {
            fill_checksum(&mut pool, &part, cutter.headers());
            got.push(whole(&pool, &part));
            pool.give_all(&part);
        }
        prop_assert_eq!(got, sent);
    }

    /// Whatever comes: every frame goes on exactly once, in the order of its flow, and nothing is held at the end.
    #[test]
    fn nothing_is_lost_or_overtaken(
        v6: bool,
        frames in prop::collection::vec((0u16..3, 0u32..4, 1usize..4, any::<bool>(), 0u8..4), 1..30),
    ) {
        let mut pool = pool(64, 0);
        let (mut gro, mut out) = (Gro::default(), Vec::new());
        let mut expected: Vec<Vec<u8>> = vec![Vec::new(); 3];
        for (n, (flow, step, len, fin, bad)) in frames.iter().enumerate() {
            let payload = vec![n as u8 + 1; len * 100];
            expected[usize::from(*flow)].extend(&payload);
            let chunk = segment(&mut pool, v6, n as u32 * 100 * step, &payload, |bytes| {
                let t = if v6 { 54 } else { 34 };
                bytes[t..t + 2].copy_from_slice(&flow.to_be_bytes());
                bytes[t + 13] |= u8::from(*fin);
            });
            if *bad == 0 {
                pool.write(&[chunk].into_iter().collect::<Chunks>(), if v6 { 70 } else { 50 }, &[0, 0]);
            }
            arrive(&mut gro, &mut pool, chunk, &mut out);
        }
        drain(&mut gro, &mut pool, &mut out);
        let mut got: Vec<Vec<u8>> = vec![Vec::new(); 3];
        for (chunks, _) in &out {
            let bytes = whole(&pool, chunks);
            let h = Headers::parse(&bytes).unwrap();
            got[usize::from(bytes[h.transport + 1])].extend(&bytes[h.payload..]);
        }
        prop_assert_eq!(got, expected);
        prop_assert_eq!(pool.out(), frames.len());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 14..200), v6: bool, keep in 0usize..80) {
        let mut pool = pool(4, 0);
        let mut frame_bytes = tcp(v6, &bytes);
        let keep = keep.min(frame_bytes.len());
        for (to, from) in frame_bytes[keep..].iter_mut().zip(&bytes) { *to = *from; }
        let chunks = frame(&mut pool, &frame_bytes, &[frame_bytes.len()]);
        let mut out = Vec::new();
        let mut gro = Gro::default();
        arrive(&mut gro, &mut pool, chunks[0], &mut out);
        drain(&mut gro, &mut pool, &mut out);
        prop_assert_eq!(out.len(), 1);
        prop_assert_eq!(out[0].1.cut, None);
    }
}

#[test]
fn a_gap_a_larger_one_and_one_after_the_short_one_begin_anew() {
    let p = |n: usize| vec![9; n];
    let lens = |segments: &[(u32, Vec<u8>, fn(&mut [u8]))]| -> Vec<usize> {
        run(false, segments).iter().map(|(chunks, _)| *chunks).collect()
    };
    assert_eq!(lens(&[(0, p(100), same), (100, p(100), same), (201, p(100), same)]), [2, 1]);
    assert_eq!(lens(&[(0, p(100), same), (100, p(101), same)]), [1, 1]);
    assert_eq!(lens(&[(0, p(100), same), (100, p(50), same), (150, p(50), same)]), [2, 1]);
    assert_eq!(lens(&[(0, p(100), same), (0, p(100), same)]), [1, 1], "sent again");
    assert_eq!(lens(&[(u32::MAX - 99, p(100), same), (0, p(100), same)]), [2], "over the end of the sequence");
}

#[test]
fn headers_must_agree() {
    let edits: [fn(&mut [u8]); 9] = [
        |b| b[0] ^= 2,     // another station
        |b| b[15] = 3,     // ECN: congestion was experienced
        |b| b[20] = 0,     // may be fragmented
        |b| b[22] -= 1,    // time to live
        |b| b[30] ^= 1,    // destination
        |b| b[37] ^= 1,    // port
        |b| b[42] ^= 1,    // acknowledgement
        |b| b[48] ^= 1,    // window
        |b| b[47] |= 0x20, // urgent
    ];
    for (n, edit) in edits.into_iter().enumerate() {
        let got = run(false, &[(0, vec![1; 64], same), (64, vec![1; 64], edit)]);
        assert_eq!(got.len(), 2, "edit {n}");
    }
}

#[test]
fn a_wrong_checksum_is_never_joined() {
    for at in [24, 50, 54, 60] {
        let mut pool = pool(4, 0);
        let (mut gro, mut out) = (Gro::default(), Vec::new());
        let first = segment(&mut pool, false, 0, &[1; 64], same);
        let second = segment(&mut pool, false, 64, &[1; 64], same);
        let mut chunks = Chunks::new();
        chunks.push(second).unwrap();
        pool.write(&chunks, at, &[0xA5]);
        arrive(&mut gro, &mut pool, first, &mut out);
        arrive(&mut gro, &mut pool, second, &mut out);
        drain(&mut gro, &mut pool, &mut out);
        let blank: Vec<bool> = out.iter().map(|(_, offload)| offload.blank).collect();
        assert_eq!(blank, [false, false], "byte {at}");
    }
}

#[test]
fn a_push_ends_a_frame() {
    let got = run(true, &[(0, vec![1; 64], same), (64, vec![1; 64], |b| b[67] |= PSH), (128, vec![1; 64], same)]);
    let lens: Vec<usize> = got.iter().map(|(chunks, _)| *chunks).collect();
    assert_eq!(lens, [2, 1]);
}
