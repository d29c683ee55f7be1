use super::*;
use proptest::prelude::*;
use ring::{FrontRing, RingId, RingKind};
use std::cell::Cell;
use std::rc::Rc;

#[derive(Clone)]
struct Page(Rc<Vec<Cell<u32>>>);

impl SharedMem for Page {
    fn read(&self, offset: usize) -> u32 {
        self.0[offset / 4].get()
    }
    fn write(&self, offset: usize, value: u32) {
        self.0[offset / 4].set(value);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }
    fn fence(&self) {}
}

/// What the parser makes of these slots.
fn parse(slots: &[[u32; 3]]) -> (Result<Option<TxPacket>, VifFault>, Notes) {
    let page = Page(Rc::new(vec![Cell::new(0); 1024]));
    let mut front = FrontRing::<_, 256, 3, 1>::init_at(page.clone(), u32::MAX - 1);
    slots.iter().for_each(|&slot| {
        front.push(slot).unwrap();
    });
    front.publish();
    let id = RingId { frontend: abi::DomId(1), device: 0, kind: RingKind::NetTx, queue: 0, gref: GrantRef(9) };
    let mut ring = TxBackRing::connect(page, id).unwrap();
    let mut notes = Notes::new();
    (next_packet(&mut ring, &mut notes), notes)
}

fn slot(gref: u32, offset: u16, flags: u16, id: u16, size: u16) -> [u32; 3] {
    [gref, u32::from(offset) | u32::from(flags) << 16, u32::from(id) | u32::from(size) << 16]
}

fn gso(kind: u8, size: u16, flags: u8) -> [u32; 3] {
    [u32::from_le_bytes([extra::GSO, flags, size as u8, (size >> 8) as u8]), u32::from(kind), 0]
}

#[test]
fn one_slot() {
    let packet = parse(&[slot(5, 100, 0, 77, 60)]).0.unwrap().unwrap();
    assert_eq!((packet.count, packet.len, packet.verdict), (1, 60, Verdict::Forward));
    assert_eq!(packet.frags[..], [Frag { gref: GrantRef(5), offset: 100, len: 60 }]);
}

#[test]
fn a_large_segment_over_several_slots() {
    let more = txf::MORE_DATA;
    let head = slot(5, 0, more | txf::EXTRA_INFO | txf::CSUM_BLANK, 1, 9000);
    let (packet, notes) =
        parse(&[head, gso(extra::GSO_TCPV4, 1448, 0), slot(6, 0, more, 2, 4096), slot(7, 8, 0, 3, 4000)]);
    let packet = packet.unwrap().unwrap();
    assert_eq!((packet.count, packet.len), (4, 9000));
    let lens: Vec<u16> = packet.frags.iter().map(|frag| frag.len).collect();
    assert_eq!(lens, [904, 4096, 4000]);
    assert_eq!(packet.offload.cut, Some(Cut { kind: GsoKind::TcpV4, mss: 1448 }));
    let answers: Vec<u32> = (0..4u32).map(|n| notes.response(packet.index.wrapping_add(n), rsp::OKAY)[0]).collect();
    assert_eq!(answers, [1, 1 << 16, 2, 3], "the extra info's slot is answered by NULL");
}

#[test]
fn multicast_control_is_no_packet() {
    let word = u32::from_le_bytes([extra::MCAST_ADD, 0, 0x33, 0x33]);
    let join = [word, u32::from_le_bytes([0, 0, 0, 1]), 0];
    let packet = parse(&[slot(0, 0, txf::EXTRA_INFO, 4, 0), join]).0.unwrap().unwrap();
    assert_eq!(packet.verdict, Verdict::Group([0x33, 0x33, 0, 0, 0, 1], true));
}

#[test]
fn short_and_wasteful_packets_are_refused() {
    assert_eq!(parse(&[slot(5, 0, 0, 1, 13)]).0.unwrap().unwrap().verdict, Verdict::Refuse);
    let mut slots = vec![slot(5, 0, txf::MORE_DATA, 0, 1000); 1];
    slots.extend((1..19).map(|n| slot(5, 0, if n < 18 { txf::MORE_DATA } else { 0 }, n, 10)));
    let packet = parse(&slots).0.unwrap().unwrap();
    assert_eq!((packet.count, packet.verdict), (19, Verdict::Refuse));
}

#[test]
fn segments_too_small_for_any_tcp_are_refused() {
    let verdict = |size| {
        parse(&[slot(5, 0, txf::EXTRA_INFO, 1, 4000), gso(extra::GSO_TCPV4, size, 0)]).0.unwrap().unwrap().verdict
    };
    assert_eq!((verdict(1), verdict(MIN_MSS - 1)), (Verdict::Refuse, Verdict::Refuse));
    assert_eq!(verdict(MIN_MSS), Verdict::Forward);
}

#[test]
fn breaches_close_the_vif() {
    let more = txf::MORE_DATA;
    let fault = |slots: &[[u32; 3]]| parse(slots).0.unwrap_err();
    assert_eq!(fault(&[slot(5, 0, more, 1, 100)]), VifFault::Truncated { slots: 1 });
    assert_eq!(fault(&[slot(5, 0, txf::EXTRA_INFO, 1, 100)]), VifFault::Truncated { slots: 1 });
    assert_eq!(fault(&[slot(5, 4000, 0, 1, 100)]), VifFault::CrossesPage { offset: 4000, size: 100 });
    assert_eq!(
        fault(&[slot(5, 0, more, 1, 100), slot(6, 0, 0, 2, 101)]),
        VifFault::SizeMismatch { total: 100, size: 101 }
    );
    assert_eq!(
        fault(&[slot(5, 0, more, 1, 5000), slot(6, 4095, 0, 2, 2)]),
        VifFault::CrossesPage { offset: 4095, size: 2 }
    );
    let endless: Vec<_> = (0..30).map(|n| slot(5, 0, more, n, if n == 0 { 100 } else { 1 })).collect();
    assert_eq!(fault(&endless), VifFault::TooManySlots(FATAL_SLOTS + 1));
    let head = slot(5, 0, txf::EXTRA_INFO, 1, 100);
    assert_eq!(fault(&[head, gso(9, 1448, 0)]), VifFault::BadGso { kind: 9, size: 1448 });
    assert_eq!(fault(&[head, gso(1, 0, 0)]), VifFault::BadGso { kind: 1, size: 0 });
    assert_eq!(fault(&[head, [0, 0, 0]]), VifFault::BadExtra(0));
    let chain = vec![gso(1, 1448, extra::FLAG_MORE); 6];
    assert_eq!(fault(&[vec![head], chain].concat()), VifFault::BadExtra(extra::NONE));
}

proptest! {
    /// Whatever stands in the slots: a fault, or data inside of its pages that adds up to the packet.
    #[test]
    fn any_slots(slots in prop::collection::vec(
        (any::<u32>(), prop_oneof![Just(0u16), any::<u16>()], 0u16..16, any::<u16>(), prop_oneof![0u16..600, any::<u16>()])
            .prop_map(|(gref, offset, flags, id, size)| slot(gref, offset, flags, id, size)), 1..40)) {
        if let (Ok(Some(packet)), _) = parse(&slots) {
            prop_assert!(packet.count as usize <= slots.len());
            prop_assert!(packet.frags.iter().all(|f| f.len > 0 && usize::from(f.offset) + usize::from(f.len) <= 4096));
            prop_assert_eq!(packet.frags.iter().map(|f| u32::from(f.len)).sum::<u32>(), packet.len);
        }
    }
}
