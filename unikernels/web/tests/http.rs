//! The server against a client over a wire that may lose frames: what a browser and curl see.

use sha2::{Digest, Sha256};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Loopback, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetFrame, IpAddress, IpCidr, Ipv4Packet, TcpPacket};
use web::connection::Moved;
use web::http::Refusal;
use web::net::Net;
use web::server::{Server, Site};

struct FakeSite {
    moved: (u64, u64),
    crashed: Vec<(String, String)>,
}

impl Site for FakeSite {
    fn status_json(&mut self) -> String {
        "{\"name\":\"fake\"}".into()
    }
    fn count(&mut self, moved: Moved) {
        self.moved.0 += moved.tx_bytes;
        self.moved.1 += moved.rx_bytes;
    }
    fn crash(&mut self, domain: &str, how: &str) -> Result<(), Refusal> {
        if domain != "netback-e1000" {
            return Err(Refusal { status: 403, why: "no right to crash that domain" });
        }
        self.crashed.push((domain.into(), how.into()));
        Ok(())
    }
}

/// Whether a segment is lost.
type Loses = Box<dyn FnMut(&TcpPacket<&[u8]>) -> bool>;

/// The loopback device with a look at each segment.
struct Wire {
    inner: Loopback,
    loses: Loses,
    /// Segments with RST so far.
    resets: usize,
    /// The last frame with a SYN to the server.
    syn: Vec<u8>,
}

impl Wire {
    /// Sends that once more.
    fn repeat_syn(&mut self) {
        let token = self.inner.transmit(Instant::ZERO).unwrap();
        token.consume(self.syn.len(), |out| out.copy_from_slice(&self.syn));
    }
}

struct Sender<'a>(&'a mut Wire);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        let frame = EthernetFrame::new_checked(bytes.as_slice()).unwrap();
        let packet = Ipv4Packet::new_checked(frame.payload());
        let segment = packet.as_ref().ok().and_then(|packet| TcpPacket::new_checked(packet.payload()).ok());
        self.0.resets += usize::from(segment.as_ref().is_some_and(|segment| segment.rst()));
        if segment.as_ref().is_some_and(|segment| segment.syn() && segment.dst_port() == 80) {
            self.0.syn.clone_from(&bytes);
        }
        if !segment.as_ref().is_some_and(|segment| (self.0.loses)(segment)) {
            let token = self.0.inner.transmit(Instant::ZERO).unwrap();
            token.consume(len, |out| out.copy_from_slice(&bytes));
        }
        result
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, now: Instant) -> Option<(Received, Sender<'_>)> {
        let bytes = self.inner.receive(now)?.0.consume(<[u8]>::to_vec);
        Some((Received(bytes), Sender(self)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(self))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        self.inner.capabilities()
    }
}

struct World {
    device: Wire,
    net: Net,
    sockets: SocketSet<'static>,
    server: Server,
    site: FakeSite,
    client: SocketHandle,
    ms: i64,
}

impl World {
    fn new() -> Self {
        let mut device =
            Wire { inner: Loopback::new(Medium::Ethernet), loses: Box::new(|_| false), resets: 0, syn: vec![] };
        let mut sockets = SocketSet::new(vec![]);
        let net = Net::new(&mut device, &mut sockets, [2, 0, 0, 0, 0, 1], 1, Instant::ZERO);
        let server = Server::new(&mut sockets, 80, 2, 16 * 1024);
        let buffer = || SocketBuffer::new(vec![0u8; 16 * 1024]);
        let client = sockets.add(Socket::new(buffer(), buffer()));
        let site = FakeSite { moved: (0, 0), crashed: vec![] };
        let mut world = Self { device, net, sockets, server, site, client, ms: 0 };
        // Takes the first word of the DHCP client, that it has no lease.
        world.poll();
        world.net.interface.update_ip_addrs(|a| a.push(IpCidr::new(IpAddress::v4(127, 0, 0, 1), 8)).unwrap());
        world.connect(50_000);
        world
    }

    fn connect(&mut self, port: u16) {
        self.connect_from(port, self.client);
    }

    fn connect_from(&mut self, port: u16, client: SocketHandle) {
        let remote = (IpAddress::v4(127, 0, 0, 1), 80);
        self.sockets.get_mut::<Socket>(client).connect(self.net.interface.context(), remote, port).unwrap();
    }

    fn client(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.client)
    }

    /// Polls until the client is in a state.
    fn client_comes_to(&mut self, state: State) {
        for _ in 0..20_000 {
            if self.client().state() == state {
                return;
            }
            self.poll();
        }
        panic!("the client stays in {}", self.client().state());
    }

    fn poll(&mut self) {
        self.ms += 1;
        let look = |sockets: &mut _| self.server.drop_repeated(sockets);
        self.net.poll(&mut self.device, &mut self.sockets, Instant::from_millis(self.ms), look);
        self.server.poll(&mut self.sockets, &mut self.site);
    }

    /// Sends `data`, then collects until `done` says so or the connection ends.
    fn exchange(&mut self, mut data: &[u8], done: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut got = Vec::new();
        for _ in 0..200_000 {
            self.poll();
            let socket = self.sockets.get_mut::<Socket>(self.client);
            if socket.can_send() && !data.is_empty() {
                let n = socket.send_slice(data).unwrap();
                data = &data[n..];
            }
            if socket.can_recv() {
                socket.recv(|d| (d.len(), got.extend_from_slice(d))).unwrap();
            }
            if done(&got) || (!socket.may_recv() && !got.is_empty()) {
                return got;
            }
        }
        panic!(
            "no complete answer, got {} bytes: {:?}",
            got.len(),
            String::from_utf8_lossy(&got[..got.len().min(300)])
        );
    }

    fn request(&mut self, text: &str) -> (String, Vec<u8>) {
        let got = self.exchange(text.as_bytes(), complete);
        split(&got)
    }
}

fn split(got: &[u8]) -> (String, Vec<u8>) {
    let at = web::http::head_len(got).unwrap();
    (String::from_utf8(got[..at].to_vec()).unwrap(), got[at..].to_vec())
}

fn complete(got: &[u8]) -> bool {
    let Some(at) = web::http::head_len(got) else { return false };
    let head = String::from_utf8_lossy(&got[..at]);
    let len = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).map_or(0, |n| n.parse::<usize>().unwrap());
    got.len() >= at + len
}

#[test]
fn page_status_blob_and_sink_on_one_connection() {
    let mut w = World::new();
    let (head, body) = w.request("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(body, web::page::PAGE.as_bytes());

    let (_, body) = w.request("GET /status.json HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(body, b"{\"name\":\"fake\"}");

    let (head, body) = w.request("GET /blob?bytes=1000003&seed=42 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.contains("Content-Length: 1000003\r\n"), "{head}");
    let mut expected = vec![0u8; 1_000_003];
    web::blob::fill(42, 0, &mut expected);
    assert!(body == expected, "blob differs");

    let mut post = b"POST /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 1000003\r\n\r\n".to_vec();
    post.extend_from_slice(&expected);
    let got = w.exchange(&post, complete);
    let hash: String = Sha256::digest(&expected).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(split(&got).1, format!("{{\"bytes\":1000003,\"sha256\":\"{hash}\"}}\n").into_bytes());

    let moved = w.site.moved;
    assert!(moved.0 > 1_000_000 && moved.1 > 1_000_000, "{moved:?}");
}

#[test]
fn head_of_a_blob_has_its_length_and_no_body() {
    let mut w = World::new();
    let got = w.exchange(b"HEAD /blob?bytes=10 HTTP/1.1\r\nConnection: close\r\n\r\n", |_| false);
    let (head, body) = split(&got);
    assert!(head.contains("Content-Length: 10\r\n"));
    assert_eq!(body, b"");
}

#[test]
fn crash_takes_a_form_and_knows_its_rights() {
    let mut w = World::new();
    let form = |domain: &str| {
        let body = format!("domain={domain}&how=panic");
        format!("POST /crash HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    assert!(w.request(&form("netback-e1000")).0.starts_with("HTTP/1.1 202 "));
    assert!(w.request(&form("control")).0.starts_with("HTTP/1.1 403 "));
    assert_eq!(w.site.crashed, [("netback-e1000".to_string(), "panic".to_string())]);
}

#[test]
fn continue_is_sent_before_a_body_that_waits_for_it() {
    let mut w = World::new();
    let got = w.exchange(b"POST /sink HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", |g| {
        g.ends_with(b"\r\n\r\n")
    });
    assert_eq!(got, b"HTTP/1.1 100 Continue\r\n\r\n");
    let got = w.exchange(b"abc", complete);
    assert!(
        String::from_utf8(got).unwrap().contains("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    );
}

#[test]
fn bad_requests_get_their_status_and_the_server_lives() {
    for (request, status) in [
        ("GET /nothing HTTP/1.1\r\n\r\n", "404"),
        ("POST / HTTP/1.1\r\n\r\n", "405"),
        ("GET /blob?bytes=x HTTP/1.1\r\n\r\n", "400"),
        ("POST /sink HTTP/1.1\r\n\r\n", "411"),
        ("POST /crash HTTP/1.1\r\nContent-Length: 9999\r\n\r\n", "413"),
        ("\r\n\r\n", "400"),
    ] {
        let mut w = World::new();
        let (head, _) = w.request(request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?} got {head}");
    }
    let mut w = World::new();
    let got = w.exchange(&[b'a'; 5000], complete);
    assert!(got.starts_with(b"HTTP/1.1 431 "));
}

/// One request on a connection that the server closes first and the client after it, up to the client's FIN.
fn one_request(w: &mut World) {
    let (head, _) = w.request("GET /status.json HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("Connection: close"), "{head}");
    w.client_comes_to(State::CloseWait);
    w.client().close();
}

#[test]
fn every_connection_can_be_used_again() {
    let mut w = World::new();
    for round in 1..20 {
        one_request(&mut w);
        w.client_comes_to(State::Closed);
        w.connect(50_000 + round);
    }
    one_request(&mut w);
    assert_eq!(w.device.resets, 0);
}

#[test]
fn the_fin_of_a_client_that_missed_the_last_acknowledgement_is_acknowledged_again() {
    let mut w = World::new();
    one_request(&mut w);
    let mut lost = false;
    w.device.loses = Box::new(move |segment| segment.src_port() == 80 && !std::mem::replace(&mut lost, true));
    w.client_comes_to(State::Closed);
    assert!(w.ms > 1000, "its FIN was never sent again");
    assert_eq!(w.device.resets, 0);
}

/// A second client that connects from its port while the first one has the server's first socket.
fn second_client(w: &mut World) -> SocketHandle {
    w.client_comes_to(State::Established);
    let buffer = || SocketBuffer::new(vec![0u8; 16 * 1024]);
    let second = w.sockets.add(Socket::new(buffer(), buffer()));
    w.connect_from(50_001, second);
    std::mem::replace(&mut w.client, second)
}

#[test]
fn a_syn_sent_again_is_no_other_connection() {
    for early in [true, false] {
        let mut w = World::new();
        let first = second_client(&mut w);
        w.poll();
        // The first socket listens when the SYN of the second's connection comes again.
        w.sockets.get_mut::<Socket>(first).abort();
        w.poll();
        w.device.resets = 0;
        if !early {
            w.client_comes_to(State::Established);
            w.poll();
        }
        w.device.repeat_syn();
        one_request(&mut w);
        w.client_comes_to(State::Closed);
        assert_eq!(w.device.resets, 0, "early: {early}");
    }
}

#[test]
fn a_connection_in_time_wait_makes_room_for_its_successor() {
    for in_front in [true, false] {
        let mut w = World::new();
        if in_front {
            let first = second_client(&mut w);
            one_request(&mut w);
            w.client_comes_to(State::Closed);
            w.sockets.get_mut::<Socket>(first).abort();
            w.poll();
        } else {
            one_request(&mut w);
            w.client_comes_to(State::Closed);
        }
        w.connect_from(50_000 + u16::from(in_front), w.client);
        one_request(&mut w);
        w.client_comes_to(State::Closed);
        // Else the client has to ask twice: the socket in TIME-WAIT gets its SYN, and answers so that the client resets it.
        assert_eq!(w.ms < 500, in_front);
    }
}
