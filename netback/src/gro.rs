//! Generic receive offload: TCP segments that arrive one behind the other become one large frame, which a guest with
//! segmentation takes whole (its `feature-gso-tcpv4` and `-tcpv6`): one pass through switch, ring and the guest's stack instead
//! of twenty.
//!
//! Nothing is copied: the frame is a chain of the NIC's buffers, without the headers of all but the first. What can be joined is as
//! strict as in Linux (`net/ipv4/tcp_offload.c`): headers equal but for length, identification, sequence number, PSH and
//! checksums; the sequence without a gap; payloads of one size, only the last smaller; checksums verified, because the joined
//! frame says that they were; and IPv4 only with DF, where identification means nothing (RFC 6864, 4.1). Cutting it at
//! `mss` gives the segments back. Frames are joined within one look at the NIC and never kept for later: no latency.

use crate::Area;
use crate::frames::{Cut, Offload};
use crate::headers::{Headers, TCP, fold, sum};
use crate::nic::{GsoKind, MacAddr};
use crate::offload::{Head, set_gso_form};
use crate::pool::{Chunk, Chunks, Pool};

/// Flows joined at a time.
const FLOWS: usize = 4;
/// Longest header that is compared: Ethernet, IPv6, the longest TCP header.
const KEY: usize = 14 + 40 + 60;
/// Longest IP packet.
const IP_MAX: u32 = 65_535;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// A TCP segment that may be joined with others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    headers: Headers,
    /// Its headers with all that may differ set to zero.
    key: [u8; KEY],
    seq: u32,
    push: bool,
    payload: u32,
}

/// Sets bytes to zero.
fn blank(key: &mut [u8], at: usize, len: usize) -> Option<()> {
    key.get_mut(at..at.checked_add(len)?)?.fill(0);
    Some(())
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

impl Segment {
    /// Looks at a frame of `len` bytes. `None`: not TCP, or one that must stay as it is.
    pub fn of(head: &Head, len: u32) -> Option<Self> {
        let headers = head.headers.filter(|h| h.protocol == TCP && h.ip == 14)?;
        let bytes = head.as_slice();
        let (ip, transport) = (headers.ip, headers.transport);
        let payload = len.checked_sub(headers.payload as u32).filter(|&payload| payload > 0)?;
        let ip_len = len.checked_sub(ip as u32)?;
        let [flags] = array(bytes, transport.checked_add(13)?)?;
        let [offset] = array::<1>(bytes, transport.checked_add(12)?)?;
        if flags & !PSH != ACK || offset & 0x0F != 0 {
            return None;
        }
        let mut key = [0; KEY];
        key.get_mut(..headers.payload)?.copy_from_slice(bytes.get(..headers.payload)?);
        if headers.v6 {
            // No extension headers, no padding behind the packet.
            let stated = u32::from(u16::from_be_bytes(array(bytes, ip.checked_add(4)?)?));
            if transport != ip.checked_add(40)? || stated.checked_add(40)? != ip_len {
                return None;
            }
            blank(&mut key, ip.checked_add(4)?, 2)?;
        } else {
            let stated = u32::from(u16::from_be_bytes(array(bytes, ip.checked_add(2)?)?));
            let [fragment, _] = array::<2>(bytes, ip.checked_add(6)?)?;
            let good = fold(sum(bytes.get(ip..transport)?, 0)) == 0xFFFF;
            if transport != ip.checked_add(20)? || stated != ip_len || fragment != 0x40 || !good {
                return None;
            }
            blank(&mut key, ip.checked_add(2)?, 4)?; // length and identification
            blank(&mut key, ip.checked_add(10)?, 2)?; // checksum
        }
        let seq = u32::from_be_bytes(array(bytes, transport.checked_add(4)?)?);
        blank(&mut key, transport.checked_add(4)?, 4)?;
        blank(&mut key, transport.checked_add(16)?, 2)?;
        *key.get_mut(transport.checked_add(13)?)? = ACK;
        Some(Self { headers, key, seq, push: flags & PSH != 0, payload })
    }

    /// How it would be cut again.
    pub fn kind(&self) -> GsoKind {
        if self.headers.v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 }
    }

    /// Is the TCP checksum of this frame, all of which is in `chunk`, right?
    pub fn verify<A: Area>(&self, pool: &Pool<A>, head: &Head, chunk: Chunk) -> bool {
        let len = u32::from(chunk.len).saturating_sub(self.headers.transport as u32);
        let pseudo = self.headers.pseudo_sum(head.as_slice(), len);
        fold(pseudo.wrapping_add(u32::from(pool.sum(chunk, self.headers.transport)))) == 0xFFFF
    }
}

/// Segments joined so far.
struct Held {
    first: Segment,
    chunks: Chunks,
    len: u32,
    next_seq: u32,
    push: bool,
    /// The last one was short or pushed: nothing may follow.
    complete: bool,
}

impl Held {
    /// Takes one more segment, if it is the next of this flow.
    fn join(&mut self, segment: &Segment, chunk: Chunk) -> bool {
        let Some(start) = chunk.start.checked_add(segment.headers.payload as u16) else { return false };
        let next = !self.complete
            && segment.seq == self.next_seq
            && segment.payload <= self.first.payload
            && segment.key == self.first.key
            && self.len.saturating_add(segment.payload) <= IP_MAX;
        let body = Chunk { buf: chunk.buf, start, len: segment.payload as u16 };
        if !next || self.chunks.push(body).is_err() {
            return false;
        }
        self.len = self.len.saturating_add(segment.payload);
        self.next_seq = self.next_seq.wrapping_add(segment.payload);
        self.push |= segment.push;
        self.complete = segment.push || segment.payload < self.first.payload;
        true
    }

    /// Same addresses and ports?
    fn is_of(&self, head: &Head) -> bool {
        let Some(h) = head.headers else { return false };
        let mine = &self.first.headers;
        let range = if mine.v6 { 22..54 } else { 26..34 };
        let ports = mine.transport..mine.transport.saturating_add(4);
        (h.v6, h.ip, h.transport) == (mine.v6, mine.ip, mine.transport)
            && head.as_slice().get(range.clone()) == self.first.key.get(range)
            && head.as_slice().get(ports.clone()) == self.first.key.get(ports)
    }

    /// The frame as it goes on. `None`: its buffers changed under us.
    fn finish<A: Area>(self, pool: &mut Pool<A>) -> Option<Whole> {
        let h = self.first.headers;
        let single = Offload { blank: false, valid: true, cut: None };
        if self.chunks.len() < 2 {
            return Some((self.chunks, single));
        }
        let ip_len = self.len.saturating_sub(h.ip as u32);
        let (at, stated) = if h.v6 { (4, ip_len.saturating_sub(40)) } else { (2, ip_len) };
        pool.write(&self.chunks, h.ip.saturating_add(at), &(stated as u16).to_be_bytes());
        if self.push {
            pool.write(&self.chunks, h.transport.saturating_add(13), &[ACK | PSH]);
        }
        let head = Head::of(pool, &self.chunks);
        if head.headers != Some(h) {
            pool.give_all(&self.chunks);
            return None;
        }
        set_gso_form(pool, &self.chunks, &head, &h, self.len, None);
        let cut = Cut { kind: self.first.kind(), mss: self.first.payload as u16 };
        Some((self.chunks, Offload { blank: true, valid: true, cut: Some(cut) }))
    }
}

/// A frame to go on with.
pub(crate) type Whole = (Chunks, Offload);

/// The flows of one look at the NIC.
#[derive(Default)]
pub(crate) struct Gro {
    held: heapless::Vec<Held, FLOWS>,
}

impl Gro {
    /// Takes a verified segment, all of which is in `chunk`; returns a frame that has to go on before it.
    pub fn add<A: Area>(&mut self, pool: &mut Pool<A>, head: &Head, segment: Segment, chunk: Chunk) -> Option<Whole> {
        if self.held.iter_mut().any(|held| held.join(&segment, chunk)) {
            return None;
        }
        let before = match self.take(pool, head) {
            None if self.held.is_full() => self.held.pop().and_then(|held| held.finish(pool)),
            other => other,
        };
        let mut chunks = Chunks::new();
        let _ = chunks.push(chunk);
        let next_seq = segment.seq.wrapping_add(segment.payload);
        let (len, push) = (u32::from(chunk.len), segment.push);
        let _ = self.held.push(Held { first: segment, chunks, len, next_seq, push, complete: push });
        before
    }

    /// What is held of the flow a frame belongs to: it goes first.
    pub fn take<A: Area>(&mut self, pool: &mut Pool<A>, head: &Head) -> Option<Whole> {
        let at = self.held.iter().position(|held| held.is_of(head))?;
        self.held.swap_remove(at).finish(pool)
    }

    /// Anything that is held; asked until there is nothing, before the look at the NIC ends.
    pub fn drain<A: Area>(&mut self, pool: &mut Pool<A>) -> Option<Whole> {
        while let Some(held) = self.held.pop() {
            let whole = held.finish(pool);
            if whole.is_some() {
                return whole;
            }
        }
        None
    }
}

/// The address a frame goes to.
pub(crate) fn destination(head: &Head) -> MacAddr {
    head.bytes.first_chunk().copied().unwrap_or([0; 6])
}

#[cfg(test)]
#[path = "gro/tests.rs"]
mod tests;
