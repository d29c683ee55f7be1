//! Packet buffers: the domain's [`Area`] cut into pages (for slots of guests) and half pages (for frames of the NIC and
//! small slots), with frames as chains of them.
//!
//! A buffer never crosses a page, so one grant-copy operation reaches all of it. Contents are not cleared between uses;
//! what leaves a buffer is bounded by the length that entered it.

use crate::Area;
use crate::nic::Segment;
use abi::PAGE_SIZE;
use abi::grant::CopyPtr;
use alloc::vec::Vec;

/// Bytes of a small buffer.
pub(crate) const SMALL: usize = 2048;
/// Pieces a frame may have: every slot that a backend tolerates, and the header of a segmented one.
pub(crate) const MAX_CHUNKS: usize = 20;

/// A buffer of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buf(pub(crate) u16);

/// A buffer and which of its bytes belong to the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub buf: Buf,
    /// Bytes before the frame's: headers of a segment that was joined to others.
    pub start: u16,
    pub len: u16,
}

impl Chunk {
    /// The first `len` bytes of a buffer.
    pub const fn of(buf: Buf, len: u16) -> Self {
        Self { buf, start: 0, len }
    }
}

/// The pieces of a frame, in order.
pub(crate) type Chunks = heapless::Vec<Chunk, MAX_CHUNKS>;

/// All buffers.
pub(crate) struct Pool<A> {
    area: A,
    large: usize,
    free_large: Vec<Buf>,
    free_small: Vec<Buf>,
    out: Vec<bool>,
}

impl<A: Area> Pool<A> {
    /// Cuts `area` into `large` pages (or as many as there are) and half pages from the rest.
    pub fn new(area: A, large: usize) -> Self {
        let pages = area.len_bytes().checked_div(PAGE_SIZE).unwrap_or(0).min(usize::from(u16::MAX / 2));
        let large = large.min(pages);
        let small = pages.saturating_sub(large).saturating_mul(2);
        let count = large.saturating_add(small);
        let bufs = |from: usize, to: usize| (from..to).rev().map(|n| Buf(n as u16)).collect::<Vec<_>>();
        Self { area, large, free_large: bufs(0, large), free_small: bufs(large, count), out: alloc::vec![false; count] }
    }

    /// Buffers in all.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Buffers that are out.
    pub fn out(&self) -> usize {
        self.len().saturating_sub(self.free_large.len()).saturating_sub(self.free_small.len())
    }

    /// A buffer for `len` bytes (at most a page): a small one where it fits and there is one.
    pub fn take(&mut self, len: usize) -> Option<Buf> {
        let buf =
            if len <= SMALL { self.take_small().or_else(|| self.free_large.pop()) } else { self.free_large.pop() }?;
        *self.out.get_mut(usize::from(buf.0))? = true;
        Some(buf)
    }

    fn take_small(&mut self) -> Option<Buf> {
        self.free_small.pop()
    }

    /// A buffer for the NIC to fill.
    pub fn take_for_nic(&mut self) -> Option<Buf> {
        let buf = self.take_small()?;
        *self.out.get_mut(usize::from(buf.0))? = true;
        Some(buf)
    }

    /// The buffer behind a token of the NIC, if it is out.
    pub fn by_token(&self, token: u32) -> Option<Buf> {
        let index = u16::try_from(token).ok()?;
        self.out.get(usize::from(index)).filter(|out| **out).map(|_| Buf(index))
    }

    /// Takes a buffer back. One that is not out stays where it is.
    pub fn give(&mut self, buf: Buf) {
        let Some(out) = self.out.get_mut(usize::from(buf.0)).filter(|out| **out) else { return };
        *out = false;
        if usize::from(buf.0) < self.large {
            self.free_large.push(buf);
        } else {
            self.free_small.push(buf);
        }
    }

    /// Takes the buffers of a frame back.
    pub fn give_all(&mut self, chunks: &Chunks) {
        for chunk in chunks {
            self.give(chunk.buf);
        }
    }

    fn offset(&self, buf: Buf) -> usize {
        let index = usize::from(buf.0);
        match index.checked_sub(self.large) {
            None => index.saturating_mul(PAGE_SIZE),
            Some(small) => self.large.saturating_mul(PAGE_SIZE).saturating_add(small.saturating_mul(SMALL)),
        }
    }

    /// Bytes a buffer holds.
    pub fn capacity(&self, buf: Buf) -> usize {
        if usize::from(buf.0) < self.large { PAGE_SIZE } else { SMALL }
    }

    /// Address of a buffer, as domain and device see it.
    pub fn addr(&self, buf: Buf) -> u64 {
        self.area.base().wrapping_add(self.offset(buf) as u64)
    }

    /// `offset` bytes into a buffer, as one side of a grant copy.
    pub fn copy_ptr(&self, buf: Buf, offset: usize) -> CopyPtr {
        let addr = self.addr(buf).wrapping_add(offset as u64);
        let page = PAGE_SIZE as u64;
        CopyPtr {
            u: addr.checked_div(page).unwrap_or(0),
            domid: abi::DomId::SELF,
            offset: (addr & page.wrapping_sub(1)) as u16,
            pad: 0,
        }
    }

    /// A frame as the NIC wants it.
    pub fn segments(&self, chunks: &Chunks) -> heapless::Vec<Segment, MAX_CHUNKS> {
        let addr = |c: &Chunk| self.addr(c.buf).wrapping_add(u64::from(c.start));
        chunks.iter().map(|c| Segment { addr: addr(c), len: u32::from(c.len) }).collect()
    }

    /// Copies bytes of a frame out, from `at` on; returns how many there were.
    pub fn read(&self, chunks: &[Chunk], at: usize, out: &mut [u8]) -> usize {
        let mut done: usize = 0;
        for piece in pieces(chunks, at, out.len()) {
            let end = done.saturating_add(piece.len);
            let Some(to) = out.get_mut(done..end) else { break };
            self.area.read(self.offset(piece.buf).saturating_add(piece.offset), to);
            done = end;
        }
        done
    }

    /// One's complement sum of the frame's bytes from `at`, which is even, to the end of the chunk that holds it.
    pub fn sum(&self, chunk: Chunk, at: usize) -> u16 {
        let len = usize::from(chunk.len).saturating_sub(at);
        self.area.sum(self.offset(chunk.buf).saturating_add(usize::from(chunk.start)).saturating_add(at), len)
    }

    /// Overwrites bytes of a frame from `at` on; what lies outside of it is dropped.
    pub fn write(&mut self, chunks: &[Chunk], at: usize, bytes: &[u8]) {
        let mut done: usize = 0;
        for piece in pieces(chunks, at, bytes.len()) {
            let end = done.saturating_add(piece.len);
            let Some(from) = bytes.get(done..end) else { break };
            let offset = self.offset(piece.buf).saturating_add(piece.offset);
            self.area.write(offset, from);
            done = end;
        }
    }
}

/// A run of bytes inside one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub buf: Buf,
    pub offset: usize,
    pub len: usize,
}

/// The runs that hold bytes `at..at + len` of a frame.
pub(crate) fn pieces(chunks: &[Chunk], at: usize, len: usize) -> impl Iterator<Item = Piece> {
    let (mut skip, mut left) = (at, len);
    chunks.iter().filter_map(move |chunk| {
        let have = usize::from(chunk.len);
        let offset = skip.min(have);
        skip = skip.saturating_sub(offset);
        let len = have.saturating_sub(offset).min(left);
        left = left.saturating_sub(len);
        let offset = offset.saturating_add(usize::from(chunk.start));
        (len > 0).then_some(Piece { buf: chunk.buf, offset, len })
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Packet memory of a test.
    pub(crate) struct Bytes(pub Vec<u8>);

    impl Area for Bytes {
        fn base(&self) -> u64 {
            0x10_0000
        }
        fn len_bytes(&self) -> usize {
            self.0.len()
        }
        fn read(&self, offset: usize, out: &mut [u8]) {
            out.copy_from_slice(&self.0[offset..offset + out.len()]);
        }
        fn write(&mut self, offset: usize, bytes: &[u8]) {
            self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    pub(crate) fn pool(pages: usize, large: usize) -> Pool<Bytes> {
        Pool::new(Bytes(alloc::vec![0; pages * PAGE_SIZE]), large)
    }

    /// A frame with `bytes` spread over chunks of the given lengths.
    pub(crate) fn frame(pool: &mut Pool<Bytes>, bytes: &[u8], lens: &[usize]) -> Chunks {
        let mut chunks = Chunks::new();
        for &len in lens {
            chunks.push(Chunk::of(pool.take(len).unwrap(), len as u16)).unwrap();
        }
        pool.write(&chunks, 0, bytes);
        chunks
    }

    #[test]
    fn buffers_do_not_overlap_or_cross_pages() {
        let mut pool = pool(4, 2);
        let bufs: Vec<Buf> = std::iter::from_fn(|| pool.take(1)).collect();
        assert_eq!((bufs.len(), pool.len()), (6, 6));
        let mut ranges: Vec<(u64, u64)> =
            bufs.iter().map(|&b| (pool.addr(b), pool.addr(b) + pool.capacity(b) as u64)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|w| w[0].1 <= w[1].0));
        assert!(ranges.iter().all(|r| r.0 / 4096 == (r.1 - 1) / 4096));
        pool.give(bufs[0]);
        pool.give(bufs[0]);
        assert_eq!(pool.take(1), Some(bufs[0]));
        assert_eq!(pool.take(1), None, "given back twice, there once");
    }

    #[test]
    fn frames_are_read_and_written_across_chunks() {
        let mut pool = pool(8, 4);
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let chunks = frame(&mut pool, &bytes, &[10, 4000, 990]);
        let mut out = [0; 5100];
        assert_eq!(pool.read(&chunks, 0, &mut out), 5000);
        assert_eq!(out[..5000], bytes);
        assert_eq!(pool.read(&chunks, 4005, &mut out[..10]), 10);
        assert_eq!(out[..10], bytes[4005..4015]);
        assert_eq!(pool.read(&chunks, 5000, &mut out), 0);
    }
}
