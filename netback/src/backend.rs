//! The backend as a whole: what it owns and the order in which it works.
//!
//! One [`turn`](Backend::turn) moves everything that can move: frames the NIC has sent and received, packets of the vifs
//! (one hypercall copies all of them in), frames for the vifs (one hypercall copies all of them out), frames for the NIC,
//! then the answers and one call for all events. While there is work it polls with interrupts and events suppressed;
//! without work it arms them, looks once more, and only then lets the domain block.
//!
//! `ingress` brings frames in, `egress` takes them out, `connect` follows xenstore.

mod connect;
mod egress;
mod ingress;

pub use connect::Parts;

use crate::frames::{FrameId, Frames, Offload, Origin};
use crate::gro::Gro;
use crate::nic::{Nic, ResetError};
use crate::pool::{Buf, Chunks, Pool};
use crate::rx::Batch;
use crate::tx::VifFault;
use crate::vif::{Connection, Vif, VifStats};
use crate::{Area, Fabric, Platform, PortId, Store};
use ::backend::{Devices, Turn};
use abi::grant::GrantCopy;
use abi::io::netif::rsp;
use abi::{DomId, EvtchnPort};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use ring::{SharedMem, Survivor};

/// What can be chosen about a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Pages of the [`Area`] kept whole, for slots above half a page; the rest is cut in halves.
    pub large_buffers: usize,
    /// Buffers kept posted to the NIC.
    pub rx_buffers: usize,
    /// How many of them may be missing before new ones are posted, all together.
    pub rx_batch: usize,
    /// Frames on their way at one time.
    pub frames: u16,
    /// Packets taken from one vif, and frames from the NIC, before the others have their turn.
    pub budget: usize,
    /// How long to poll after the last work before arming, in microseconds.
    pub spin_us: u64,
    /// How long a frame waits for a vif without posted buffers, in microseconds.
    pub patience_us: u64,
}

impl Default for Config {
    /// For an area of 2 MiB: 160 pages and 704 halves.
    fn default() -> Self {
        Self {
            large_buffers: 160,
            rx_buffers: 240,
            rx_batch: 24,
            frames: 512,
            budget: 64,
            spin_us: 30,
            patience_us: 20_000,
        }
    }
}

/// Counters of the backend itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStats {
    /// Turns made.
    pub turns: u64,
    /// Times it armed and waited.
    pub waits: u64,
    /// Hypercalls that copied.
    pub copy_calls: u64,
    /// Copies they made.
    pub copies: u64,
    /// Calls that sent events.
    pub notify_calls: u64,
    /// Frames received from the NIC that nobody took, or for which there was no room.
    pub rx_dropped: u64,
    /// Vifs closed because their frontend broke the protocol.
    pub vifs_closed: u64,
}

/// One vif, as shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VifStatus {
    /// Whose.
    pub frontend: DomId,
    /// Its number there.
    pub device: u16,
    /// Its rings are in our hands.
    pub connected: bool,
    /// Counters.
    pub stats: VifStats,
}

/// A packet of a vif whose copies are in the batch.
struct Incoming {
    origin: Origin,
    len: u32,
    offload: Offload,
    chunks: Chunks,
    /// Its first copy in the batch.
    first: usize,
}

/// The backend of one NIC.
pub struct Backend<P: Platform, N, A, F, S> {
    me: DomId,
    config: Config,
    platform: P,
    nic: N,
    fabric: F,
    survivor: Survivor<S>,
    pool: Pool<A>,
    frames: Frames,
    vifs: Devices<Vif<P::Page>>,
    /// The vif that goes first in this turn.
    first: usize,
    next_epoch: u32,
    /// Frames for the NIC, in order, and those it has.
    to_nic: VecDeque<FrameId>,
    in_nic: VecDeque<FrameId>,
    posted: Vec<bool>,
    posted_count: usize,
    /// The buffers so far of a frame that the NIC delivers in several.
    partial: Option<Chunks>,
    /// Segments being joined; empty outside of `receive`.
    gro: Gro,
    armed: bool,
    last_work_us: u64,
    // Kept between turns for their memory.
    copies: Vec<GrantCopy>,
    incoming: Vec<Incoming>,
    batch: Batch,
    /// Frames whose way into a vif ends with this turn's batch, and whether they got in.
    done: Vec<(FrameId, bool)>,
    ports: Vec<EvtchnPort>,
    faults: Vec<(usize, VifFault)>,
    stats: BackendStats,
}

impl<P: Platform, N: Nic, A: Area, F: Fabric, S: SharedMem> Backend<P, N, A, F, S> {
    /// One round of work; see the module's head.
    pub fn turn<St: Store>(&mut self, store: &mut St) -> Turn<ResetError> {
        self.disarm();
        self.stats.turns = self.stats.turns.saturating_add(1);
        let now_us = self.platform.now_us();
        let worked = match self.work(store, now_us) {
            Ok(worked) => worked,
            Err(error) => return Turn::Dead(error),
        };
        if worked {
            self.last_work_us = now_us;
        }
        if self.vifs.due(worked, now_us) {
            self.scan(store);
            return Turn::Again;
        }
        if worked || now_us.saturating_sub(self.last_work_us) < self.config.spin_us {
            return Turn::Again;
        }
        if self.arm() {
            return Turn::Again;
        }
        self.stats.waits = self.stats.waits.saturating_add(1);
        Turn::Wait { until_us: self.deadline(now_us) }
    }

    /// Moves everything that can move; true if anything did.
    fn work<St: Store>(&mut self, store: &mut St, now_us: u64) -> Result<bool, ResetError> {
        let mut worked = self.reap_nic();
        worked |= self.receive(now_us);
        self.platform.crash_point();
        worked |= self.take_packets(now_us);
        self.platform.crash_point();
        worked |= self.deliver(now_us);
        self.platform.crash_point();
        worked |= self.send();
        self.post();
        if self.nic.fault().is_some() {
            self.revive()?;
        }
        self.platform.crash_point();
        worked |= self.publish();
        self.close_faulty(store);
        Ok(worked)
    }

    /// Gives the answers that are due and sends all events of this turn.
    fn publish(&mut self) -> bool {
        let mut due = self.frames.take_due();
        for (origin, delivered) in due.drain(..) {
            let Some(vif) = self.vifs.get_mut(origin.vif) else { continue };
            let Some(connection) = &mut vif.connection else { continue };
            if !delivered {
                vif.stats.tx_dropped = vif.stats.tx_dropped.saturating_add(1);
            }
            let status = if delivered { rsp::OKAY } else { rsp::DROPPED };
            if let Err(fault) = connection.answer_frame(&origin, status) {
                self.faults.push((origin.vif, fault));
            }
        }
        self.frames.reuse_due(due);
        let mut any = false;
        for vif in self.vifs.iter_mut() {
            let Some(connection) = &mut vif.connection else { continue };
            for (published, port) in [
                (connection.tx.publish(&mut self.survivor), connection.tx_port),
                (connection.rx.publish(&mut self.survivor), connection.rx_port),
            ] {
                any |= published.count > 0;
                if published.notify && self.ports.last() != Some(&port) {
                    vif.stats.notifications = vif.stats.notifications.saturating_add(1);
                    self.ports.push(port);
                }
            }
        }
        self.platform.crash_point();
        self.send_events();
        any
    }

    fn send_events(&mut self) {
        if !self.ports.is_empty() {
            self.stats.notify_calls = self.stats.notify_calls.saturating_add(1);
            self.platform.notify(&self.ports);
            self.ports.clear();
        }
    }

    /// Suppresses interrupts after a wait. Events need nothing: an index that is not moved on suppresses itself.
    fn disarm(&mut self) {
        if self.armed {
            self.armed = false;
            self.nic.interrupt();
            self.nic.interrupts_enable(false);
        }
    }

    /// Asks for interrupts and events, then looks once more; true if there is work after all.
    fn arm(&mut self) -> bool {
        self.armed = true;
        self.nic.interrupts_enable(true);
        let mut more = self.reap_nic();
        more |= self.receive(self.platform.now_us());
        for (slot, vif) in self.vifs.enumerate_mut() {
            let Some(connection) = &mut vif.connection else { continue };
            // A stalled packet waits for buffers, and these come back with work of the NIC or of another vif.
            let tx = if connection.stalled.is_some() { Ok(false) } else { connection.tx.arm(1) };
            let rx = match connection.waiting.is_empty() {
                true => Ok(false),
                // More than is there now: what is there was not enough for the first in line.
                false => connection.rx.pending().and_then(|n| connection.rx.arm(n.saturating_add(1))),
            };
            match (tx, rx) {
                (Ok(tx), Ok(rx)) => more |= tx | rx,
                (Err(fault), _) | (_, Err(fault)) => {
                    self.faults.push((slot, fault.into()));
                    more = true;
                }
            }
        }
        more
    }

    /// When to look again although no event came: a line that waits for a frontend, or a NIC that should have sent.
    fn deadline(&self, now_us: u64) -> Option<u64> {
        let lines = self.vifs.iter().filter_map(|vif| vif.connection.as_ref());
        let waiting = lines.filter_map(|connection| connection.waiting.front()).map(|frame| frame.until_us).min();
        let sending = (!self.in_nic.is_empty()).then(|| now_us.saturating_add(100_000));
        let scan = self.vifs.due_us(now_us);
        [waiting, sending, scan].into_iter().flatten().min()
    }

    /// The device failed: resets it. What it had is lost to it; what it was sending may have been sent.
    fn revive(&mut self) -> Result<(), ResetError> {
        if let Some(fault) = self.nic.fault() {
            log::warn!("NIC: {fault}; resetting it");
        }
        self.nic.reset()?;
        for id in core::mem::take(&mut self.in_nic) {
            self.frames.release(&mut self.pool, id, true);
        }
        if let Some(chunks) = self.partial.take() {
            self.pool.give_all(&chunks);
        }
        for (index, posted) in (0u16..).zip(&mut self.posted) {
            if core::mem::take(posted) {
                self.pool.give(Buf(index));
            }
        }
        self.posted_count = 0;
        self.post();
        Ok(())
    }

    /// A connected vif.
    fn connection(&mut self, slot: usize) -> Option<&mut Connection<P::Page>> {
        self.vifs.get_mut(slot)?.connection.as_mut()
    }

    fn copy(&mut self, to_vifs: bool) {
        let operations = if to_vifs { &mut self.batch.operations } else { &mut self.copies };
        if !operations.is_empty() {
            self.stats.copy_calls = self.stats.copy_calls.saturating_add(1);
            self.stats.copies = self.stats.copies.saturating_add(operations.len() as u64);
            self.platform.copy(operations);
        }
    }

    /// The domain's side.
    pub fn platform(&mut self) -> &mut P {
        &mut self.platform
    }

    /// The device.
    pub fn nic(&mut self) -> &mut N {
        &mut self.nic
    }

    /// The switch.
    pub fn fabric(&mut self) -> &mut F {
        &mut self.fabric
    }

    /// Counters of the backend.
    pub fn stats(&self) -> BackendStats {
        self.stats
    }

    /// All vifs, with the port of the switch they are at.
    pub fn vifs(&self) -> impl Iterator<Item = (PortId, VifStatus)> {
        self.vifs.enumerate().map(|(slot, vif)| {
            let (frontend, device, stats) = (vif.place.frontend, vif.place.device, vif.stats);
            let status = VifStatus { frontend, device, connected: vif.connection.is_some(), stats };
            (Vif::<P::Page>::port(slot), status)
        })
    }

    /// Frames on their way and buffers neither free nor posted: both 0 when nothing is in flight.
    pub fn in_flight(&self) -> (usize, usize) {
        let frames = usize::from(self.config.frames).saturating_sub(self.frames.room());
        (frames, self.pool.out().saturating_sub(self.posted_count))
    }
}
