//! Bytes through the store page: two rings of 1024 bytes, one each way, with free-running indices.
//!
//! Each end keeps its own two indices privately and publishes copies; of the peer's two it believes nothing beyond
//! "at most 1024 ahead". Data is moved a word at a time, because a shared page is only reachable by words.

use abi::io::xs_wire::page;
use ring::SharedMem;

/// Which end of the page this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The domain that asks.
    Client,
    /// The store.
    Server,
}

/// The peer published an index that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamFault {
    /// The producer's index, ours or theirs.
    pub prod: u32,
    /// The consumer's index.
    pub cons: u32,
}

impl core::fmt::Display for StreamFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "impossible ring indices: producer {:#x}, consumer {:#x}", self.prod, self.cons)
    }
}

struct Ring {
    data: usize,
    cons: usize,
    prod: usize,
}

const REQUESTS: Ring = Ring { data: page::REQ, cons: page::REQ_CONS, prod: page::REQ_PROD };
const RESPONSES: Ring = Ring { data: page::RSP, cons: page::RSP_CONS, prod: page::RSP_PROD };

/// One end's private view of both rings.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    side: Side,
    /// Our consumer index in the incoming ring.
    cons: u32,
    /// Our producer index in the outgoing ring.
    prod: u32,
}

/// Used bytes of a ring, if the two indices can be.
fn used(prod: u32, cons: u32) -> Result<u32, StreamFault> {
    let used = prod.wrapping_sub(cons);
    if used > page::RING_SIZE { Err(StreamFault { prod, cons }) } else { Ok(used) }
}

/// Offset in the page of the byte at free-running index `index` of the ring whose data begin at `base`.
const fn place(base: usize, index: u32) -> usize {
    base.wrapping_add((index % page::RING_SIZE) as usize)
}

impl Stream {
    /// Attaches at the indices the page holds now: after a restart of either end the other goes on where it was.
    pub fn attach<M: SharedMem + ?Sized>(mem: &M, side: Side) -> Self {
        let mut this = Self { side, cons: 0, prod: 0 };
        this.cons = mem.read(this.incoming().cons);
        this.prod = mem.read(this.outgoing().prod);
        this
    }

    const fn incoming(&self) -> Ring {
        match self.side {
            Side::Client => RESPONSES,
            Side::Server => REQUESTS,
        }
    }
    const fn outgoing(&self) -> Ring {
        match self.side {
            Side::Client => REQUESTS,
            Side::Server => RESPONSES,
        }
    }

    /// Sets all four indices to zero, here and in the page. Only the server may, when it resets a connection that the
    /// guest does not use (`connection` = reconnect, or the domain is not running).
    pub fn reset<M: SharedMem + ?Sized>(&mut self, mem: &M) {
        (self.cons, self.prod) = (0, 0);
        for index in [REQUESTS.cons, REQUESTS.prod, RESPONSES.cons, RESPONSES.prod] {
            mem.store_release(index, 0);
        }
    }

    /// Takes up to `out.len()` incoming bytes; returns how many, and whether the ring was full before (the producer may
    /// be waiting for room and wants to be notified).
    ///
    /// # Errors
    /// [`StreamFault`]; nothing was taken.
    pub fn read<M: SharedMem + ?Sized>(&mut self, mem: &M, out: &mut [u8]) -> Result<(usize, bool), StreamFault> {
        let ring = self.incoming();
        let available = used(mem.load_acquire(ring.prod), self.cons)?;
        let room = u32::try_from(out.len()).unwrap_or(u32::MAX);
        let n = available.min(room);
        let mut index = self.cons;
        let mut word = 0;
        let mut first = true;
        for slot in out.iter_mut().take(n as usize) {
            let at = place(ring.data, index);
            if first || at.is_multiple_of(4) {
                word = mem.read(at & !3);
                first = false;
            }
            *slot = word.to_le_bytes().get(at & 3).copied().unwrap_or_default();
            index = index.wrapping_add(1);
        }
        if n > 0 {
            self.cons = index;
            mem.store_release(ring.cons, index);
            // The producer's index is read again after ours is visible, by the next call: no byte stays unseen.
            mem.fence();
        }
        Ok((n as usize, n > 0 && available == page::RING_SIZE))
    }

    /// Puts as many bytes of `data` as fit; returns how many.
    ///
    /// # Errors
    /// [`StreamFault`]; nothing was put.
    pub fn write<M: SharedMem + ?Sized>(&mut self, mem: &M, data: &[u8]) -> Result<usize, StreamFault> {
        let ring = self.outgoing();
        let free = page::RING_SIZE.wrapping_sub(used(self.prod, mem.load_acquire(ring.cons))?);
        let n = free.min(u32::try_from(data.len()).unwrap_or(u32::MAX));
        let mut index = self.prod;
        let mut rest = data.get(..n as usize).unwrap_or_default();
        while !rest.is_empty() {
            let at = place(ring.data, index);
            let in_word = at & 3;
            let (now, later) = rest.split_at(rest.len().min(4usize.saturating_sub(in_word)));
            // Only this end writes the ring's data, so the rest of the word is what we put there before.
            let mut word = if now.len() == 4 { [0; 4] } else { mem.read(at & !3).to_le_bytes() };
            for (slot, &byte) in word.iter_mut().skip(in_word).zip(now) {
                *slot = byte;
            }
            mem.write(at & !3, u32::from_le_bytes(word));
            // `now` has at most 4 bytes.
            index = index.wrapping_add(now.len() as u32);
            rest = later;
        }
        if n > 0 {
            self.prod = index;
            mem.store_release(ring.prod, index);
            mem.fence();
        }
        Ok(n as usize)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::TestPage;

    /// A store page whose indices all begin at `index`.
    pub(crate) fn starting_at(index: u32) -> TestPage {
        let page = TestPage::default();
        for at in [page::REQ_CONS, page::REQ_PROD, page::RSP_CONS, page::RSP_PROD] {
            page.write(at, index);
        }
        page
    }

    #[test]
    fn a_full_ring_takes_no_more_and_says_so_when_drained() {
        let page = TestPage::default();
        let (mut c, mut s) = (Stream::attach(&page, Side::Client), Stream::attach(&page, Side::Server));
        assert_eq!(c.write(&page, &[7; 1500]), Ok(1024));
        assert_eq!(c.write(&page, &[7; 1]), Ok(0));
        let mut buf = [0; 10];
        assert_eq!(s.read(&page, &mut buf), Ok((10, true)));
        assert_eq!(s.read(&page, &mut buf), Ok((10, false)));
        assert_eq!(c.write(&page, &[8; 1500]), Ok(20));
    }

    #[test]
    fn impossible_indices_are_faults_of_one_end_only() {
        let page = starting_at(u32::MAX - 3);
        let (mut c, mut s) = (Stream::attach(&page, Side::Client), Stream::attach(&page, Side::Server));
        page.write(page::REQ_PROD, (u32::MAX - 3).wrapping_add(1025));
        assert!(s.read(&page, &mut [0; 4]).is_err());
        page.write(page::RSP_PROD, u32::MAX - 4);
        assert!(c.read(&page, &mut [0; 4]).is_err());
        page.write(page::RSP_CONS, u32::MAX - 2);
        assert!(s.write(&page, &[1]).is_err());
    }

    proptest! {
        #[test]
        fn bytes_arrive_in_order_over_the_wrap_of_indices(
            start in prop_oneof![Just(0u32), Just(u32::MAX - 700), any::<u32>()],
            steps in proptest::collection::vec((0usize..1100, 0usize..1100), 1..40),
        ) {
            let page = starting_at(start);
            let (mut c, mut s) = (Stream::attach(&page, Side::Client), Stream::attach(&page, Side::Server));
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            let mut next = 0u8;
            for (put, take) in steps {
                let data: Vec<u8> = (0..put).map(|i| next.wrapping_add(i as u8)).collect();
                let n = c.write(&page, &data).unwrap();
                sent.extend_from_slice(&data[..n]);
                next = next.wrapping_add(n as u8);
                let mut buf = vec![0; take];
                let (n, _) = s.read(&page, &mut buf).unwrap();
                received.extend_from_slice(&buf[..n]);
            }
            prop_assert_eq!(&received[..], &sent[..received.len()]);
            prop_assert!(sent.len() - received.len() <= 1024);
        }

        #[test]
        fn any_index_of_the_peer_is_taken_or_refused_without_panic(index in any::<u32>(), len in 0usize..2000) {
            let page = starting_at(5);
            let mut s = Stream::attach(&page, Side::Server);
            page.write(page::REQ_PROD, index);
            page.write(page::RSP_CONS, index);
            let mut buf = vec![0; len];
            let _ = s.read(&page, &mut buf);
            let _ = s.write(&page, &buf);
        }
    }
}
