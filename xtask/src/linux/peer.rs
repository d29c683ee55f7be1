//! Whom Linux guests talk to, besides the endpoint of the wire: a host with Linux's own TCP, with iperf3's server on it, which is
//! Debian's program from the packages that the guest's comes from. And a small HTTP server of checkable bytes behind the endpoint.
//!
//! The endpoint's TCP (smoltcp) has no selective acknowledgements, waits a second for a segment that is lost, and meets losses often
//! where it floods a NIC; a guest measured against it would be measured by it. So the host is a network namespace with a TAP
//! device, which an ordinary user may make where user namespaces are allowed; an emulator without a machine carries frames
//! between the TAP device and the wire. Where that is not to be had, iperf3 listens behind the endpoint ([`Host::forward`]) and a word
//! says so. Guests and bare machines have the same peer.

use super::initramfs::{self, OnHost};
use crate::hostnet::Host;
use crate::hostnet::client::blob;
use crate::machine::{Folder, accept_child, folder, qemu};
use crate::setup;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// iperf3's port.
pub const IPERF: u16 = 5201;
/// The bytes' port at the gateway.
pub const HTTP: u16 = 8000;
/// The gateway.
pub const GATEWAY: [&str; 2] = ["10.0.2.2", "fd78:656e::2"];
/// The host with Linux's TCP.
const OTHER: [&str; 2] = ["10.0.2.3", "fd78:656e::3"];
/// Longest wait for a server to listen.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes made at once.
const CHUNK: usize = 64 << 10;

/// What runs in the namespace: iperf3 in the background, then the emulator that carries frames, with which all of it ends.
const SCRIPT: &str = r#"set -e
ip link set lo up
ip tuntap add dev tap0 mode tap
ip link set dev tap0 address 52:54:00:78:65:fd
ip addr add 10.0.2.3/24 dev tap0
ip -6 addr add fd78:656e::3/64 dev tap0 nodad
ip link set dev tap0 up
"$1" --library-path "$2" "$3" -s -p "$4" >/dev/null 2>&1 &
exec "$5" -M none -nodefaults -no-user-config -display none \
  -netdev tap,id=tap,ifname=tap0,script=no,downscript=no \
  -netdev "stream,id=wire,server=off,addr.type=unix,addr.path=$6" \
  -netdev hubport,id=a,hubid=0,netdev=tap -netdev hubport,id=b,hubid=0,netdev=wire
"#;

/// The servers; they end when this is dropped.
pub struct Peer {
    iperf: OnHost,
    http_port: u16,
    offers: Offers,
}

/// Files of the HTTP server, by name.
type Offers = Arc<Mutex<BTreeMap<String, Arc<[u8]>>>>;

/// A peer on the wire of one machine.
pub struct Attached {
    child: Child,
    _folder: Folder,
    /// iperf3's addresses, by IPv4 and IPv6.
    pub iperf: [&'static str; 2],
    /// What stands in the way of Linux's own TCP, if something does.
    pub instead: Option<String>,
}

impl Peer {
    /// Fetches what is needed and starts the HTTP server.
    ///
    /// # Errors
    /// Of the packages, or of its socket.
    pub fn start() -> Result<Self> {
        let iperf = initramfs::on_host("iperf3", "usr/bin/iperf3")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let http_port = listener.local_addr()?.port();
        let offers = Offers::default();
        let offered = Arc::clone(&offers);
        std::thread::Builder::new().name("blob-server".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                // One that goes away early has its own reasons.
                let _ = std::thread::Builder::new().name("blob".into()).spawn({
                    let offers = Arc::clone(&offered);
                    move || serve(client, &offers)
                });
            }
        })?;
        Ok(Self { iperf, http_port, offers })
    }

    /// Serves a file at `/NAME`.
    pub fn offer(&self, name: &str, bytes: Vec<u8>) {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_string(), bytes.into());
    }

    /// Lets the guests of a wire reach them.
    ///
    /// # Errors
    /// iperf3 starts neither way.
    pub fn attach(&self, host: &Host) -> Result<Attached> {
        host.forward(HTTP, self.http_port);
        self.namespace(host).or_else(|error| self.behind_endpoint(host, format!("{error:#}")))
    }

    /// As a host of its own.
    fn namespace(&self, host: &Host) -> Result<Attached> {
        for program in ["unshare", "ip"] {
            if setup::find(program).is_none() {
                bail!("there is no {program} here (Debian: apt-get install util-linux iproute2)");
            }
        }
        let folder = folder("peer")?;
        let log = folder.join("log");
        let path = folder.join("wire");
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        let mut command = Command::new("unshare");
        // With the first process of the PID namespace all others end.
        command.args([
            "--user",
            "--map-root-user",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            SCRIPT,
            "sh",
        ]);
        command.args([&self.iperf.loader, &self.iperf.libraries, &self.iperf.file]);
        command.arg(IPERF.to_string()).arg(setup::QEMU).arg(&path);
        let file = std::fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        qemu::die_with_us(&mut command);
        let child = command.spawn().context("cannot start unshare")?;
        let mut attached = Attached { child, _folder: folder, iperf: OTHER, instead: None };
        let stream = accept_child(&listener, &mut attached.child, PATIENCE).with_context(|| said(&log))?;
        host.join(stream);
        Ok(attached)
    }

    /// As a server behind the endpoint.
    fn behind_endpoint(&self, host: &Host, instead: String) -> Result<Attached> {
        // A free port, which iperf3 has to be told by number.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new(&self.iperf.loader);
        command.arg("--library-path").args([&self.iperf.libraries, &self.iperf.file]);
        command.args(["-s", "-B", "127.0.0.1", "-p", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        qemu::die_with_us(&mut command);
        let child = command.spawn().context("cannot start iperf3")?;
        let instead = Some(instead);
        let mut attached = Attached { child, _folder: folder("peer")?, iperf: GATEWAY, instead };
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = attached.child.try_wait()? {
                bail!("iperf3's server ended at once with {status}");
            }
            if start.elapsed() > PATIENCE {
                bail!("iperf3's server does not listen on port {port}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        host.forward(IPERF, port);
        Ok(attached)
    }
}

/// What the namespace complained about.
fn said(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().take(4).collect();
    format!("no network namespace with a TAP device: {}", lines.join("; "))
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers `GET /BYTES/SEED` with so many bytes of the stream of that seed, `GET /NAME` with what is offered.
fn serve(mut client: TcpStream, offers: &Offers) -> Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let numbers: Vec<u64> = path.split('/').filter_map(|part| part.parse().ok()).collect();
    let offer = offers.lock().unwrap_or_else(PoisonError::into_inner).get(path.trim_start_matches('/')).cloned();
    if let Some(bytes) = offer {
        write!(client, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len())?;
        return Ok(client.write_all(&bytes)?);
    }
    let &[bytes, seed] = numbers.as_slice() else {
        client.write_all(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(());
    };
    write!(client, "HTTP/1.0 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n")?;
    each_chunk(bytes, seed, |chunk| Ok(client.write_all(chunk)?))
}

fn each_chunk(bytes: u64, seed: u64, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < bytes {
        let len = usize::try_from(bytes - at).unwrap_or(CHUNK).min(CHUNK);
        let part = chunk.get_mut(..len).unwrap_or_default();
        blob::fill(seed, at, part);
        take(part)?;
        at += len as u64;
    }
    Ok(())
}

/// The SHA-256 of what the HTTP server answers, as `sha256sum` writes it.
///
/// # Errors
/// None.
pub fn sha256(bytes: u64, seed: u64) -> Result<String> {
    let mut hash = Sha256::new();
    each_chunk(bytes, seed, |chunk| {
        hash.update(chunk);
        Ok(())
    })?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_bytes_served_have_the_digest_told() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let offers = Offers::default();
        offers.lock().unwrap().insert("tree".into(), b"abc".as_slice().into());
        let server = std::thread::spawn(move || {
            for client in listener.incoming().take(3) {
                serve(client.unwrap(), &offers).unwrap();
            }
        });
        let ask = |path: &str| {
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            write!(client, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            answer
        };
        let answer = ask("/100001/7");
        let at = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(answer.len() - at, 100_001);
        let digest: String = Sha256::digest(&answer[at..]).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest, sha256(100_001, 7).unwrap());
        assert!(ask("/nothing").starts_with(b"HTTP/1.0 404"));
        assert!(ask("/tree").ends_with(b"\r\n\r\nabc"));
        server.join().unwrap();
    }
}
