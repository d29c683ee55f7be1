//! The server against a client over smoltcp's loopback device: what a browser and curl see.

use sha2::{Digest, Sha256};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Loopback, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use web::connection::Moved;
use web::http::Refusal;
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

struct World {
    device: Loopback,
    interface: Interface,
    sockets: SocketSet<'static>,
    server: Server,
    site: FakeSite,
    client: SocketHandle,
    ms: i64,
}

impl World {
    fn new() -> Self {
        let mut device = Loopback::new(Medium::Ethernet);
        let mut config = Config::new(EthernetAddress([2, 0, 0, 0, 0, 1]).into());
        config.random_seed = 1;
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        interface.update_ip_addrs(|a| a.push(IpCidr::new(IpAddress::v4(127, 0, 0, 1), 8)).unwrap());
        let mut sockets = SocketSet::new(vec![]);
        let server = Server::new(&mut sockets, 80, 2, 16 * 1024);
        let buffer = || SocketBuffer::new(vec![0u8; 16 * 1024]);
        let client = sockets.add(Socket::new(buffer(), buffer()));
        let site = FakeSite { moved: (0, 0), crashed: vec![] };
        let mut world = Self { device, interface, sockets, server, site, client, ms: 0 };
        world.poll();
        let remote = (IpAddress::v4(127, 0, 0, 1), 80);
        world.sockets.get_mut::<Socket>(client).connect(world.interface.context(), remote, 50_000).unwrap();
        world
    }

    fn poll(&mut self) {
        self.ms += 1;
        self.interface.poll(Instant::from_millis(self.ms), &mut self.device, &mut self.sockets);
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

#[test]
fn every_connection_can_be_used_again() {
    let mut w = World::new();
    for round in 0..6u16 {
        let (head, _) = w.request("GET /status.json HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(head.contains("Connection: close"));
        for _ in 0..15_000 {
            w.poll();
        }
        w.sockets.get_mut::<Socket>(w.client).abort();
        w.poll();
        let remote = (IpAddress::v4(127, 0, 0, 1), 80);
        let context = w.interface.context();
        w.sockets.get_mut::<Socket>(w.client).connect(context, remote, 50_001 + round).unwrap();
    }
}
