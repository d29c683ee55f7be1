//! The other end of the machine's wire: a small host on QEMU's `-netdev stream`, without privileges.
//!
//! It is the guests' gateway (DHCP, router advertisements, ARP and neighbours), carries connections from the host to
//! their port 80 ([`proxy`]) and theirs to ports of the host ([`forward`]), probes them and counts what passes ([`probe`], [`device::Counts`]). All of it runs in the one
//! thread of [`endpoint`]; a [`Host`] is its handle.
pub mod client;
mod device;
mod dhcp;
mod endpoint;
mod forward;
mod frame;
pub mod probe;
mod proxy;
mod router;
mod stream;
mod trace;

#[cfg(test)]
mod tests;

pub use device::Counts;

use anyhow::{Context, Result};
use smoltcp::wire::{EthernetAddress, Ipv4Address};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A guest with an interface on the wire.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its domain.
    pub name: String,
    /// Its vif.
    pub mac: EthernetAddress,
    /// The address DHCP gives it.
    pub ip: Ipv4Address,
    /// It is there from the beginning; else it may be created later.
    pub starts: bool,
}

impl Guest {
    /// The guests of a system in the order of their domains, with addresses from 10.0.2.16 on.
    pub fn of(system: &crate::manifest::System) -> Vec<Self> {
        let vifs = system.domains.iter().flat_map(|domain| domain.vifs.iter().map(move |vif| (domain, vif)));
        vifs.zip(16..)
            .map(|((domain, vif), last)| Self {
                name: domain.name.clone(),
                mac: EthernetAddress(vif.mac.0),
                ip: Ipv4Address::new(10, 0, 2, last),
                starts: domain.start,
            })
            .collect()
    }
}

/// What the thread is told.
enum Order {
    Probe(Option<Duration>),
    Ping6(usize),
    Forward(forward::Forward),
    Other(UnixStream),
    Stop,
}

/// What it tells.
struct State {
    counts: Counts,
    /// What went before resets.
    resets: Vec<String>,
    /// When each guest got its address.
    up: Vec<Option<Instant>>,
    /// Which guests answered over IPv6.
    answered6: Vec<bool>,
    probes: Vec<probe::Log>,
}

/// A running endpoint; it ends when this is dropped.
pub struct Host {
    orders: Sender<Order>,
    wake: UnixStream,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<Result<()>>>,
    ports: Vec<Option<u16>>,
    doors: Vec<PathBuf>,
}

impl Host {
    /// Listens on one socket per NIC for QEMU; `guests` come with the listener whose connections they get.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn start(doors: &[PathBuf], guests: Vec<(Guest, Option<TcpListener>)>) -> Result<Self> {
        let mut listeners = Vec::new();
        for path in doors {
            let _ = std::fs::remove_file(path);
            let door = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
            door.set_nonblocking(true)?;
            listeners.push(door);
        }
        let mut ports = Vec::new();
        for (_, listener) in &guests {
            if let Some(listener) = listener {
                listener.set_nonblocking(true)?;
            }
            ports.push(listener.as_ref().and_then(|l| l.local_addr().ok()).map(|a| a.port()));
        }
        let (orders, inbox) = channel();
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let state = State {
            counts: Counts::default(),
            resets: Vec::new(),
            up: vec![None; guests.len()],
            answered6: vec![false; guests.len()],
            probes: vec![probe::Log::default(); guests.len()],
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("hostnet".into())
            .spawn(move || endpoint::Endpoint::new(listeners, guests, inbox, woken, shared).run())?;
        Ok(Self { orders, wake, state, thread: Some(thread), ports, doors: doors.to_vec() })
    }

    fn order(&self, order: Order) {
        // A thread that has ended needs no order; its error is told by `stop`.
        let _ = self.orders.send(order);
        let _ = (&self.wake).write(&[0]);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends probes to every guest at this pace, or ends it.
    pub fn probe(&self, pace: Option<Duration>) {
        self.order(Order::Probe(pace));
    }

    /// Sends an echo request over IPv6 to the address a guest made of the advertised prefix, every second until it answers.
    pub fn ping6(&self, guest: usize) {
        self.order(Order::Ping6(guest));
    }

    /// Carries connections of guests to the endpoint's `port`, over IPv4 and IPv6, to a port of 127.0.0.1.
    pub fn forward(&self, port: u16, to: u16) {
        self.order(Order::Forward(forward::Forward::new(port, to)));
    }

    /// Puts another host on the wire, beside the endpoint: a stream of frames in QEMU's form.
    pub fn join(&self, other: UnixStream) {
        self.order(Order::Other(other));
    }

    /// Whether a guest answered one.
    pub fn answered6(&self, guest: usize) -> bool {
        self.lock().answered6.get(guest).copied().unwrap_or(false)
    }

    /// What went over the wire up to now.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// What went over the connections of the first resets up to them, one segment a line: their cause.
    pub fn resets(&self) -> String {
        self.lock().resets.concat()
    }

    /// When a guest got its address.
    pub fn up(&self, guest: usize) -> Option<Instant> {
        self.lock().up.get(guest).copied().flatten()
    }

    /// Looks at a guest's probes.
    pub fn probes<R>(&self, guest: usize, look: impl FnOnce(&probe::Log) -> R) -> Option<R> {
        self.lock().probes.get(guest).map(look)
    }

    /// The host's port that leads to a guest's port 80.
    pub fn port(&self, guest: usize) -> Option<u16> {
        self.ports.get(guest).copied().flatten()
    }

    /// Ends the thread.
    ///
    /// # Errors
    /// What ended it before.
    pub fn stop(&mut self) -> Result<()> {
        self.order(Order::Stop);
        let result = match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(anyhow::anyhow!("the network endpoint panicked; its message stands above")),
            None => Ok(()),
        };
        for door in &self.doors {
            remove(door);
        }
        result
    }
}

fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
