//! The loop of the host's endpoint: one thread that owns the wire, the stack and all connections, and sleeps in `poll`.

use super::device::Wire;
use super::forward::Forward;
use super::proxy::Connection;
use super::{Guest, Order, State, dhcp, frame, probe, router};
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{IpAddress, IpCidr, IpEndpoint};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two router advertisements.
const ADVERTISE_EVERY: Duration = Duration::from_secs(10);
/// Longest sleep.
const NAP: Duration = Duration::from_millis(100);
/// How much faster the stack's clock runs than ours. Its least retransmission timeout is a second (RFC 6298), made for the Internet;
/// on a wire whose round trip takes a millisecond it would turn one frame lost with a driver into a second of silence. So it is 50 ms,
/// between what peers on one segment use: Linux waits 200 ms, but probes for a lost tail after two round trips.
const PACE: u64 = 20;
/// Frames from the machine that may wait for the stack before QEMU is left to wait.
const INCOMING_MAX: usize = 512;

/// What the thread owns.
pub struct Endpoint {
    pub(super) doors: Vec<UnixListener>,
    pub(super) guests: Vec<(Guest, Option<TcpListener>)>,
    pub(super) orders: Receiver<Order>,
    pub(super) wake: UnixStream,
    pub(super) state: Arc<Mutex<State>>,
    wire: Wire,
    iface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    lingering: Vec<SocketHandle>,
    forwards: Vec<Forward>,
    start: Instant,
    next_port: u16,
    next_advertisement: Option<Instant>,
    pace: Option<Duration>,
    next_probe: Instant,
    /// Guests to ping over IPv6, with the time of the next.
    pings6: Vec<(usize, Instant)>,
}

impl Endpoint {
    pub(super) fn new(
        doors: Vec<UnixListener>,
        guests: Vec<(Guest, Option<TcpListener>)>,
        orders: Receiver<Order>,
        wake: UnixStream,
        state: Arc<Mutex<State>>,
    ) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(frame::HOST_MAC.into());
        // Only initial sequence numbers and ports hang on it; nobody unfriendly is on this wire.
        config.random_seed = u64::from(std::process::id());
        let mut iface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        iface.update_ip_addrs(|addresses| {
            let own = [
                IpCidr::new(frame::HOST_IP.into(), frame::PREFIX_LEN),
                IpCidr::new(IpAddress::from(router::HOST_LINK_LOCAL), 64),
                IpCidr::new(IpAddress::from(router::HOST_IP), 64),
            ];
            // Holds as many as the features of smoltcp allow, at least two; the IPv4 one is first.
            for cidr in own {
                let _ = addresses.push(cidr);
            }
        });
        let start = Instant::now();
        Self {
            doors,
            guests,
            orders,
            wake,
            state,
            wire,
            iface,
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
            lingering: Vec::new(),
            forwards: Vec::new(),
            start,
            next_port: 49_152,
            next_advertisement: None,
            pace: None,
            next_probe: start,
            pings6: Vec::new(),
        }
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// Of the sockets it lives on.
    pub fn run(mut self) -> Result<()> {
        loop {
            loop {
                match self.orders.try_recv() {
                    Ok(Order::Probe(pace)) => {
                        self.pace = pace;
                        self.next_probe = Instant::now();
                    }
                    Ok(Order::Forward(forward)) => self.forwards.push(forward),
                    Ok(Order::Other(stream)) => {
                        self.wire.other = Some(super::stream::Link::new(stream).context("the other host")?);
                    }
                    Ok(Order::Ping6(guest)) => self.pings6.push((guest, Instant::now())),
                    Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return Ok(()),
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.welcome()?;
            self.receive();
            self.accept();
            self.advertise();
            self.probe();
            self.ping6();
            let now = self.now();
            self.iface.poll(now, &mut self.wire, &mut self.sockets);
            self.sweep();
            for forward in &mut self.forwards {
                self.connections.extend(forward.take(&mut self.sockets));
            }
            self.shuffle();
            self.iface.poll(now, &mut self.wire, &mut self.sockets);
            self.flush();
            self.report();
            self.sleep()?;
        }
    }

    /// The stack's time: [`PACE`] times ours.
    fn now(&self) -> smoltcp::time::Instant {
        let micros = self.start.elapsed().as_micros() * u128::from(PACE);
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    fn report(&mut self) {
        let resets = self.wire.trace.resets();
        let mut state = self.lock();
        state.counts = self.wire.counts;
        state.resets.extend(resets);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes QEMU's connections, in the order of the doors, so that a link's number is its NIC's.
    fn welcome(&mut self) -> Result<()> {
        while let Some(door) = self.doors.get(self.wire.links.len()) {
            match door.accept() {
                Ok((stream, _)) => self.wire.links.push(super::stream::Link::new(stream).context("network link")?),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("network link"),
            }
        }
        Ok(())
    }

    fn receive(&mut self) {
        if self.wire.incoming.len() >= INCOMING_MAX {
            return;
        }
        self.receive_other();
        if !self.other_has_room() {
            return;
        }
        for number in 0..self.wire.links.len() {
            let mut frames = Vec::new();
            // A link that ended is QEMU that ended, which whoever runs it sees.
            let _ = self.wire.links[number].receive(|bytes| frames.push(bytes.to_vec()));
            let now = Instant::now();
            for bytes in frames {
                self.wire.note(number, &bytes);
                if !self.wire.pass(&bytes) {
                    self.take(bytes, now);
                }
            }
        }
    }

    /// Frames of the other host go to the machine; what they ask of us (a neighbour) goes to the stack.
    fn receive_other(&mut self) {
        if !self.wire.room() {
            return;
        }
        let Some(mut other) = self.wire.other.take() else { return };
        let wire = &mut self.wire;
        // One that ended is missed by those who talk to it.
        let _ = other.receive(|bytes| match frame::destination(bytes) {
            Some(frame::HOST_MAC) => wire.incoming.push_back(bytes.to_vec()),
            _ => wire.send(bytes),
        });
        self.wire.other = Some(other);
    }

    fn other_has_room(&self) -> bool {
        self.wire.other.as_ref().is_none_or(super::stream::Link::room)
    }

    fn take(&mut self, bytes: Vec<u8>, now: Instant) {
        match frame::inspect(&bytes) {
            frame::Kind::EchoReply { from, ident: probe::IDENT, data } => {
                if let Some(i) = self.guests.iter().position(|(g, _)| g.ip == from) {
                    self.lock().probes[i].receive(data, now);
                }
            }
            frame::Kind::EchoReply6 { from } => {
                if let Some(i) = self.guests.iter().position(|(g, _)| router::guest_address(g.mac) == from) {
                    self.lock().answered6[i] = true;
                    self.pings6.retain(|&(guest, _)| guest != i);
                }
            }
            frame::Kind::Dhcp(message) => {
                let lease = |mac| self.guests.iter().find(|(g, _)| g.mac == mac).map(|(g, _)| g.ip);
                if let Some(answer) = dhcp::answer(message, lease) {
                    self.wire.send(&answer.frame);
                    let who = self.guests.iter().position(|(g, _)| g.mac == answer.client);
                    if let Some(i) = who.filter(|_| answer.bound) {
                        self.lock().up[i].get_or_insert(now);
                    }
                }
            }
            _ if router::solicited(&bytes) => self.next_advertisement = Some(now),
            _ => self.wire.incoming.push_back(bytes),
        }
    }

    fn accept(&mut self) {
        for (i, (_, listener)) in self.guests.iter().enumerate() {
            while let Some(Ok((client, _))) = listener.as_ref().map(TcpListener::accept) {
                if let Ok(connection) = Connection::new(client, i) {
                    self.connections.push(connection);
                }
            }
        }
        // A guest is spoken to when it has its address; until then its callers wait.
        let up: Vec<bool> = self.lock().up.iter().map(Option::is_some).collect();
        for connection in &mut self.connections {
            if connection.handle.is_none() && up[connection.guest] {
                let guest = &self.guests[connection.guest].0;
                self.next_port = self.next_port.checked_add(1).unwrap_or(49_152);
                let to = IpEndpoint::new(guest.ip.into(), 80);
                connection.open(&mut self.iface, &mut self.sockets, to, self.next_port);
            }
        }
    }

    fn advertise(&mut self) {
        let due = self.next_advertisement.is_none_or(|at| Instant::now() >= at);
        if due && !self.wire.links.is_empty() {
            self.wire.send(&router::advertisement());
            self.next_advertisement = Some(Instant::now() + ADVERTISE_EVERY);
        }
    }

    fn probe(&mut self) {
        let Some(pace) = self.pace else { return };
        let now = Instant::now();
        if now < self.next_probe {
            return;
        }
        // After a stall of this thread the pace is taken up anew; no volley is sent to make up for it.
        self.next_probe = (self.next_probe + pace).max(now);
        for i in 0..self.guests.len() {
            let (guest, _) = &self.guests[i];
            let target = frame::Target { mac: guest.mac, ip: guest.ip };
            let mut state = self.lock();
            if state.up[i].is_none() {
                continue;
            }
            let data = state.probes[i].send();
            let sequence = u16::from_be_bytes([data[6], data[7]]);
            drop(state);
            self.wire.send(&frame::echo(target, probe::IDENT, sequence, &data));
        }
    }

    fn ping6(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (guest, at) in self.pings6.iter_mut().filter(|(_, at)| *at <= now) {
            *at = now + Duration::from_secs(1);
            due.push(*guest);
        }
        for guest in due.iter().filter_map(|&i| self.guests.get(i)) {
            let mac = guest.0.mac;
            self.wire.send(&router::echo(mac, router::guest_address(mac)));
        }
    }

    fn shuffle(&mut self) {
        let mut rest = Vec::with_capacity(self.connections.len());
        for mut connection in self.connections.drain(..) {
            if connection.shuffle(&mut self.sockets) {
                rest.push(connection);
            } else {
                self.lingering.extend(connection.handle);
            }
        }
        self.connections = rest;
    }

    /// Removes closed sockets; those in TIME-WAIT, or with a reset still to send, stay for a while.
    fn sweep(&mut self) {
        let sockets = &mut self.sockets;
        self.lingering.retain(|&handle| {
            let over = sockets.get::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed;
            if over {
                sockets.remove(handle);
            }
            !over
        });
    }

    fn flush(&mut self) {
        for link in self.wire.links.iter_mut().chain(&mut self.wire.other) {
            let _ = link.flush();
        }
    }

    fn sleep(&mut self) -> Result<()> {
        let now = self.now();
        let mut nap = NAP;
        if let Some(delay) = self.iface.poll_delay(now, &self.sockets) {
            nap = nap.min(Duration::from_micros(delay.total_micros() / PACE));
        }
        if self.pace.is_some() {
            nap = nap.min(self.next_probe.saturating_duration_since(Instant::now()));
        }
        let room = self.wire.incoming.len() < INCOMING_MAX && self.other_has_room();
        let room_out = self.wire.incoming.len() < INCOMING_MAX && self.wire.room();
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        fds.extend(self.doors.get(self.wire.links.len()).map(|door| PollFd::new(door, PollFlags::IN)));
        let links = self.wire.links.iter().map(|link| (link, room));
        for (link, room) in links.chain(self.wire.other.iter().map(|other| (other, room_out))) {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, room);
            flags.set(PollFlags::OUT, link.waiting());
            fds.push(PollFd::new(link.stream(), flags));
        }
        fds.extend(self.guests.iter().filter_map(|(_, l)| l.as_ref()).map(|l| PollFd::new(l, PollFlags::IN)));
        for connection in &self.connections {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, connection.wants_input(&self.sockets));
            flags.set(PollFlags::OUT, connection.wants_output());
            if !flags.is_empty() {
                fds.push(PollFd::new(&connection.client, flags));
            }
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(nap.min(NAP).subsec_nanos()) };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll of the network endpoint"),
        }
        let mut byte = [0; 64];
        while matches!(std::io::Read::read(&mut self.wake, &mut byte), Ok(n) if n > 0) {}
        Ok(())
    }
}
