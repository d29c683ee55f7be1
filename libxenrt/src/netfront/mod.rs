//! The network frontend as a `smoltcp` device: negotiates as Linux' netfront does, sends and receives over the two netif rings, and
//! leaves checksums and TCP segmentation to whoever can do them best.
//!
//! Neighbours: [`tx`] and [`rx`] hold one ring each, [`negotiate`] and [`xenbus`] talk to xenstore, [`checksum`] does what the backend does
//! not. A backend that is restarted keeps rings, grants and port (see `ring`): all that is seen here is one more
//! notification. Only a backend that really goes through Closing costs the link, which is then made anew.
//!
//! The domain's loop: [`Netfront::take_event`], `Interface::poll`, [`Netfront::flush`]; when [`Netfront::idle`] says so,
//! `event::poll` on [`Netfront::port`].

mod checksum;
mod negotiate;
mod rx;
mod tx;

use crate::clock::Instant;
use crate::event::Event;
use crate::grant::GrantError;
use crate::store::{Store, WatchEvent};
use crate::xenbus::{self, Device as Node, Frontend, XenbusError};
use abi::io::netif::txf;
use abi::io::xenbus::XenbusState;
use abi::{DomId, Errno, EvtchnPort};
use alloc::boxed::Box;
use alloc::vec;
use checksum::Found;
use core::num::{NonZeroU16, NonZeroUsize};
use negotiate::Offers;
use rx::Rx;
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use tx::{GSO_FRAME_MAX, Gso, Tx};

/// Longest frame without segmentation: an Ethernet header and 1500 bytes.
const MTU: usize = 1514;

/// How many buffers a link has; each page or 64 KiB of them is this domain's memory.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Pages posted for receiving, at most 256.
    pub rx_buffers: u16,
    /// One-page buffers for sending.
    pub tx_small: u16,
    /// 64 KiB buffers for sending; taken only where the backend does segmentation.
    pub tx_large: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { rx_buffers: 256, tx_small: 96, tx_large: 12 }
    }
}

/// What happened on the device since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes in them.
    pub rx_bytes: u64,
    /// Frames handed to the backend (one to be segmented counts once).
    pub tx_packets: u64,
    /// Bytes in them.
    pub tx_bytes: u64,
    /// Frames not sent for lack of a buffer.
    pub tx_dropped: u64,
    /// Frames the backend answered with an error.
    pub tx_errors: u64,
    /// Frames dropped for a wrong checksum.
    pub rx_checksum: u64,
    /// Pages that came back empty.
    pub rx_empty: u64,
    /// Answers that cannot be: unknown ids, impossible lengths.
    pub bad_responses: u64,
    /// Ring indices that cannot be.
    pub ring_faults: u64,
    /// Notifications sent.
    pub notifications: u64,
    /// Times the link was made.
    pub links: u64,
}

/// Why the device could not be brought up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetfrontError {
    /// Xenstore or the backend.
    Xenbus(XenbusError),
    /// Memory or grants.
    Grant(GrantError),
    /// The event channel.
    Event(Errno),
    /// After a reconnection the backend offers less than the stack was promised.
    FewerOffers,
}

impl From<XenbusError> for NetfrontError {
    fn from(e: XenbusError) -> Self {
        Self::Xenbus(e)
    }
}
impl From<GrantError> for NetfrontError {
    fn from(e: GrantError) -> Self {
        Self::Grant(e)
    }
}

/// The sending side of a connection, apart from the receiving one because the stack answers a frame while it still reads it.
struct Sender {
    tx: Tx,
    offers: Offers,
    /// The backend wants to hear of what was published.
    notify: bool,
    /// Where a frame goes for which there is no buffer.
    scratch: Box<[u8]>,
}

/// Rings and port of one connection.
struct Link {
    event: Event,
    sender: Sender,
    rx: Rx,
    /// The backend wants to hear of pages posted again.
    notify: bool,
}

impl Link {
    fn new(backend: DomId, options: Options, offers: Offers) -> Result<Self, NetfrontError> {
        let large = if offers.gso_v4 || offers.gso_v6 { options.tx_large } else { 0 };
        let tx = Tx::new(backend, options.tx_small, large)?;
        let mut rx = Rx::new(backend, options.rx_buffers)?;
        rx.publish();
        let event = Event::alloc_unbound(backend).map_err(NetfrontError::Event)?;
        let scratch = vec![0; GSO_FRAME_MAX].into_boxed_slice();
        Ok(Self { event, sender: Sender { tx, offers, notify: false, scratch }, rx, notify: false })
    }
}

impl Sender {
    /// Sends the `len` bytes that `fill` writes: into a granted buffer, or, where there is none, into nowhere.
    fn send<R>(
        &mut self,
        counters: &mut Counters,
        len: usize,
        mss: Option<NonZeroU16>,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let Some(slot) = self.tx.take(len) else { return self.drop_frame(counters, len, fill) };
        let Some(frame) = self.tx.bytes(&slot, len) else { return self.drop_frame(counters, len, fill) };
        let result = fill(frame);
        let mut flags = 0;
        let mut gso = None;
        if let Found::Transport(at) = checksum::find(frame) {
            let offloaded = if at.v6 { self.offers.checksum_v6 } else { self.offers.checksum_v4 };
            if offloaded {
                at.blank(frame);
                flags = txf::CSUM_BLANK | txf::DATA_VALIDATED;
            } else {
                at.fill(frame);
            }
            gso = mss.map(|mss| Gso { mss: mss.get(), v6: at.v6 });
        }
        if self.tx.send(slot, len, flags, gso) {
            self.notify |= self.tx.publish();
            counters.tx_packets = counters.tx_packets.wrapping_add(1);
            counters.tx_bytes = counters.tx_bytes.wrapping_add(len as u64);
        } else {
            counters.tx_dropped = counters.tx_dropped.wrapping_add(1);
        }
        result
    }

    fn drop_frame<R>(&mut self, counters: &mut Counters, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        counters.tx_dropped = counters.tx_dropped.wrapping_add(1);
        match self.scratch.get_mut(..len) {
            Some(frame) => fill(frame),
            None => fill(&mut vec![0; len]),
        }
    }
}

/// A network interface of this domain.
pub struct Netfront {
    device: Node,
    mac: [u8; 6],
    options: Options,
    /// What `capabilities` told the stack, which asks once.
    promised: Option<Offers>,
    link: Option<Link>,
    established: bool,
    counters: Counters,
}

impl Netfront {
    /// Brings up `device/vif/INDEX`, waiting until `deadline` for the backend. Watch events of others that come meanwhile are
    /// dropped, so set other watches afterwards.
    ///
    /// # Errors
    /// See [`NetfrontError`].
    pub fn connect(store: &mut Store, index: u32, options: Options, deadline: Instant) -> Result<Self, NetfrontError> {
        let device = Node::find(store, "vif", index)?;
        let mac = device.own(store, "mac")?;
        let mac = negotiate::parse_mac(&mac).ok_or_else(|| device.bad("mac"))?;
        let counters = Counters::default();
        let mut this = Self { device, mac, options, promised: None, link: None, established: false, counters };
        xenbus::connect(&mut this, store, deadline)?;
        Ok(this)
    }

    /// Serves a watch event if it is this device's; answers whether it was. The link may be gone or new afterwards.
    ///
    /// # Errors
    /// Making the link anew failed.
    pub fn store_event(&mut self, store: &mut Store, event: &WatchEvent) -> Result<bool, NetfrontError> {
        if !self.device.is_about(event) {
            return Ok(false);
        }
        xenbus::step(self, store)?;
        Ok(true)
    }

    /// The interface's address.
    #[must_use]
    pub const fn mac(&self) -> [u8; 6] {
        self.mac
    }
    /// Whether the link is up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.established
    }
    /// The port to wait on; `None` while there is no link.
    #[must_use]
    pub fn port(&self) -> Option<EvtchnPort> {
        self.link.as_ref().map(|link| link.event.port())
    }
    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Clears the pending event. Do this before each `Interface::poll`.
    pub fn take_event(&mut self) -> bool {
        self.link.as_ref().is_some_and(|link| link.event.take_pending())
    }

    /// Shows the backend all that was sent and posted, with at most one notification, and only where it asked for one.
    pub fn flush(&mut self) {
        let Some(link) = &mut self.link else { return };
        link.notify |= link.rx.publish();
        link.notify |= core::mem::take(&mut link.sender.notify);
        if core::mem::take(&mut link.notify) {
            self.counters.notifications = self.counters.notifications.wrapping_add(1);
            // A port whose other end is being restarted is unbound and takes this silently; the new one looks by itself.
            let _ = link.event.notify();
        }
    }

    /// Asks the backend for notifications, then looks once more: true where there is nothing to do until one comes.
    pub fn idle(&mut self) -> bool {
        self.link.as_mut().is_none_or(|link| {
            let received = link.rx.arm();
            let room = link.sender.tx.arm();
            !received && !room
        })
    }
}

impl Frontend for Netfront {
    type Error = NetfrontError;
    const NEGOTIATED: XenbusState = XenbusState::Connected;

    fn device(&self) -> &Node {
        &self.device
    }
    fn linked(&self) -> bool {
        self.link.is_some()
    }
    fn established(&self) -> bool {
        self.established
    }
    fn negotiate(&mut self, store: &mut Store) -> Result<(), NetfrontError> {
        let offers = Offers::read(store, &self.device).map_err(XenbusError::Store)?;
        if self.promised.is_some_and(|promised| !offers.covers(&promised)) {
            return Err(NetfrontError::FewerOffers);
        }
        self.promised.get_or_insert(offers);
        let link = Link::new(self.device.backend, self.options, offers)?;
        let rings = negotiate::Rings { tx: link.sender.tx.gref(), rx: link.rx.gref(), port: link.event.port() };
        negotiate::publish(store, &self.device, rings).map_err(XenbusError::Store)?;
        self.link = Some(link);
        Ok(())
    }
    fn establish(&mut self) {
        self.established = true;
        self.counters.links = self.counters.links.wrapping_add(1);
    }
    fn lose(&mut self) {
        self.established = false;
        self.link = None;
    }
}

impl Device for Netfront {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _timestamp: smoltcp::time::Instant) -> Option<(Received<'_>, ToSend<'_>)> {
        crate::crash::point();
        let link = self.link.as_mut()?;
        let len = link.rx.next(&mut self.counters, &mut link.notify)?;
        self.counters.rx_packets = self.counters.rx_packets.wrapping_add(1);
        self.counters.rx_bytes = self.counters.rx_bytes.wrapping_add(len as u64);
        // An answer to this frame may need a buffer; without one it is dropped, as a full queue of a real card would do.
        link.sender.tx.reap(&mut self.counters);
        let to_send = ToSend { sender: &mut link.sender, counters: &mut self.counters, mss: None };
        Some((Received { frame: link.rx.frame(len) }, to_send))
    }

    fn transmit(&mut self, _timestamp: smoltcp::time::Instant) -> Option<ToSend<'_>> {
        let link = self.link.as_mut()?;
        link.sender.tx.reap(&mut self.counters);
        let room = link.sender.tx.has_room();
        room.then_some(ToSend { sender: &mut link.sender, counters: &mut self.counters, mss: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let promised = self.promised.unwrap_or_default();
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = MTU;
        // Transport checksums are the device's in both directions: offloaded, or done here.
        caps.checksum.tcp = Checksum::None;
        caps.checksum.udp = Checksum::None;
        let gso = |offered: bool| NonZeroUsize::new(GSO_FRAME_MAX).filter(|_| offered);
        caps.segmentation.tcpv4 = gso(promised.gso_v4);
        caps.segmentation.tcpv6 = gso(promised.gso_v6);
        caps
    }
}

/// A frame received, in private memory.
pub struct Received<'a> {
    frame: &'a [u8],
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame)
    }
}

/// The right to send one frame.
pub struct ToSend<'a> {
    sender: &'a mut Sender,
    counters: &'a mut Counters,
    mss: Option<NonZeroU16>,
}

impl TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.sender.send(self.counters, len, self.mss, f)
    }
    fn set_meta(&mut self, meta: PacketMeta) {
        self.mss = meta.segmentation_offload_size;
    }
}
