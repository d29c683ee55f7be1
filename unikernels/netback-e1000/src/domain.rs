//! The domain's side of the backend: grants, events, packet memory and xenstore under libxenrt.

use abi::grant::{GNTCOPY_DEST_GREF, GrantCopy, status};
use abi::{DomId, Errno, EvtchnPort, GrantRef, PAGE_SIZE};
use core::ops::Range;
use libxenrt::dma::DmaRegion;
use libxenrt::event::Event;
use libxenrt::grant::{self, Access, GrantError, MapRequest};
use libxenrt::hypercall::Batch;
use libxenrt::watchdog::Watchdog;
use libxenrt::{SharedPage, clock, crash, store};
use netback::{Area, Platform, Store, StoreError};

use alloc::string::String;
use alloc::vec::Vec;

/// Events in one multicall.
const BATCH: usize = 16;

/// Packet memory.
#[derive(Debug)]
pub struct Packets(pub DmaRegion);

impl Packets {
    /// Its guest-physical addresses.
    pub fn range(&self) -> Range<u64> {
        let base = self.0.device_address();
        base..base.wrapping_add(self.0.len_bytes() as u64)
    }
}

impl Area for Packets {
    fn base(&self) -> u64 {
        self.0.device_address()
    }
    fn len_bytes(&self) -> usize {
        self.0.len_bytes()
    }
    fn read(&self, offset: usize, out: &mut [u8]) {
        let copied = self.0.copy_out(offset, out);
        out.get_mut(copied..).unwrap_or_default().fill(0);
    }
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0.copy_in(offset, bytes);
    }
}

/// Hypercalls.
#[derive(Debug)]
pub struct Hypercalls {
    /// Packet memory: the only memory of ours that copies may name.
    packets: Range<u64>,
    events: Vec<Event>,
    watchdog: Option<Watchdog>,
}

impl Hypercalls {
    /// Copies will go to and from `packets`.
    pub const fn new(packets: Range<u64>) -> Self {
        Self { packets, events: Vec::new(), watchdog: None }
    }

    /// From now on a step that takes longer than `watchdog` allows ends the domain.
    pub fn watch(&mut self, watchdog: Watchdog) {
        self.watchdog = Some(watchdog);
    }

    /// A step is done.
    pub fn feed(&mut self) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.feed(clock::now());
        }
    }

    /// Ports of all vifs.
    pub fn ports(&self) -> impl Iterator<Item = EvtchnPort> {
        self.events.iter().map(Event::port)
    }

    /// Whether our side of a copy is packet memory.
    fn is_ours(&self, op: &GrantCopy) -> bool {
        let ours = if op.flags & GNTCOPY_DEST_GREF != 0 { &op.source } else { &op.dest };
        let start = ours.u.saturating_mul(PAGE_SIZE as u64).saturating_add(u64::from(ours.offset));
        let end = start.saturating_add(u64::from(op.len));
        ours.domid == DomId::SELF && start >= self.packets.start && end <= self.packets.end
    }
}

fn errno(e: GrantError) -> Errno {
    match e {
        GrantError::Hypercall(e) => e,
        GrantError::NoRoom | GrantError::TableFull => Errno::ENOMEM,
        GrantError::BadFrame(_) => Errno::ERANGE,
        GrantError::Busy(_) => Errno::EBUSY,
        GrantError::Status(_) => Errno::EINVAL,
    }
}

impl Platform for Hypercalls {
    type Page = SharedPage;

    fn map(&mut self, dom: DomId, grefs: [GrantRef; 2]) -> Result<[SharedPage; 2], Errno> {
        let request = |gref| MapRequest { dom, gref, access: Access::ReadWrite, device: false };
        let mut pages = grant::map_many(&grefs.map(request)).map_err(errno)?.into_iter();
        // Where one fails the other is unmapped by being dropped.
        let [a, b] = [(); 2].map(|()| pages.next().unwrap_or(Err(GrantError::NoRoom)));
        Ok([a.map_err(errno)?, b.map_err(errno)?])
    }

    fn bind(&mut self, dom: DomId, port: EvtchnPort) -> Result<EvtchnPort, Errno> {
        let event = Event::bind_interdomain(dom, port)?;
        let local = event.port();
        self.events.push(event);
        Ok(local)
    }

    fn unbind(&mut self, port: EvtchnPort) {
        // Closed by being dropped.
        self.events.retain(|e| e.port() != port);
    }

    fn notify(&mut self, ports: &[EvtchnPort]) {
        for chunk in ports.chunks(BATCH) {
            let mut batch = Batch::<BATCH>::new();
            for &port in chunk {
                batch.notify(port);
            }
            if let Err(e) = batch.issue() {
                log::warn!("notification refused: {e}");
            }
        }
    }

    fn copy(&mut self, operations: &mut [GrantCopy]) {
        assert!(operations.iter().all(|op| self.is_ours(op)), "a grant copy outside of packet memory");
        // SAFETY: I6 – just checked: our side of each operation is the packet area, a DMA region.
        if let Err(e) = unsafe { grant::copy(operations) } {
            log::warn!("grant copy refused: {e}");
            operations.iter_mut().for_each(|op| op.status = status::GENERAL_ERROR);
        }
    }

    fn now_us(&self) -> u64 {
        clock::now().as_micros()
    }

    fn crash_point(&mut self) {
        // A turn on a machine without time to spare is long; its steps are not.
        self.feed();
        crash::point();
    }
}

/// Xenstore.
#[derive(Debug)]
pub struct Xenstore(pub store::Store);

/// The token of all of the backend's watches: an event's path says what changed.
const TOKEN: &str = "netback";

fn store_error(e: store::StoreError) -> StoreError {
    match e {
        store::StoreError::TimedOut(_) => StoreError::Timeout,
        store::StoreError::Unavailable(e) => StoreError::Refused(e),
        store::StoreError::NotText => StoreError::Refused(Errno::EINVAL),
        other => {
            log::warn!("xenstore: {other:?}");
            StoreError::Refused(Errno::EIO)
        }
    }
}

impl Store for Xenstore {
    fn read(&mut self, paths: &[String]) -> Result<Vec<Option<String>>, StoreError> {
        self.0.read_many(paths).map_err(store_error)
    }
    fn list(&mut self, paths: &[String]) -> Result<Vec<Vec<String>>, StoreError> {
        self.0.directory_many(paths).map_err(store_error)
    }
    fn write(&mut self, nodes: &[(String, String)]) -> Result<(), StoreError> {
        self.0.write_many(nodes).map_err(store_error)
    }
    fn watch(&mut self, path: &str) -> Result<(), StoreError> {
        self.0.watch(path, TOKEN).map_err(store_error)
    }
    fn unwatch(&mut self, path: &str) {
        if let Err(e) = self.0.unwatch(path, TOKEN) {
            log::debug!("unwatch {path}: {e:?}");
        }
    }
}
