//! One guest's block device: its ring while it is connected, the requests taken from it, the pages mapped for them.

use crate::disk::DriveInfo;
use crate::grants::{Grants, Held};
use crate::line::{Line, Phase};
use crate::negotiate::{Directory, Keys, Nodes, indirect_segments};
use crate::request::{Kind, Limits};
use crate::source::{Extent, sector_ratio};
use crate::{Config, MapError, MapRequest, Platform};
use ::backend::Device;
use ::backend::xenbus::Place;
use abi::io::blkif::{SECTOR_SIZE, rsp, slots};
use abi::io::xenbus::XenbusState;
use abi::{Errno, EvtchnPort, GrantRef};
use alloc::vec::Vec;
use core::fmt;
use ring::{AttachError, BlkBackRing, Pages, Recovery, RingFault, RingId, RingKind, SharedMem};

/// Indirect pages kept mapped for one vbd.
const KEPT_LISTS: usize = 64;

/// Counters of a vbd, since this instance of the domain began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VbdStats {
    /// Reads answered.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes answered.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Flushes and barriers answered.
    pub flushes: u64,
    /// Discards answered.
    pub discards: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Segments of all requests.
    pub segments: u64,
    /// Of them merged with their predecessor, because their pages lie in a row.
    pub merged: u64,
    /// Requests that waited for an earlier one that they overlap.
    pub overlaps: u64,
    /// Most requests in flight at one time.
    pub max_depth: u32,
    /// Events sent to the frontend.
    pub notifications: u64,
    /// Times its ring was taken up from a dead instance.
    pub reattached: u64,
    /// Requests that were executed again for it.
    pub replayed: u64,
}

impl VbdStats {
    pub(crate) fn count(&mut self, kind: Kind, bytes: u64, status: i16) {
        let add = |counter: &mut u64, n: u64| *counter = counter.saturating_add(n);
        if status != rsp::OKAY {
            return add(&mut self.errors, 1);
        }
        match kind {
            Kind::Read => {
                add(&mut self.reads, 1);
                add(&mut self.read_bytes, bytes);
            }
            Kind::Write => {
                add(&mut self.writes, 1);
                add(&mut self.written_bytes, bytes);
            }
            Kind::Flush | Kind::Barrier => {
                add(&mut self.flushes, 1);
                add(&mut self.written_bytes, bytes);
            }
            Kind::Discard => add(&mut self.discards, 1),
            Kind::Refused => {}
        }
    }
}

/// Why a connection could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectError {
    Map(GrantRef, MapError),
    Bind(EvtchnPort, Errno),
    Ring(AttachError),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(gref, error) => write!(f, "ring page {gref} cannot be mapped: {error:?}"),
            Self::Bind(port, errno) => write!(f, "port {port} cannot be bound: {errno}"),
            Self::Ring(error) => error.fmt(f),
        }
    }
}

/// A vbd with its ring in hand.
pub(crate) struct Connection<M> {
    pub ring: BlkBackRing<M>,
    pub port: EvtchnPort,
    pub extent: Extent,
    pub read_only: bool,
    /// Its drive has gone: all of its requests fail until it closes, whatever drive is in that place now.
    pub lost: bool,
    /// Tells this connection from others of the same vbd.
    pub epoch: u32,
    pub line: Line<Held<M>>,
    pub grants: Grants<M>,
    /// Indirect pages: only read, and only by us, whatever their owner allows.
    pub lists: Grants<M>,
    /// Commands that the drive has.
    pub out: usize,
    /// Bytes it may move before the others have their turn.
    pub deficit: u64,
    /// Requests stay in the ring until pages are unmapped or the drive is there.
    pub stalled: bool,
}

/// What a closed connection has left with the drive: nothing of it is unmapped before all of it is done.
pub(crate) struct Orphans<M> {
    pub epoch: u32,
    pub out: usize,
    pub pages: Vec<M>,
}

/// A vbd, connected or not.
pub(crate) struct Vbd<M> {
    pub place: Place,
    /// What we last wrote, or found, in our state node.
    pub state: XenbusState,
    /// What was offered.
    pub extent: Option<Extent>,
    pub read_only: bool,
    pub connection: Option<Connection<M>>,
    pub orphans: Vec<Orphans<M>>,
    /// What it is connected by, for the next instance.
    pub known: Option<Directory>,
    pub stats: VbdStats,
}

impl<M> Device for Vbd<M> {
    type Kind = Nodes;
    const MAX: usize = 64;

    fn new(directory: &Directory) -> Self {
        Self {
            place: directory.place.clone(),
            state: directory.back_state,
            extent: directory.nodes.extent,
            read_only: directory.nodes.read_only,
            connection: None,
            orphans: Vec::new(),
            known: None,
            stats: VbdStats::default(),
        }
    }

    fn place(&self) -> &Place {
        &self.place
    }
}

impl<M> Vbd<M> {
    /// Pages mapped.
    pub fn mapped(&self) -> usize {
        let orphans = self.orphans.iter().fold(0, |n: usize, orphans| n.saturating_add(orphans.pages.len()));
        self.connection.as_ref().map_or(0, Connection::mapped).saturating_add(orphans)
    }
}

impl<M> fmt::Display for Vbd<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vbd{}.{}", self.place.frontend, self.place.device)
    }
}

impl<M> Connection<M> {
    /// Pages mapped, without the ring's.
    pub fn mapped(&self) -> usize {
        self.grants.mapped().saturating_add(self.lists.mapped())
    }

    /// Gives up a page that is only kept; false if there is none.
    pub fn evict(&mut self, garbage: &mut Vec<M>) -> bool {
        self.grants.evict(garbage) || self.lists.evict(garbage)
    }
}

impl<M: SharedMem> Connection<M> {
    /// Takes up the ring that `keys` name: with a `recovery` that of a dead instance, else a fresh one; how many requests of it have no
    /// answer. On failure nothing is left mapped or bound.
    pub fn open<P: Platform<Page = M>, S: SharedMem>(
        platform: &mut P,
        vbd: &Vbd<M>,
        (keys, extent): (&Keys, Extent),
        recovery: Option<&mut Recovery<S>>,
        (epoch, config): (u32, &Config),
    ) -> Result<(Self, u32), ConnectError> {
        let first = keys.rings.first().copied().unwrap_or_default();
        let Place { frontend, device, .. } = vbd.place;
        let id = RingId { frontend, device, kind: RingKind::Block, queue: 0, gref: first };
        let request = |&gref| MapRequest { dom: frontend, gref, readonly: false, device: false };
        let requests: Vec<MapRequest> = keys.rings.iter().map(request).collect();
        let mut results = Vec::new();
        platform.map(&requests, &mut results);
        let mut pages = Vec::new();
        for (result, gref) in results.into_iter().zip(&keys.rings) {
            pages.push(result.map_err(|error| ConnectError::Map(*gref, error))?.page);
        }
        let slots = slots(keys.rings.len().checked_ilog2().unwrap_or(0));
        let (ring, unanswered) = match recovery {
            None => {
                let ring = BlkBackRing::connect_sized(Pages(pages), id, slots);
                (ring.map_err(|fault| ConnectError::Ring(AttachError::Fault(fault)))?, 0)
            }
            Some(recovery) => {
                let attached = BlkBackRing::attach_sized(Pages(pages), id, slots, recovery);
                let attached = attached.map_err(ConnectError::Ring)?;
                (attached.ring, attached.unanswered)
            }
        };
        let port = platform.bind(frontend, keys.port).map_err(|errno| ConnectError::Bind(keys.port, errno))?;
        let kept = if keys.persistent { usize::from(config.persistent) } else { 0 };
        let connection = Self {
            line: Line::new(ring.next_response()),
            ring,
            port,
            extent,
            read_only: vbd.read_only,
            lost: false,
            epoch,
            grants: Grants::new(kept),
            lists: Grants::new(kept.min(KEPT_LISTS)),
            out: 0,
            deficit: 0,
            stalled: false,
        };
        Ok((connection, unanswered))
    }

    /// Lets go of port and ring. What the drive still has comes back as orphans, every other page as garbage.
    pub fn close<P: Platform<Page = M>>(mut self, platform: &mut P, garbage: &mut Vec<M>) -> Option<Orphans<M>> {
        platform.unbind(self.port);
        let mut pages = Vec::new();
        for request in self.line.iter_mut() {
            for held in core::mem::take(&mut request.held) {
                self.grants.release(held, &mut pages);
            }
        }
        garbage.extend(self.lists.into_kept());
        pages.extend(self.grants.into_kept());
        if self.out == 0 {
            garbage.append(&mut pages);
            return None;
        }
        Some(Orphans { epoch: self.epoch, out: self.out, pages })
    }

    /// What its requests are bounded by on that drive.
    pub fn limits(&self, info: &DriveInfo, config: &Config) -> Limits {
        Limits {
            sectors: self.extent.sectors,
            ratio: sector_ratio(info),
            read_only: self.read_only || info.read_only,
            indirect: indirect_segments(config),
            discard: info.max_discard > 0,
            segment_ratio: u64::from(info.segment_align / SECTOR_SIZE),
        }
    }

    /// A request is done: its pages are let go and its response waits for its turn.
    pub fn finish(
        &mut self,
        stats: &mut VbdStats,
        index: u32,
        status: i16,
        garbage: &mut Vec<M>,
    ) -> Result<(), RingFault> {
        let Some(request) = self.line.get_mut(index) else { return Err(RingFault::NotInFlight { index }) };
        request.phase = Phase::Answered;
        stats.count(request.kind, request.len_bytes(), status);
        for held in request.held.drain(..) {
            self.grants.release(held, garbage);
        }
        request.shrink();
        self.ring.complete(index, request.name.response(status))
    }
}
