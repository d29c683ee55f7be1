//! Connections from the host (`127.0.0.1:PORT`) to a guest's port 80, and those a guest made ([`super::forward`]): bytes move straight between the client's socket and
//! the stack's buffers, both ends close halves on their own.

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::IpEndpoint;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Bytes from the guest that may wait for the client.
const FROM_GUEST: usize = 512 << 10;
/// Bytes to the guest that may be under way: as frames fewer than a NIC's ring has descriptors, since smoltcp sends as much as
/// the receiver's window and this buffer allow.
const TO_GUEST: usize = 256 << 10;

/// One connection.
pub struct Connection {
    /// The client's side.
    pub client: TcpStream,
    /// The guest's side, once it is up.
    pub handle: Option<SocketHandle>,
    /// Number of the guest.
    pub guest: usize,
    client_ended: bool,
    client_blocked: bool,
    guest_ended: bool,
}

impl Connection {
    /// Takes an accepted client.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(client: TcpStream, guest: usize) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        client.set_nodelay(true)?;
        Ok(Self { client, handle: None, guest, client_ended: false, client_blocked: false, guest_ended: false })
    }

    /// Takes a connection that a guest has opened, and the host's side of it.
    ///
    /// # Errors
    /// As [`Connection::new`].
    pub fn opened(client: TcpStream, handle: SocketHandle) -> io::Result<Self> {
        Ok(Self { handle: Some(handle), ..Self::new(client, 0)? })
    }

    /// Opens the guest's side.
    pub fn open(&mut self, iface: &mut Interface, sockets: &mut SocketSet<'static>, to: IpEndpoint, local: u16) {
        let mut socket = socket();
        // A page's requests are short, and each waits for the answer before.
        socket.set_ack_delay(None);
        if socket.connect(iface.context(), to, local).is_ok() {
            self.handle = Some(sockets.add(socket));
        }
    }

    /// The client is worth reading.
    pub fn wants_input(&self, sockets: &SocketSet<'static>) -> bool {
        let room = self.handle.is_none_or(|h| sockets.get::<Socket<'_>>(h).can_send());
        !self.client_ended && self.handle.is_some() && room
    }

    /// The client did not take all there was.
    pub const fn wants_output(&self) -> bool {
        self.client_blocked
    }

    /// Moves what can be moved. False when the connection is over and can be removed.
    pub fn shuffle(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let Some(handle) = self.handle else { return true };
        let socket = sockets.get_mut::<Socket<'_>>(handle);
        if self.send_to_guest(socket).and_then(|()| self.send_to_client(socket)).is_err() {
            // The client is gone: the guest is told by a reset, as a kernel would.
            socket.abort();
            return false;
        }
        if !self.guest_ended && !socket.may_recv() && socket.recv_queue() == 0 && has_been_open(socket) {
            self.guest_ended = true;
            let _ = self.client.shutdown(Shutdown::Write);
        }
        !matches!(socket.state(), State::Closed | State::TimeWait) || socket.recv_queue() > 0
    }

    fn send_to_guest(&mut self, socket: &mut Socket<'_>) -> io::Result<()> {
        while !self.client_ended && socket.can_send() {
            let client = &mut self.client;
            let result = socket.send(|buffer| match client.read(buffer) {
                Ok(n) => (n, Ok(n)),
                Err(error) => (0, Err(error)),
            });
            match result {
                Ok(Ok(0)) => {
                    self.client_ended = true;
                    socket.close();
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn send_to_client(&mut self, socket: &mut Socket<'_>) -> io::Result<()> {
        self.client_blocked = false;
        while socket.can_recv() {
            let client = &mut self.client;
            let result = socket.recv(|buffer| match client.write(buffer) {
                Ok(n) => (n, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.client_blocked = true;
                    break;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// A socket as both sides' connections have it.
pub fn socket() -> Socket<'static> {
    let buffer = |len| SocketBuffer::new(vec![0; len]);
    let mut socket = Socket::new(buffer(FROM_GUEST), buffer(TO_GUEST));
    socket.set_nagle_enabled(false);
    socket
}

fn has_been_open(socket: &Socket<'_>) -> bool {
    !matches!(socket.state(), State::SynSent | State::SynReceived)
}
