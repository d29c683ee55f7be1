//! From slots of a TX ring to packets. Everything in a slot is an allegation: it is copied once by the ring, checked here,
//! and what breaks the protocol closes the vif; what is merely useless is answered with an error.
//!
//! A packet is its first slot (size = the whole packet), then extra infos, then the other slots. The rules and their
//! severity are Linux's (`drivers/net/xen-netback`), which every frontend is tested against.

use crate::frames::{Cut, Offload};
use crate::nic::{GsoKind, MacAddr};
use crate::pool::MAX_CHUNKS;
use abi::GrantRef;
use abi::io::netif::{NR_SLOTS_MIN, TxRequest, extra, rsp, txf};
use alloc::vec::Vec;
use core::fmt;
use ring::{RingFault, SharedMem, TxBackRing};

/// Slots of a packet above which a frontend is malicious and not merely wasteful (Linux: `fatal_skb_slots`).
const FATAL_SLOTS: usize = MAX_CHUNKS;
/// Extra infos one packet may have: each of the known types once.
const MAX_EXTRAS: u32 = 4;
/// Bytes of an Ethernet header; a shorter packet is answered with an error.
const MIN_LEN: u32 = 14;
/// Least payload of a segment; a packet to be cut smaller is answered with an error. No TCP does: of the least MSS (48 bytes),
/// options take up to 40 (Linux: `TCP_MIN_GSO_SIZE`).
const MIN_MSS: u16 = 8;
/// `XEN_NETIF_EXTRA_TYPE_HASH`: allowed, of no use to us.
const EXTRA_HASH: u8 = 4;

/// How a frontend broke the protocol. Its vif is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VifFault {
    /// An index of a ring is impossible.
    Ring(RingFault),
    /// A packet's last slots were not published.
    Truncated {
        /// Slots that are there.
        slots: u32,
    },
    /// More slots than any frontend needs.
    TooManySlots(usize),
    /// The data crosses its page.
    CrossesPage {
        /// Offset in the page.
        offset: u16,
        /// Bytes.
        size: u16,
    },
    /// The slots hold more than the first one says.
    SizeMismatch {
        /// Bytes of the whole packet, by its first slot.
        total: u16,
        /// Bytes of a slot that does not fit.
        size: u16,
    },
    /// An extra info of unknown type, or too many of them.
    BadExtra(u8),
    /// Segmentation of an unknown type, or with size 0.
    BadGso {
        /// `XEN_NETIF_GSO_TYPE_*`.
        kind: u8,
        /// Payload bytes per segment.
        size: u16,
    },
}

impl From<RingFault> for VifFault {
    fn from(fault: RingFault) -> Self {
        Self::Ring(fault)
    }
}

impl fmt::Display for VifFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(fault) => fault.fmt(f),
            Self::Truncated { slots } => write!(f, "packet of more than the {slots} slots published"),
            Self::TooManySlots(n) => write!(f, "packet of {n} slots"),
            Self::CrossesPage { offset, size } => write!(f, "{size} bytes at {offset} cross the page"),
            Self::SizeMismatch { total, size } => write!(f, "slot of {size} bytes in a packet of {total}"),
            Self::BadExtra(kind) => write!(f, "extra info of type {kind}"),
            Self::BadGso { kind, size } => write!(f, "segmentation of type {kind}, size {size}"),
        }
    }
}

/// Data in one granted page; never empty, never crossing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frag {
    pub gref: GrantRef,
    pub offset: u16,
    pub len: u16,
}

/// What is to become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Forward,
    /// Answer with an error.
    Refuse,
    /// No packet: the frontend wants this group (`true`) or no longer.
    Group(MacAddr, bool),
}

/// A packet as its slots describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TxPacket {
    pub index: u32,
    pub count: u32,
    pub len: u32,
    pub frags: heapless::Vec<Frag, MAX_CHUNKS>,
    pub offload: Offload,
    pub verdict: Verdict,
}

/// What must be remembered of each slot until it is answered.
#[derive(Clone, Copy, Default)]
struct Note {
    id: u16,
    extra: bool,
}

/// Ids of the slots in flight, by place in the ring (on the heap: a domain's stack is small).
pub(crate) struct Notes(Vec<Note>);

impl Notes {
    pub fn new() -> Self {
        Self(alloc::vec![Note::default(); 256])
    }

    fn put(&mut self, index: u32, note: Note) {
        if let Some(place) = self.0.get_mut(index as usize & 255) {
            *place = note;
        }
    }

    /// The response to a slot: its id with `status`, or the specification's "not a response" for an extra info.
    pub fn response(&self, index: u32, status: i16) -> [u32; 1] {
        let note = self.0.get(index as usize & 255).copied().unwrap_or_default();
        let status = if note.extra { rsp::NULL } else { status };
        [u32::from(note.id) | u32::from(status as u16) << 16]
    }
}

fn decode([gref, place, name]: [u32; 3]) -> TxRequest {
    TxRequest {
        gref: GrantRef(gref),
        offset: place as u16,
        flags: (place >> 16) as u16,
        id: name as u16,
        size: (name >> 16) as u16,
    }
}

/// Takes the next packet out of the ring; `None` when there is no more.
///
/// # Errors
/// [`VifFault`].
pub(crate) fn next_packet<M: SharedMem>(
    ring: &mut TxBackRing<M>,
    notes: &mut Notes,
) -> Result<Option<TxPacket>, VifFault> {
    let Some((index, words)) = ring.take()? else { return Ok(None) };
    let first = decode(words);
    notes.put(index, Note { id: first.id, extra: false });
    let mut packet = TxPacket {
        index,
        count: 1,
        len: u32::from(first.size),
        frags: heapless::Vec::new(),
        offload: Offload {
            blank: first.flags & txf::CSUM_BLANK != 0,
            valid: first.flags & (txf::CSUM_BLANK | txf::DATA_VALIDATED) != 0,
            cut: None,
        },
        verdict: Verdict::Forward,
    };
    if first.flags & txf::EXTRA_INFO != 0 {
        take_extras(ring, notes, &mut packet)?;
    }
    take_slots(ring, notes, &mut packet, first)?;
    let tiny = packet.offload.cut.is_some_and(|cut| cut.mss < MIN_MSS);
    if (packet.len < MIN_LEN || tiny) && packet.verdict == Verdict::Forward {
        packet.verdict = Verdict::Refuse;
    }
    Ok(Some(packet))
}

/// The next slot of a packet that said there is one.
fn more<M: SharedMem>(ring: &mut TxBackRing<M>, packet: &mut TxPacket) -> Result<(u32, [u32; 3]), VifFault> {
    let slot = ring.take()?.ok_or(VifFault::Truncated { slots: packet.count })?;
    packet.count = packet.count.saturating_add(1);
    Ok(slot)
}

fn take_extras<M: SharedMem>(
    ring: &mut TxBackRing<M>,
    notes: &mut Notes,
    packet: &mut TxPacket,
) -> Result<(), VifFault> {
    for _ in 0..MAX_EXTRAS {
        let (index, [head, tail, _]) = more(ring, packet)?;
        notes.put(index, Note { id: 0, extra: true });
        let [kind, flags, a, b] = head.to_le_bytes();
        let [c, d, e, f] = tail.to_le_bytes();
        match kind {
            extra::GSO => {
                let (kind, size) = (c, u16::from_le_bytes([a, b]));
                let bad = VifFault::BadGso { kind, size };
                let gso = match kind {
                    extra::GSO_TCPV4 => GsoKind::TcpV4,
                    extra::GSO_TCPV6 => GsoKind::TcpV6,
                    _ => return Err(bad),
                };
                if size == 0 {
                    return Err(bad);
                }
                packet.offload = Offload { blank: true, valid: true, cut: Some(Cut { kind: gso, mss: size }) };
            }
            extra::MCAST_ADD | extra::MCAST_DEL => {
                packet.verdict = Verdict::Group([a, b, c, d, e, f], kind == extra::MCAST_ADD);
            }
            EXTRA_HASH => {}
            other => return Err(VifFault::BadExtra(other)),
        }
        if flags & extra::FLAG_MORE == 0 {
            return Ok(());
        }
    }
    Err(VifFault::BadExtra(extra::NONE))
}

fn take_slots<M: SharedMem>(
    ring: &mut TxBackRing<M>,
    notes: &mut Notes,
    packet: &mut TxPacket,
    first: TxRequest,
) -> Result<(), VifFault> {
    let mut rest = first.size; // what the slots seen so far leave to the first one
    let mut flags = first.flags;
    let mut slots: usize = 1;
    let _ = packet.frags.push(Frag { gref: first.gref, offset: first.offset, len: 0 });
    while flags & txf::MORE_DATA != 0 {
        let (index, words) = more(ring, packet)?;
        let slot = decode(words);
        notes.put(index, Note { id: slot.id, extra: false });
        slots = slots.saturating_add(1);
        if slots > FATAL_SLOTS {
            return Err(VifFault::TooManySlots(slots));
        }
        rest = rest.checked_sub(slot.size).ok_or(VifFault::SizeMismatch { total: first.size, size: slot.size })?;
        push(packet, slot.gref, slot.offset, slot.size)?;
        flags = slot.flags;
    }
    if usize::from(first.offset).saturating_add(usize::from(rest)) > abi::PAGE_SIZE {
        return Err(VifFault::CrossesPage { offset: first.offset, size: rest });
    }
    match packet.frags.first_mut() {
        Some(head) if rest > 0 => head.len = rest,
        _ => {
            packet.frags.remove(0);
        }
    }
    if slots > NR_SLOTS_MIN as usize && packet.verdict == Verdict::Forward {
        packet.verdict = Verdict::Refuse;
    }
    Ok(())
}

fn push(packet: &mut TxPacket, gref: GrantRef, offset: u16, len: u16) -> Result<(), VifFault> {
    if usize::from(offset).saturating_add(usize::from(len)) > abi::PAGE_SIZE {
        return Err(VifFault::CrossesPage { offset, size: len });
    }
    if len > 0 && packet.frags.push(Frag { gref, offset, len }).is_err() {
        return Err(VifFault::TooManySlots(FATAL_SLOTS));
    }
    Ok(())
}

#[cfg(test)]
#[path = "tx/tests.rs"]
mod tests;
