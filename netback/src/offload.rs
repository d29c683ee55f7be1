//! What a NIC or a guest cannot do is done here: checksums, segmentation, one buffer instead of many.
//!
//! Also the one place that knows the two forms of a blank checksum field: guests hold the pseudo-header's sum with the
//! length, a NIC that segments wants it without (and the IPv4 header's checksum zero).

use crate::Area;
use crate::frames::Cut;
use crate::headers::{HEAD, Headers, fold, sum};
use crate::pool::{Chunk, Chunks, Pool, SMALL};

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// The beginning of a frame, and where its headers are.
pub(crate) struct Head {
    pub bytes: [u8; HEAD],
    pub len: usize,
    pub headers: Option<Headers>,
}

impl Head {
    /// Copies the beginning of a frame and looks for its headers in the copy.
    pub fn of<A: Area>(pool: &Pool<A>, chunks: &[Chunk]) -> Self {
        let mut bytes = [0; HEAD];
        let len = pool.read(chunks, 0, &mut bytes);
        let headers = Headers::parse(bytes.get(..len).unwrap_or(&[]));
        Self { bytes, len, headers }
    }

    /// The bytes that are there.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// Sums `chunks` from byte `from` to the end, as checksums do.
fn sum_from<A: Area>(pool: &Pool<A>, chunks: &[Chunk], from: usize) -> u32 {
    let mut scratch = [0; 512]; // even, so that words do not straddle reads
    let (mut at, mut total) = (from, 0u32);
    loop {
        let n = pool.read(chunks, at, &mut scratch);
        if n == 0 {
            return total;
        }
        // Folding each time keeps the sum far from overflow, whatever the length.
        total = u32::from(fold(sum(scratch.get(..n).unwrap_or(&[]), total)));
        at = at.saturating_add(n);
    }
}

/// Completes a blank checksum: sums what is there, pseudo-header's sum included.
pub(crate) fn fill_checksum<A: Area>(pool: &mut Pool<A>, chunks: &[Chunk], headers: &Headers) {
    let field = headers.transport.saturating_add(usize::from(headers.checksum_offset()));
    let value = !fold(sum_from(pool, chunks, headers.transport));
    // Zero means "none" in UDP; its other form is as good for both.
    let value = if value == 0 { 0xFFFF } else { value };
    pool.write(chunks, field, &value.to_be_bytes());
}

/// Gives the checksum fields of a frame that is still to be segmented the form its next owner wants. `for_nic`: IPv4
/// header checksum 0, transport length in the pseudo-header's sum only if `with_len`. Else: as a guest expects them.
pub(crate) fn set_gso_form<A: Area>(
    pool: &mut Pool<A>,
    chunks: &[Chunk],
    head: &Head,
    h: &Headers,
    total: u32,
    for_nic: Option<bool>,
) {
    let transport_len = total.saturating_sub(h.transport as u32);
    let len = if for_nic.unwrap_or(true) { transport_len } else { 0 };
    let pseudo = fold(h.pseudo_sum(head.as_slice(), len));
    let field = h.transport.saturating_add(usize::from(h.checksum_offset()));
    pool.write(chunks, field, &pseudo.to_be_bytes());
    if !h.v6 {
        let value = if for_nic.is_some() { 0 } else { ipv4_checksum(head.bytes.get(h.ip..h.transport).unwrap_or(&[])) };
        pool.write(chunks, h.ip.saturating_add(10), &value.to_be_bytes());
    }
}

/// The checksum of an IPv4 header, whatever its field holds.
fn ipv4_checksum(header: &[u8]) -> u16 {
    let field = header.get(10..12).map_or(0, |f| sum(f, 0));
    // Taking a word out of a one's complement sum is adding its complement.
    !fold(sum(header, 0).wrapping_add(u32::from(!fold(field))))
}

/// Copies a frame into one buffer.
pub(crate) fn linearize<A: Area>(pool: &mut Pool<A>, chunks: &Chunks, len: u32) -> Option<Chunks> {
    let len16 = u16::try_from(len).ok()?;
    let buf = pool.take(len as usize)?;
    if pool.capacity(buf) < len as usize {
        pool.give(buf);
        return None;
    }
    let mut single = Chunks::new();
    let _ = single.push(Chunk::of(buf, len16));
    let mut scratch = [0; 512];
    let mut at: usize = 0;
    loop {
        let n = pool.read(chunks, at, &mut scratch);
        if n == 0 {
            return Some(single);
        }
        pool.write(&single, at, scratch.get(..n).unwrap_or(&[]));
        at = at.saturating_add(n);
    }
}

/// Cuts a frame into TCP segments with blank checksums, one at a time.
pub(crate) struct Segmenter {
    headers: Headers,
    mss: usize,
    next: usize,
    number: u16,
}

impl Segmenter {
    /// For a frame of `len` bytes that begins with `head`; `None` if it is not what `cut` says.
    pub fn new(head: &Head, cut: Cut) -> Option<Self> {
        let headers = head.headers.filter(|h| h.fits_gso(cut.kind))?;
        let room = SMALL.checked_sub(headers.payload).filter(|&room| room > 0)?;
        let mss = usize::from(cut.mss).min(room);
        (mss > 0).then_some(Self { headers, mss, next: headers.payload, number: 0 })
    }

    /// Where the headers of each segment are.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Segments a frame of `len` bytes has left.
    pub fn left(&self, len: u32) -> usize {
        (len as usize).saturating_sub(self.next).div_ceil(self.mss.max(1))
    }

    /// The next segment of the frame `chunks` of `len` bytes: its buffer and length. `None` after the last, or when there
    /// is no buffer.
    pub fn next<A: Area>(
        &mut self,
        pool: &mut Pool<A>,
        head: &Head,
        chunks: &Chunks,
        len: u32,
    ) -> Option<(Chunks, u32)> {
        let payload = (len as usize).saturating_sub(self.next).min(self.mss);
        if payload == 0 {
            return None;
        }
        let mut bytes = [0u8; SMALL];
        let total = self.headers.payload.saturating_add(payload);
        bytes.get_mut(..self.headers.payload)?.copy_from_slice(head.bytes.get(..self.headers.payload)?);
        if pool.read(chunks, self.next, bytes.get_mut(self.headers.payload..total)?) != payload {
            return None;
        }
        let last = self.next.saturating_add(payload) >= len as usize;
        let sent = self.next.saturating_sub(self.headers.payload);
        self.edit(bytes.get_mut(..total)?, sent as u32, last)?;
        let mut segment = Chunks::new();
        segment.push(Chunk::of(pool.take(total)?, total as u16)).ok()?;
        pool.write(&segment, 0, bytes.get(..total)?);
        self.next = self.next.saturating_add(payload);
        self.number = self.number.wrapping_add(1);
        Some((segment, total as u32))
    }

    /// Makes the copied headers those of this segment.
    fn edit(&self, frame: &mut [u8], sent: u32, last: bool) -> Option<()> {
        let h = &self.headers;
        let transport_len = frame.len().checked_sub(h.transport)?;
        if h.v6 {
            let len = frame.len().checked_sub(h.ip)?.checked_sub(40)? as u16;
            put(frame, h.ip.checked_add(4)?, &len.to_be_bytes())?;
        } else {
            let len = frame.len().checked_sub(h.ip)? as u16;
            put(frame, h.ip.checked_add(2)?, &len.to_be_bytes())?;
            let at = h.ip.checked_add(4)?;
            let id = u16::from_be_bytes(get(frame, at)?).wrapping_add(self.number);
            put(frame, at, &id.to_be_bytes())?;
            let checksum = ipv4_checksum(frame.get(h.ip..h.transport)?);
            put(frame, h.ip.checked_add(10)?, &checksum.to_be_bytes())?;
        }
        let at = h.transport.checked_add(4)?;
        let seq = u32::from_be_bytes(get(frame, at)?).wrapping_add(sent);
        put(frame, at, &seq.to_be_bytes())?;
        let flags = frame.get_mut(h.transport.checked_add(13)?)?;
        if !last {
            *flags &= !FIN_PSH;
        }
        if sent > 0 {
            *flags &= !CWR;
        }
        let pseudo = fold(h.pseudo_sum(frame, transport_len as u32));
        put(frame, h.transport.checked_add(16)?, &pseudo.to_be_bytes())
    }
}

fn get<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    frame.get_mut(at..at.checked_add(bytes.len())?)?.copy_from_slice(bytes);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::tests::tcp;
    use crate::nic::GsoKind;
    use crate::pool::tests::{frame, pool};
    use proptest::prelude::*;

    fn whole<A: Area>(pool: &Pool<A>, chunks: &Chunks) -> Vec<u8> {
        let mut out = vec![0; 1 << 17];
        let n = pool.read(chunks, 0, &mut out);
        out.truncate(n);
        out
    }

    /// The sum over pseudo-header and segment of a frame with a complete checksum is all ones.
    fn verifies(bytes: &[u8]) -> bool {
        let h = Headers::parse(bytes).unwrap();
        let len = (bytes.len() - h.transport) as u32;
        let folded = u32::from(fold(h.pseudo_sum(bytes, len)));
        fold(bytes[h.transport..].chunks(512).fold(folded, |s, part| u32::from(fold(sum(part, s))))) == 0xFFFF
    }

    proptest! {
        #[test]
        fn segments_carry_the_stream(v6: bool, payload in prop::collection::vec(any::<u8>(), 1..9000), mss in 1u16..3000) {
            let mss = mss.max(payload.len() as u16 / 60 + 1);
            let mut pool = pool(80, 10);
            let bytes = tcp(v6, &payload);
            let mut lens = vec![40, bytes.len().min(200) - 40];
            lens.extend(std::iter::repeat_n(2000, bytes.len().saturating_sub(200) / 2000));
            lens.push(bytes.len() - lens.iter().sum::<usize>());
            let chunks = frame(&mut pool, &bytes, &lens);
            let head = Head::of(&pool, &chunks);
            let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
            let mut cutter = Segmenter::new(&head, Cut { kind, mss }).unwrap();
            let (count, len) = (cutter.left(bytes.len() as u32), bytes.len() as u32);
            let mut got: Vec<u8> = Vec::new();
            let mut seen = 0;
            while let Some((segment, seg_len)) = cutter.next(&mut pool, &head, &chunks, len) {
                fill_checksum(&mut pool, &segment, cutter.headers());
                let out = whole(&pool, &segment);
                prop_assert_eq!(out.len(), seg_len as usize);
                prop_assert!(verifies(&out));
                let h = Headers::parse(&out).unwrap();
                if !v6 {
                    prop_assert_eq!(fold(sum(&out[14..34], 0)), 0xFFFF);
                    prop_assert_eq!(u16::from_be_bytes([out[16], out[17]]) as usize, out.len() - 14);
                }
                let seq = u32::from_be_bytes(out[h.transport + 4..h.transport + 8].try_into().unwrap());
                prop_assert_eq!(seq as usize, 256 + got.len());
                seen += 1;
                prop_assert_eq!(out[h.transport + 13] & 9, if seen == count { 9 } else { 0 });
                got.extend(&out[h.payload..]);
                pool.give_all(&segment);
            }
            prop_assert_eq!(got, payload);
            prop_assert_eq!(seen, count);
        }

        #[test]
        fn filled_checksums_verify(v6: bool, payload in prop::collection::vec(any::<u8>(), 0..3000), split in 1usize..54) {
            let mut pool = pool(16, 8);
            let bytes = tcp(v6, &payload);
            let chunks = frame(&mut pool, &bytes, &[split, bytes.len() - split]);
            let head = Head::of(&pool, &chunks);
            let h = head.headers.unwrap();
            set_gso_form(&mut pool, &chunks, &head, &h, bytes.len() as u32, None);
            fill_checksum(&mut pool, &chunks, &h);
            prop_assert!(verifies(&whole(&pool, &chunks)));
            let single = linearize(&mut pool, &chunks, bytes.len() as u32).unwrap();
            prop_assert_eq!(whole(&pool, &single), whole(&pool, &chunks));
        }
    }

    #[test]
    fn gso_forms_go_there_and_back() {
        let mut pool = pool(4, 2);
        let bytes = tcp(false, &[7; 1000]);
        let chunks = frame(&mut pool, &bytes, &[bytes.len()]);
        let head = Head::of(&pool, &chunks);
        let h = head.headers.unwrap();
        set_gso_form(&mut pool, &chunks, &head, &h, bytes.len() as u32, Some(false));
        let nic = whole(&pool, &chunks);
        assert_eq!(nic[24..26], [0, 0]);
        assert_eq!(u16::from_be_bytes([nic[50], nic[51]]), fold(h.pseudo_sum(&nic, 0)));
        set_gso_form(&mut pool, &chunks, &head, &h, bytes.len() as u32, None);
        let guest = whole(&pool, &chunks);
        assert_eq!(fold(sum(&guest[14..34], 0)), 0xFFFF);
        assert_eq!(u16::from_be_bytes([guest[50], guest[51]]), fold(h.pseudo_sum(&guest, 1020)));
    }
}
