//! The HTTP server: a fixed number of connections on one port, the site behind them, and the count of what they moved.

use crate::connection::{Connection, Moved};
use crate::http::Refusal;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
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
}

impl Server {
    /// Adds `connections` sockets with buffers of `buffer_bytes` each way to `sockets`, listening on `port`.
    #[must_use]
    pub fn new(sockets: &mut SocketSet<'static>, port: u16, connections: usize, buffer_bytes: usize) -> Self {
        let connections = (0..connections)
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
        Self { port, connections }
    }

    /// Serves every connection as far as it goes now; true if any byte moved.
    pub fn poll(&mut self, sockets: &mut SocketSet<'static>, site: &mut impl Site) -> bool {
        let mut any = false;
        for (handle, connection) in &mut self.connections {
            let socket = sockets.get_mut::<Socket<'_>>(*handle);
            let moved = connection.poll(socket, self.port, site);
            connection.flush(socket);
            if moved.tx_bytes > 0 || moved.rx_bytes > 0 {
                site.count(moved);
                any = true;
            }
        }
        any
    }
}
