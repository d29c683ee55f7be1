//! One guest's network device: its rings while they are connected, what its frontend can take, what waits for it.

use crate::frames::{FrameId, Offload, Origin};
use crate::negotiate::{Directory, Features, Keys, Nodes};
use crate::nic::{GsoKind, MacAddr, is_group};
use crate::tx::{Notes, TxPacket, VifFault};
use crate::{Platform, PortId};
use ::backend::Device;
use ::backend::xenbus::Place;
use abi::io::xenbus::XenbusState;
use abi::{Errno, EvtchnPort, GrantRef};
use alloc::collections::VecDeque;
use core::fmt;
use ring::{AttachError, BackRing, Recovery, RingId, RingKind, RxBackRing, SharedMem, TxBackRing};

/// Multicast groups one frontend may name (Linux: `XEN_NETBK_MCAST_MAX`).
const MAX_GROUPS: usize = 64;

/// Counters of a vif, since this instance of the domain began. Directions are the frontend's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VifStats {
    /// Packets the frontend sent.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Packets answered with an error: refused, or their grants did not allow the copy.
    pub tx_errors: u64,
    /// Packets no port took.
    pub tx_dropped: u64,
    /// Frames delivered.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames for which the frontend had no buffers in time, or that it cannot take.
    pub rx_dropped: u64,
    /// Events sent to the frontend.
    pub notifications: u64,
    /// Times its rings were taken up from a dead instance.
    pub reattached: u64,
}

/// Why a connection could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectError {
    Map(GrantRef, Errno),
    Bind(EvtchnPort, Errno),
    Ring(AttachError),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(gref, errno) => write!(f, "ring page {gref} cannot be mapped: {errno}"),
            Self::Bind(port, errno) => write!(f, "port {port} cannot be bound: {errno}"),
            Self::Ring(error) => error.fmt(f),
        }
    }
}

/// A frame on its way into a vif.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub id: FrameId,
    /// Buffers it holds.
    pub buffers: usize,
    /// When to give up.
    pub until_us: u64,
    /// It goes to others as well, so it does not wait for this one.
    pub shared: bool,
}

/// A vif with its rings in hand.
pub(crate) struct Connection<M> {
    pub tx: TxBackRing<M>,
    pub rx: RxBackRing<M>,
    pub tx_port: EvtchnPort,
    pub rx_port: EvtchnPort,
    pub features: Features,
    /// Tells this connection from others of the same vif.
    pub epoch: u32,
    pub notes: Notes,
    /// Parsed, but no room for it yet.
    pub stalled: Option<TxPacket>,
    /// Buffers that its packets hold.
    pub held: usize,
    pub waiting: VecDeque<Waiting>,
    /// Buffers held by those that wait.
    queued: usize,
    groups: heapless::Vec<MacAddr, MAX_GROUPS>,
}

/// A vif, connected or not.
pub(crate) struct Vif<M> {
    pub place: Place,
    pub mac: Option<MacAddr>,
    /// What we last wrote, or found, in our state node.
    pub state: XenbusState,
    pub connection: Option<Connection<M>>,
    /// What it is connected by, for the next instance.
    pub known: Option<Directory>,
    pub stats: VifStats,
}

impl<M> Device for Vif<M> {
    type Kind = Nodes;
    const MAX: usize = PortId::MAX.saturating_sub(1);

    fn new(directory: &Directory) -> Self {
        Self {
            place: directory.place.clone(),
            mac: directory.nodes.mac,
            state: directory.back_state,
            connection: None,
            known: None,
            stats: VifStats::default(),
        }
    }

    fn place(&self) -> &Place {
        &self.place
    }
}

impl<M> Vif<M> {
    pub fn port(slot: usize) -> PortId {
        PortId::vif(slot).unwrap_or(PortId::UPLINK)
    }
}

impl<M> fmt::Display for Vif<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vif{}.{}", self.place.frontend, self.place.device)
    }
}

impl<M: SharedMem> Connection<M> {
    /// Takes up the rings that `keys` name: with a `recovery` those of a dead instance, else fresh ones. On failure
    /// nothing is left mapped or bound.
    pub fn open<P: Platform<Page = M>, S: SharedMem>(
        platform: &mut P,
        vif: &Vif<M>,
        keys: &Keys,
        recovery: Option<&mut Recovery<S>>,
        epoch: u32,
    ) -> Result<Self, ConnectError> {
        let Place { frontend, device, .. } = vif.place;
        let id = |kind, gref| RingId { frontend, device, kind, queue: 0, gref };
        let ids = [id(RingKind::NetTx, keys.tx_ring), id(RingKind::NetRx, keys.rx_ring)];
        // Which groups it named was the dead instance's to know; it gets all of them rather than none.
        let groups = keys.features.groups && recovery.is_none();
        let pages = platform.map(frontend, [keys.tx_ring, keys.rx_ring]);
        let pages = pages.map_err(|errno| ConnectError::Map(keys.tx_ring, errno))?;
        let (tx, rx) = rings(pages, ids, recovery).map_err(ConnectError::Ring)?;
        let bind =
            |platform: &mut P, port| platform.bind(frontend, port).map_err(|errno| ConnectError::Bind(port, errno));
        let tx_port = bind(platform, keys.tx_port)?;
        let rx_port = match keys.rx_port == keys.tx_port {
            true => tx_port,
            false => bind(platform, keys.rx_port).inspect_err(|_| platform.unbind(tx_port))?,
        };
        Ok(Self {
            tx,
            rx,
            tx_port,
            rx_port,
            features: Features { groups, ..keys.features },
            epoch,
            notes: Notes::new(),
            stalled: None,
            held: 0,
            waiting: VecDeque::new(),
            queued: 0,
            groups: heapless::Vec::new(),
        })
    }

    /// Lets go of ports and rings; the frames that waited are returned to be released.
    pub fn close<P: Platform<Page = M>>(self, platform: &mut P) -> VecDeque<Waiting> {
        platform.unbind(self.tx_port);
        if self.rx_port != self.tx_port {
            platform.unbind(self.rx_port);
        }
        self.waiting
    }

    /// Answers a packet's slots with `status`; they leave with the next publication that reaches them.
    pub fn answer(&mut self, index: u32, count: u32, status: i16) -> Result<(), VifFault> {
        for slot in (0..count).map(|n| index.wrapping_add(n)) {
            self.tx.complete(slot, self.notes.response(slot, status))?;
        }
        Ok(())
    }

    /// Answers the slots of a frame that is done, unless they were another connection's.
    pub fn answer_frame(&mut self, origin: &Origin, status: i16) -> Result<(), VifFault> {
        if origin.epoch != self.epoch {
            return Ok(());
        }
        self.held = self.held.saturating_sub(origin.buffers);
        self.answer(origin.index, origin.count, status)
    }

    /// Remembers or forgets a group; false if there is no room for it.
    pub fn group(&mut self, mac: MacAddr, wanted: bool) -> bool {
        self.groups.retain(|group| *group != mac);
        !wanted || (is_group(&mac) && self.groups.push(mac).is_ok())
    }

    /// Does the frontend want frames to this address? Broadcast always.
    pub fn wants(&self, destination: &MacAddr) -> bool {
        let filtered = self.features.groups && is_group(destination) && *destination != [0xFF; 6];
        !filtered || self.groups.contains(destination)
    }

    /// Does the frontend take blank checksums of this family?
    pub fn takes_blank(&self, v6: bool) -> bool {
        if v6 { self.features.blank_v6 } else { self.features.blank_v4 }
    }

    /// Does the frontend take this frame uncut?
    pub fn takes_whole(&self, offload: Offload) -> bool {
        match offload.cut.map(|cut| cut.kind) {
            None => true,
            Some(GsoKind::TcpV4) => self.features.gso_v4 && self.features.sg && self.features.blank_v4,
            Some(GsoKind::TcpV6) => self.features.gso_v6 && self.features.sg && self.features.blank_v6,
        }
    }

    /// Puts a frame in line; false if the line is full: `share` buffers wait there already.
    pub fn enqueue(&mut self, frame: Waiting, share: usize) -> bool {
        let queued = self.queued.saturating_add(frame.buffers);
        if queued > share && !self.waiting.is_empty() {
            return false;
        }
        self.queued = queued;
        self.waiting.push_back(frame);
        true
    }

    /// The first in line leaves it.
    pub fn dequeue(&mut self) {
        if let Some(frame) = self.waiting.pop_front() {
            self.queued = self.queued.saturating_sub(frame.buffers);
        }
    }
}

type Rings<M> = (TxBackRing<M>, RxBackRing<M>);

fn rings<M: SharedMem, S: SharedMem>(
    [tx_page, rx_page]: [M; 2],
    [tx, rx]: [RingId; 2],
    recovery: Option<&mut Recovery<S>>,
) -> Result<Rings<M>, AttachError> {
    match recovery {
        None => Ok((BackRing::connect(tx_page, tx)?, BackRing::connect(rx_page, rx)?)),
        Some(recovery) => {
            let tx = BackRing::attach(tx_page, tx, recovery)?;
            let rx = BackRing::attach(rx_page, rx, recovery)?;
            Ok((tx.ring, rx.ring))
        }
    }
}
