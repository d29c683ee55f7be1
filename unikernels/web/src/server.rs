//! The HTTP server: a fixed number of connections on one port, the site behind them, and the count of what they moved.

use crate::connection::{Connection, Moved};
use crate::http::Refusal;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;

/// What is behind the fixed paths.
pub trait Site {
    /// Body of `/status.json`.
    fn status_json(&mut self) -> String;
    /// Counts what a connection moved just now.
    fn count(&mut self, moved: Moved);
    /// Orders a crash of `domain` in the way `how`.
    ///
    /// # Errors
    /// The refusal to send: 403 where this guest has no right to it, 503 where the order could not be placed.
    fn crash(&mut self, domain: &str, how: &str) -> Result<(), Refusal>;
}

/// The server's connections.
pub struct Server {
    port: u16,
    connections: Vec<(SocketHandle, Connection)>,
    /// Numbers of those in TIME-WAIT, the one longest in it first.
    resting: VecDeque<usize>,
    /// Most of these.
    resting_max: usize,
}

impl Server {
    /// Adds sockets with buffers of `buffer_bytes` each way to `sockets`, listening on `port`: `connections` and as many again, in
    /// which closed connections rest in TIME-WAIT. Where more are closed in its ten seconds, the oldest make room.
    #[must_use]
    pub fn new(sockets: &mut SocketSet<'static>, port: u16, connections: usize, buffer_bytes: usize) -> Self {
        let resting_max = connections;
        let connections = (0..connections.saturating_mul(2))
            .map(|_| {
                let buffer = || SocketBuffer::new(vec![0u8; buffer_bytes]);
                let mut socket = Socket::new(buffer(), buffer());
                socket.set_nagle_enabled(false);
                // A peer that vanished must not hold a connection for ever.
                socket.set_keep_alive(Some(Duration::from_secs(20)));
                socket.set_timeout(Some(Duration::from_secs(90)));
                (sockets.add(socket), Connection::default())
            })
            .collect();
        Self { port, connections, resting: VecDeque::new(), resting_max }
    }

    /// To be called after each packet received. The stack gives a SYN to the first socket that listens, even if one behind it has the
    /// connection already and the SYN is only sent again: the first would then take that connection's packets and answer them with a
    /// reset. It listens again instead, and nothing is sent of it. Only a connection in TIME-WAIT makes room for its successor.
    pub fn drop_repeated(&mut self, sockets: &mut SocketSet<'static>) {
        for number in 0..self.connections.len() {
            let Some(older) = self.same_ends(number, sockets) else { continue };
            let socket = self.connections.get(older).map(|(handle, _)| sockets.get::<Socket<'_>>(*handle));
            let rests = socket.is_some_and(|socket| socket.state() == State::TimeWait);
            if let Some((handle, connection)) = self.connections.get_mut(if rests { older } else { number }) {
                let socket = sockets.get_mut::<Socket<'_>>(*handle);
                socket.abort();
                connection.listen(socket, self.port);
            }
        }
    }

    /// The connection behind `number` that has the same ends, if `number` has just got its SYN.
    fn same_ends(&self, number: usize, sockets: &SocketSet<'static>) -> Option<usize> {
        let socket = |number: usize| self.connections.get(number).map(|(handle, _)| sockets.get::<Socket<'_>>(*handle));
        let ends = |socket: &Socket<'_>| (socket.local_endpoint(), socket.remote_endpoint());
        let new = ends(socket(number).filter(|socket| socket.state() == State::SynReceived)?);
        let same = |socket: &Socket<'_>| socket.state() != State::Closed && ends(socket) == new;
        (number.saturating_add(1)..self.connections.len()).find(|&other| socket(other).is_some_and(same))
    }

    /// Serves every connection as far as it goes now; true if any byte moved.
    pub fn poll(&mut self, sockets: &mut SocketSet<'static>, site: &mut impl Site) -> bool {
        let mut any = false;
        self.resting.retain(|&number| {
            let connection = self.connections.get(number);
            connection.is_some_and(|(handle, _)| sockets.get::<Socket<'_>>(*handle).state() == State::TimeWait)
        });
        for (number, (handle, connection)) in self.connections.iter_mut().enumerate() {
            let socket = sockets.get_mut::<Socket<'_>>(*handle);
            let moved = connection.poll(socket, self.port, site);
            connection.flush(socket);
            if moved.tx_bytes > 0 || moved.rx_bytes > 0 {
                site.count(moved);
                any = true;
            }
            if socket.state() == State::TimeWait && !self.resting.contains(&number) {
                self.resting.push_back(number);
            }
        }
        while self.resting.len() > self.resting_max {
            let oldest = self.resting.pop_front().and_then(|number| self.connections.get_mut(number));
            if let Some((handle, connection)) = oldest {
                connection.listen(sockets.get_mut(*handle), self.port);
            }
        }
        any
    }
}
