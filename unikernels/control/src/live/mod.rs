//! The running control domain.

mod boot;
mod commands;
mod failure;
mod guests;
mod later;
mod link;
mod orders;
mod socket;
mod status;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use control::history::History;
use control::store::Store;
use control::supervisor::Supervisor;
use core::time::Duration;
use later::Later;
use libxenrt::event::{self, Event};
use libxenrt::watchdog::Watchdog;
use libxenrt::{DomId, Errno, EvtchnPort, Instant, clock, log};
use link::Link;
use socket::Socket;

/// How long the main loop may compute without coming round; time asleep does not count.
const WATCHDOG_MS: u64 = 5000;
/// Housekeeping: what failed is tried again, and the serial port is looked at, should an edge of its interrupt have been lost.
const TICK: Duration = Duration::from_secs(1);
/// Between looks at the console of a domain that the socket follows.
const FOLLOW: Duration = Duration::from_millis(25);

/// Everything this domain knows.
struct Control {
    store: Store,
    supervisor: Supervisor,
    history: History,
    links: Vec<Link>,
    socket: Option<Socket>,
    /// Something happened to a domain; none where the hypervisor refused the port.
    dom_exc: Option<Event>,
    /// Domains whose status nodes are to be written again.
    dirty: BTreeSet<DomId>,
    history_dirty: bool,
    later: Later,
    /// Where the round of the store's turns begins next.
    round: usize,
    watchdog: Option<Watchdog>,
}

/// The domain's program.
pub fn run() {
    let mut control = match boot::boot() {
        Ok(control) => control,
        Err(why) => panic!("{why}"),
    };
    control.watchdog = Watchdog::arm(WATCHDOG_MS).inspect_err(|e| log::warn!("no watchdog: {e}")).ok();
    let mut tick = clock::now() + TICK;
    loop {
        let busy = control.round(&mut tick);
        control.feed();
        if !busy {
            control.wait(tick);
        }
    }
}

impl Control {
    /// One round of work; answers whether there is more to do without waiting.
    fn round(&mut self, tick: &mut Instant) -> bool {
        self.failures();
        let mut busy = self.serve_store();
        if self.failure_pending() {
            return true;
        }
        self.orders();
        if self.quiet_until().is_some() {
            return busy;
        }
        if self.puts_off() {
            return true;
        }
        busy |= self.serve_socket();
        if self.failure_pending() {
            return true;
        }
        busy |= self.do_later();
        let now = clock::now();
        if now >= *tick {
            *tick = now + TICK;
            self.reattach_missing();
            if let Some(socket) = &mut self.socket {
                socket.look_again();
            }
        }
        busy || self.links.iter().any(|l| l.wants_turn(&self.store))
    }

    /// Says that the main loop, or a long step of it, goes on.
    fn feed(&mut self) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.feed(clock::now());
        }
    }

    fn failure_pending(&self) -> bool {
        self.dom_exc.as_ref().is_some_and(Event::is_pending)
    }

    /// Gives each domain that asks, or for which events wait, one bounded turn, beginning with another one each time.
    fn serve_store(&mut self) -> bool {
        let mut busy = false;
        let count = self.links.len();
        self.round = self.round.checked_add(1).filter(|&r| r < count).unwrap_or(0);
        for i in (self.round..count).chain(0..self.round) {
            if let Some(link) = self.links.get_mut(i) {
                busy |= link.turn(&mut self.store);
            }
            if self.failure_pending() {
                return true;
            }
        }
        busy
    }

    fn wait(&self, tick: Instant) {
        let mut ports: Vec<EvtchnPort> = self.links.iter().flat_map(Link::ports).collect();
        ports.extend(self.dom_exc.as_ref().map(Event::port));
        let mut deadline = tick;
        match self.quiet_until() {
            Some(until) => deadline = deadline.min(until),
            None => ports.extend(self.socket.as_ref().and_then(Socket::port)),
        }
        if let Some(at) = self.supervisor.next_deadline() {
            deadline = deadline.min(Instant::from_ns(at));
        }
        if let Some(at) = self.socket.as_ref().and_then(Socket::deadline) {
            deadline = deadline.min(at);
        }
        if let Err(e) = event::poll(&ports, Some(deadline)) {
            // All ports are ours, so this cannot be; should it be nevertheless, don't spin.
            log::warn!("poll of {} ports refused: {e}", ports.len());
            clock::sleep_until(clock::now() + FOLLOW);
        }
    }

    /// See [`link::console_bytes`].
    fn console_bytes(&mut self, domid: DomId, seq: u64, buffer: &mut [u8]) -> Result<(u64, usize), Errno> {
        link::console_bytes(&mut self.links, domid, seq, buffer)
    }

    fn name(&self, domid: DomId) -> &str {
        self.links.iter().find(|l| l.domid == domid).map_or("control", |l| l.name.as_str())
    }
}
