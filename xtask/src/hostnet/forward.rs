//! Ports of the endpoint that guests may call: each leads to a port of 127.0.0.1, where a server of the host listens.

use super::proxy::{self, Connection};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, State};
use std::net::{Ipv4Addr, TcpStream};

/// Calls that may come before the first is taken.
const BACKLOG: usize = 8;

/// One port.
pub struct Forward {
    port: u16,
    to: u16,
    waiting: Vec<SocketHandle>,
}

impl Forward {
    /// From the endpoint's `port` to port `to` of the host.
    pub const fn new(port: u16, to: u16) -> Self {
        Self { port, to, waiting: Vec::new() }
    }

    /// Connections that have come, and listens for more.
    pub fn take(&mut self, sockets: &mut SocketSet<'static>) -> Vec<Connection> {
        let mut taken = Vec::new();
        self.waiting.retain(|&handle| {
            let socket = sockets.get_mut::<Socket<'_>>(handle);
            match socket.state() {
                State::Listen | State::SynReceived => return true,
                State::Closed => {
                    sockets.remove(handle);
                    return false;
                }
                _ => {}
            }
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, self.to));
            match client.and_then(|client| Connection::opened(client, handle)) {
                Ok(connection) => {
                    taken.push(connection);
                    false
                }
                // Nobody is there: refused, as by a host without such a server; gone once the reset is sent.
                Err(_) => {
                    socket.abort();
                    true
                }
            }
        });
        while self.waiting.len() < BACKLOG {
            let mut socket = proxy::socket();
            // Port 0 is the only error, and no port of ours.
            if socket.listen(self.port).is_err() {
                break;
            }
            self.waiting.push(sockets.add(socket));
        }
        taken
    }
}
