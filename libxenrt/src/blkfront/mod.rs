//! The block frontend: negotiates as Linux' blkfront does and keeps many requests in flight over one ring of up to eight pages.
//!
//! Neighbours: [`channel`] is the ring and what is out on it, [`pool`] the granted pages, [`info`] the nodes of xenstore, [`crate::xenbus`] the
//! states; [`file`] makes a byte-granular file of it. A backend that is restarted keeps ring, grants and port (see `ring`): all that
//! is seen here is a late answer. One that goes through Closing in an orderly way costs the link; what it left unanswered is
//! submitted again over the next. One that breaks the protocol is not spoken to any more.
//!
//! The domain's loop: [`Blkfront::take_event`], [`Blkfront::completed`] until there is none, [`Blkfront::submit`], [`Blkfront::kick`]; when
//! [`Blkfront::idle`] says so, `event::poll` on [`Blkfront::port`]. [`Blkfront::wait`] is one such turn for who has nothing else to do.

mod channel;
pub mod file;
mod info;
mod pool;
mod request;
#[cfg(test)]
mod tests;

use crate::clock::{self, Instant};
use crate::event::{self, Event};
use crate::grant::GrantError;
use crate::store::{Store, WatchEvent};
use crate::xenbus::{self, Device, Frontend, XenbusError};
use abi::io::xenbus::XenbusState;
use abi::{Errno, EvtchnPort};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use channel::Channel;
pub use info::Info;
pub use pool::Buffer;
use pool::Pool;
pub use request::{Completion, IoError, Op, Refusal, Refused, Request};
use ring::{FrontFault, Polling};

/// What a device costs this domain.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Pages for data: what is in flight together fits into them.
    pub pool_pages: u16,
    /// Logarithm of the ring's pages, where the backend offers so many; each page has 32 slots.
    pub ring_order: u32,
    /// How long after an answer the next one is looked for before an event is asked for, at most, in microseconds ([`Polling`]).
    pub spin_us: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { pool_pages: 512, ring_order: 1, spin_us: 400 }
    }
}

/// What happened on the device since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads completed.
    pub reads: u64,
    /// Bytes in them.
    pub read_bytes: u64,
    /// Writes completed.
    pub writes: u64,
    /// Bytes in them.
    pub written_bytes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Discards completed.
    pub discards: u64,
    /// Requests the backend answered with an error.
    pub errors: u64,
    /// Requests without an answer before their deadline.
    pub timeouts: u64,
    /// Requests submitted again over a new link.
    pub resubmitted: u64,
    /// Times the backend broke the protocol.
    pub faults: u64,
    /// Notifications sent.
    pub notifications: u64,
    /// Times the link was made.
    pub links: u64,
}

impl Counters {
    fn count(&mut self, request: &Request, result: Result<(), IoError>) {
        let bytes = u64::from(request.sectors).wrapping_mul(512);
        let (number, moved) = match (result, request.op) {
            (Err(_), _) => (&mut self.errors, None),
            (Ok(()), Op::Read) => (&mut self.reads, Some(&mut self.read_bytes)),
            (Ok(()), Op::Write { .. }) => (&mut self.writes, Some(&mut self.written_bytes)),
            (Ok(()), Op::Flush) => (&mut self.flushes, None),
            (Ok(()), Op::Discard) => (&mut self.discards, None),
        };
        *number = number.wrapping_add(1);
        if let Some(total) = moved {
            *total = total.wrapping_add(bytes);
        }
    }
}

/// How a backend broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its index cannot be.
    Ring(FrontFault),
    /// It answered what is not out, or for the second time.
    BadId(u64),
    /// It answered another operation than was asked.
    BadOperation {
        /// `BLKIF_OP_*` of the request.
        asked: u8,
        /// Of the response.
        answered: u8,
    },
    /// A status that does not exist.
    BadStatus(i16),
}

/// Why the device could not be brought up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlkfrontError {
    /// Xenstore or the backend.
    Xenbus(XenbusError),
    /// Memory or grants.
    Grant(GrantError),
    /// The event channel.
    Event(Errno),
    /// A node of the backend is missing or makes no sense.
    BadOffer(&'static str),
}

impl From<XenbusError> for BlkfrontError {
    fn from(e: XenbusError) -> Self {
        Self::Xenbus(e)
    }
}
impl From<GrantError> for BlkfrontError {
    fn from(e: GrantError) -> Self {
        Self::Grant(e)
    }
}

/// Ring and port of one connection.
struct Link {
    event: Event,
    channel: Channel,
    /// What the backend offers; there once it is Connected.
    info: Option<Info>,
    /// The backend wants to hear of what was published.
    notify: bool,
}

/// A block device of this domain.
pub struct Blkfront {
    device: Device,
    vbd: u32,
    options: Options,
    pool: Rc<Pool>,
    link: Option<Link>,
    /// As last offered.
    info: Info,
    established: bool,
    broken: Option<Fault>,
    /// What the last link left unanswered.
    waiting: VecDeque<Request>,
    /// Ended without the ring's doing.
    ended: VecDeque<Completion>,
    counters: Counters,
    polling: Polling,
    /// Something has ended since `polling` was asked.
    answered: bool,
}

impl Blkfront {
    /// Brings up `device/vbd/VBD`, waiting until `deadline` for the backend. Watch events of others that come meanwhile are
    /// dropped, so set other watches afterwards.
    ///
    /// # Errors
    /// See [`BlkfrontError`].
    pub fn connect(store: &mut Store, vbd: u32, options: Options, deadline: Instant) -> Result<Self, BlkfrontError> {
        let device = Device::find(store, "vbd", vbd)?;
        let mut this = Self::new(device, vbd, options)?;
        xenbus::connect(&mut this, store, deadline)?;
        Ok(this)
    }

    fn new(device: Device, vbd: u32, options: Options) -> Result<Self, BlkfrontError> {
        let info = Info {
            sectors: 0,
            sector_size: 512,
            physical_sector_size: 512,
            read_only: true,
            max_sectors: 0,
            flush: false,
            barrier: false,
            discard_granularity: 0,
        };
        Ok(Self {
            pool: Pool::new(device.backend, options.pool_pages)?,
            device,
            vbd,
            options,
            link: None,
            info,
            established: false,
            broken: None,
            waiting: VecDeque::new(),
            ended: VecDeque::new(),
            counters: Counters::default(),
            polling: Polling::new(options.spin_us),
            answered: false,
        })
    }

    /// Linux' number of the device.
    #[must_use]
    pub const fn vbd(&self) -> u32 {
        self.vbd
    }
    /// What the device is, as last offered.
    #[must_use]
    pub const fn info(&self) -> &Info {
        &self.info
    }
    /// Whether the link is up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.established
    }
    /// How the backend broke the protocol, until it has closed the device.
    #[must_use]
    pub const fn fault(&self) -> Option<Fault> {
        self.broken
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
    /// Pages lost to a backend that broke the protocol.
    #[must_use]
    pub fn leaked_pages(&self) -> u32 {
        self.pool.leaked()
    }
    /// Requests not yet reported as completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let out = self.link.as_ref().map_or(0, |link| link.channel.in_flight());
        out.saturating_add(self.waiting.len()).saturating_add(self.ended.len())
    }

    /// A buffer of `len` bytes; `None` while so many are not free.
    #[must_use]
    pub fn buffer(&self, len: usize) -> Option<Buffer> {
        self.pool.take(len)
    }

    /// Queues a request; the backend learns of it by [`Blkfront::kick`].
    ///
    /// # Errors
    /// Nothing was queued; the request comes back with the reason.
    pub fn submit(&mut self, request: Request) -> Result<(), Refused> {
        let refuse = |why, request| Err(Refused { why, request });
        if self.broken.is_some() {
            return refuse(Refusal::Broken, request);
        }
        let Some(link) = self.link.as_mut().filter(|_| self.established && self.waiting.is_empty()) else {
            return refuse(Refusal::Full, request);
        };
        if let Err(why) = self.info.check(&request) {
            return refuse(why, request);
        }
        if request.buffer.as_ref().is_some_and(|buffer| !buffer.is_of(&self.pool)) {
            return refuse(Refusal::BadBuffer, request);
        }
        if request.op == Op::Flush && !self.info.flush && !self.info.barrier {
            // What is completed is stable already.
            self.counters.count(&request, Ok(()));
            self.ended.push_back(request.end(Ok(())));
            return Ok(());
        }
        link.channel.push(&self.info, request).map_err(|request| Refused { why: Refusal::Full, request })
    }

    /// Requests that can be queued now, as far as the ring goes.
    #[must_use]
    pub fn room(&self) -> usize {
        let usable = self.established && self.waiting.is_empty() && self.broken.is_none();
        self.link.as_ref().filter(|_| usable).map_or(0, |link| link.channel.room() as usize)
    }

    /// Shows the backend all that was queued, with at most one notification, and only where it asked for one.
    pub fn kick(&mut self) {
        let Some(link) = self.link.as_mut().filter(|_| self.broken.is_none()) else { return };
        link.notify |= link.channel.publish();
        if core::mem::take(&mut link.notify) {
            self.counters.notifications = self.counters.notifications.wrapping_add(1);
            // A port whose other end is being restarted is unbound and takes this silently; the new one looks by itself.
            let _ = link.event.notify();
        }
    }

    /// Clears the pending event. Do this before taking completions.
    pub fn take_event(&mut self) -> bool {
        self.link.as_ref().is_some_and(|link| link.event.take_pending())
    }

    /// The next request that has ended.
    pub fn completed(&mut self) -> Option<Completion> {
        if let Some(ended) = self.ended.pop_front() {
            return Some(ended);
        }
        let link = self.link.as_mut().filter(|_| self.broken.is_none() && self.established)?;
        match link.channel.completed(&self.info, &mut self.counters) {
            Ok(Some(completion)) => {
                self.answered = true;
                self.resubmit();
                return Some(completion);
            }
            Ok(None) => {}
            Err(fault) => {
                self.break_off(fault);
                return self.ended.pop_front();
            }
        }
        let link = self.link.as_mut()?;
        // The flush after a forced write is the only thing that was pushed here.
        link.notify |= link.channel.publish();
        if link.notify {
            self.kick();
        }
        let link = self.link.as_mut()?;
        link.channel.soonest()?;
        let expired = link.channel.expired(clock::now())?;
        self.counters.timeouts = self.counters.timeouts.wrapping_add(1);
        Some(expired)
    }

    /// Calls `each` with every request that has ended; answers how many those were.
    pub fn poll(&mut self, mut each: impl FnMut(Completion)) -> usize {
        let mut count = 0usize;
        while let Some(completion) = self.completed() {
            count = count.saturating_add(1);
            each(completion);
        }
        count
    }

    fn break_off(&mut self, fault: Fault) {
        log::error!("{}: the backend broke the protocol: {fault:?}", self.device.front);
        self.counters.faults = self.counters.faults.wrapping_add(1);
        self.broken = Some(fault);
        if let Some(link) = &mut self.link {
            self.ended.extend(link.channel.abandon());
        }
        self.ended.extend(self.waiting.drain(..).map(|request| request.end(Err(IoError::Broken))));
    }

    /// Puts on the ring what the last link left unanswered, as far as there is room.
    fn resubmit(&mut self) {
        let Some(link) = self.link.as_mut().filter(|_| self.established) else { return };
        while let Some(request) = self.waiting.pop_front() {
            if self.info.check(&request).is_err() {
                self.ended.push_back(request.end(Err(IoError::Changed)));
                continue;
            }
            if request.op == Op::Flush && !self.info.flush && !self.info.barrier {
                self.ended.push_back(request.end(Ok(())));
                continue;
            }
            if let Err(request) = link.channel.push(&self.info, request) {
                self.waiting.push_front(request);
                break;
            }
            self.counters.resubmitted = self.counters.resubmitted.wrapping_add(1);
        }
        self.kick();
    }

    /// Asks the backend for a notification, then looks once more: true where there is nothing to do until one comes. False as well
    /// for a while after an answer where the next is likely to be there sooner than an event would be: call again after the
    /// domain's other work.
    pub fn idle(&mut self) -> bool {
        if !self.ended.is_empty() {
            return false;
        }
        let Some(link) = self.link.as_mut().filter(|_| self.broken.is_none()) else { return true };
        let now_us = clock::now().as_micros();
        if core::mem::take(&mut self.answered) {
            self.polling.found(now_us);
        }
        // Without a request out there is nothing to look for.
        if link.channel.in_flight() > 0 && self.polling.look_again(now_us) {
            return false;
        }
        !link.channel.arm()
    }

    /// Serves a watch event if it is this device's; answers whether it was. The link may be gone or new afterwards.
    ///
    /// # Errors
    /// Making the link anew failed.
    pub fn store_event(&mut self, store: &mut Store, event: &WatchEvent) -> Result<bool, BlkfrontError> {
        if !self.device.is_about(event) {
            return Ok(false);
        }
        xenbus::step(self, store)?;
        Ok(true)
    }

    /// One turn for who has nothing else to do: shows the backend what is queued, sleeps until an answer may be there or `deadline` has
    /// passed, and serves the device's own watch. Watch events of others that come meanwhile are dropped.
    ///
    /// # Errors
    /// Making the link anew failed, or the wait was refused.
    pub fn wait(&mut self, store: &mut Store, deadline: Instant) -> Result<(), BlkfrontError> {
        self.kick();
        if self.idle() {
            let ports = [store.port(), self.port().unwrap_or(store.port())];
            let soonest = self.link.as_ref().and_then(|link| link.channel.soonest());
            let until = soonest.map_or(deadline, |at| at.min(deadline));
            event::poll(&ports, Some(until)).map_err(BlkfrontError::Event)?;
        }
        self.take_event();
        while let Some(event) = store.next_event().map_err(XenbusError::Store)? {
            self.store_event(store, &event)?;
        }
        Ok(())
    }
}

impl Frontend for Blkfront {
    type Error = BlkfrontError;
    const NEGOTIATED: XenbusState = XenbusState::Initialised;

    fn device(&self) -> &Device {
        &self.device
    }
    fn linked(&self) -> bool {
        self.link.is_some()
    }
    fn established(&self) -> bool {
        self.established
    }
    fn negotiate(&mut self, store: &mut Store) -> Result<(), BlkfrontError> {
        let offered: Option<u32> = self.device.offer(store, "max-ring-page-order").map_err(XenbusError::Store)?;
        // Eight pages are what `ring`'s type holds.
        let order = offered.unwrap_or(0).min(self.options.ring_order).min(3);
        let channel = Channel::new(self.device.backend, order)?;
        let event = Event::alloc_unbound(self.device.backend).map_err(BlkfrontError::Event)?;
        info::publish(store, &self.device, &channel.grefs(), event.port(), order > 0).map_err(XenbusError::Store)?;
        self.link = Some(Link { event, channel, info: None, notify: false });
        Ok(())
    }
    fn complete(&mut self, store: &mut Store) -> Result<(), BlkfrontError> {
        let info = Info::read(store, &self.device).map_err(XenbusError::Store)?;
        let info = info.map_err(BlkfrontError::BadOffer)?;
        if let Some(link) = &mut self.link {
            link.info = Some(info);
        }
        Ok(())
    }
    fn establish(&mut self) {
        if let Some(info) = self.link.as_ref().and_then(|link| link.info) {
            self.info = info;
        }
        self.established = true;
        self.counters.links = self.counters.links.wrapping_add(1);
        self.resubmit();
    }
    fn lose(&mut self) {
        self.established = false;
        let link = self.link.take();
        // After a broken protocol nothing is out any more.
        if let Some(link) = link.filter(|_| self.broken.take().is_none()) {
            self.waiting.extend(link.channel.into_unanswered());
        }
    }
}
