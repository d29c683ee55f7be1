//! QEMU's `-netdev stream` on the wire: each frame behind its length, four bytes big-endian (`net/stream.c`, since 7.2).

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io::{self, Read, Write};

/// Longest frame taken; an Ethernet frame with a VLAN tag has 1518 bytes.
pub const FRAME_MAX: usize = 65_536 + 64;
/// Bytes that may wait for QEMU before [`Link::room`] says no.
const BACKLOG: usize = 256 << 10;
/// Frames in one write. QEMU reads all that the socket holds at once; what then finds no descriptor waits in a queue that the
/// next descriptors empty whole, and frames beyond them are dropped (`net/queue.c`: no look at `can_receive`). Fewer are in the
/// queue, fewer are lost; but each volley costs a switch to QEMU and back. One connection alone never fills a ring (`proxy.rs`).
const VOLLEY: usize = 48;
/// Bytes of the socket's buffer (the kernel doubles them): below one volley of full frames, so that the kernel calls the
/// socket writable only when QEMU has read the last one.
const SOCKET_BUFFER: usize = 96 << 10;

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes in what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > FRAME_MAX {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// A length no frame has: the stream is not QEMU's.
    pub fn frame(&mut self) -> io::Result<Option<&[u8]>> {
        let rest = &self.buffer[self.start..];
        let Some((head, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_be_bytes(*head) as usize;
        if len > FRAME_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes")));
        }
        if body.len() < len {
            return Ok(None);
        }
        let from = self.start + 4;
        self.start = from + len;
        Ok(Some(&self.buffer[from..from + len]))
    }
}

/// One NIC of the machine, as a non-blocking stream.
pub struct Link {
    stream: std::os::unix::net::UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    /// Ends of the frames in `out` that are not sent whole, counted from the first byte ever queued.
    ends: VecDeque<u64>,
    /// Bytes ever sent.
    total: u64,
}

impl Link {
    /// Takes an accepted stream.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        rustix::net::sockopt::set_socket_send_buffer_size(&stream, SOCKET_BUFFER)?;
        Ok(Self { stream, decoder: Decoder::default(), out: Vec::new(), sent: 0, ends: VecDeque::new(), total: 0 })
    }

    /// For `poll`.
    pub const fn stream(&self) -> &std::os::unix::net::UnixStream {
        &self.stream
    }

    /// Reads what is there and hands each frame to `take`. False at the end of the stream.
    ///
    /// # Errors
    /// Of the stream.
    pub fn receive(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<bool> {
        let mut chunk = [0; 65536];
        // Bounded, so that one turn of the loop stays short.
        for _ in 0..8 {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.decoder.push(&chunk[..n]);
                    while let Some(frame) = self.decoder.frame()? {
                        take(frame);
                    }
                    if n < chunk.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Queues a frame.
    pub fn send(&mut self, frame: &[u8]) {
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.out.extend_from_slice(&len.to_be_bytes());
        self.out.extend_from_slice(frame);
        self.ends.push_back(self.total + (self.out.len() - self.sent) as u64);
    }

    /// Less than the backlog waits.
    pub const fn room(&self) -> bool {
        self.out.len() - self.sent < BACKLOG
    }

    /// Something waits for QEMU to read.
    pub const fn waiting(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Writes a volley, unless QEMU has not read the last one.
    ///
    /// # Errors
    /// Of the stream.
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(&end) = self.ends.get(VOLLEY - 1).or(self.ends.back()) else { return Ok(()) };
        let mut fd = [PollFd::new(&self.stream, PollFlags::OUT)];
        if poll(&mut fd, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
            return Ok(());
        }
        let to = self.sent + usize::try_from(end - self.total).unwrap_or(usize::MAX);
        match self.stream.write(&self.out[self.sent..to]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                self.sent += n;
                self.total += n as u64;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        while self.ends.front().is_some_and(|&end| end <= self.total) {
            self.ends.pop_front();
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > BACKLOG {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let frames: Vec<Vec<u8>> = (1..60u8).map(|n| vec![n; usize::from(n) * 7]).collect();
        let mut bytes = Vec::new();
        for frame in &frames {
            bytes.extend((frame.len() as u32).to_be_bytes());
            bytes.extend(frame);
        }
        for cut in [1, 3, 4, 5, 100, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in bytes.chunks(cut) {
                decoder.push(part);
                while let Some(frame) = decoder.frame().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            assert_eq!(seen, frames, "cut every {cut} bytes");
        }
    }

    #[test]
    fn an_absurd_length_is_an_error() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff; 8]);
        assert!(decoder.frame().unwrap_err().to_string().contains("4294967295"));
    }

    #[test]
    fn both_ends_of_a_link_understand_each_other() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let (mut a, mut b) = (Link::new(a).unwrap(), Link::new(b).unwrap());
        a.send(&[1; 60]);
        a.send(&[2; 1514]);
        a.flush().unwrap();
        assert!(!a.waiting());
        let mut seen = Vec::new();
        assert!(b.receive(|frame| seen.push(frame.len())).unwrap());
        assert_eq!(seen, [60, 1514]);
        drop(a);
        assert!(!b.receive(|_| ()).unwrap(), "the end is told");
    }
}
