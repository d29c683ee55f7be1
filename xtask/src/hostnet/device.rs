//! smoltcp's view of the wire: frames in a queue on the way in, the links on the way out. With several NICs the endpoint is
//! a switch with one port each: it learns who is where, and sends to all ports what it has not learned.

use super::frame;
use super::stream::Link;
use super::trace::Trace;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::wire::EthernetAddress;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// Frames counted on the wire, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// From the machine.
    pub frames_in: u64,
    /// To the machine.
    pub frames_out: u64,
    /// From the machine.
    pub bytes_in: u64,
    /// To the machine.
    pub bytes_out: u64,
    /// TCP connections that a segment with RST from the machine ended before both ends had closed them.
    pub resets_in: u64,
    /// TCP connections that one to the machine ended.
    pub resets_out: u64,
}

/// All links.
#[derive(Default)]
pub struct Wire {
    /// By number of the NIC.
    pub links: Vec<Link>,
    /// Frames for the stack.
    pub incoming: VecDeque<Vec<u8>>,
    /// What went over it.
    pub counts: Counts,
    /// The last segments of each connection.
    pub trace: Trace,
    learned: HashMap<EthernetAddress, usize>,
    /// Another host on the wire.
    pub other: Option<Link>,
}

impl Wire {
    /// Counts a frame that came from a link, and learns its sender's place.
    pub fn note(&mut self, link: usize, bytes: &[u8]) {
        self.counts.frames_in += 1;
        self.counts.bytes_in += bytes.len() as u64;
        if let frame::Kind::Tcp(segment) = frame::inspect(bytes) {
            self.counts.resets_in += u64::from(self.trace.note(&segment, Instant::now()));
        }
        if let Some(source) = frame::source(bytes).filter(EthernetAddress::is_unicast) {
            self.learned.insert(source, link);
        }
    }

    /// Passes a frame of the machine to the other host, if it may be for it. True if it is for nobody else.
    pub fn pass(&mut self, bytes: &[u8]) -> bool {
        let Some(other) = &mut self.other else { return false };
        let Some(to) = frame::destination(bytes).filter(|&to| to != frame::HOST_MAC) else { return false };
        if to.is_unicast() && self.learned.contains_key(&to) {
            return false;
        }
        other.send(bytes);
        to.is_unicast()
    }

    /// Sends a frame where its receiver is.
    pub fn send(&mut self, bytes: &[u8]) {
        self.counts.frames_out += 1;
        self.counts.bytes_out += bytes.len() as u64;
        if let frame::Kind::Tcp(segment) = frame::inspect(bytes) {
            self.counts.resets_out += u64::from(self.trace.note(&segment, Instant::now()));
        }
        let place = frame::destination(bytes).and_then(|mac| self.learned.get(&mac)).copied();
        for (i, link) in self.links.iter_mut().enumerate() {
            if place.is_none_or(|p| p == i) {
                link.send(bytes);
            }
        }
    }

    /// No link has more waiting than it should.
    pub fn room(&self) -> bool {
        self.links.iter().all(Link::room)
    }
}

/// A frame on its way in.
pub struct Received(Vec<u8>);
/// The right to send one.
pub struct Sender<'a>(&'a mut Wire);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}
impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        self.0.send(&bytes);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.incoming.pop_front()?;
        Some((Received(frame), Sender(self)))
    }
    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sender<'_>> {
        self.room().then_some(Sender(self))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = 1514;
        caps
    }
}
