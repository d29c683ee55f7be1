//! The endpoint against a guest made of smoltcp, over the same kind of socket QEMU uses.

use super::device::Wire;
use super::stream::Link;
use super::*;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::wire::IpCidr;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0x78, 0x65, 0x10]);

/// A guest that takes an address by DHCP, answers echoes, and returns on port 80 whatever it gets. While `deaf` it hears
/// nothing, as a guest whose backend is down.
fn guest(door: &Path, deaf: &AtomicBool, stop: &AtomicBool) {
    let mut wire = Wire::default();
    wire.links.push(Link::new(UnixStream::connect(door).unwrap()).unwrap());
    let start = Instant::now();
    let mut iface = Interface::new(Config::new(MAC.into()), &mut wire, smoltcp::time::Instant::ZERO);
    let mut sockets = SocketSet::new(Vec::new());
    let dhcp = sockets.add(dhcpv4::Socket::new());
    let buffer = || tcp::SocketBuffer::new(vec![0; 65536]);
    let echo = sockets.add(tcp::Socket::new(buffer(), buffer()));
    while !stop.load(Ordering::Relaxed) {
        let mut frames = Vec::new();
        assert!(wire.links[0].receive(|bytes| frames.push(bytes.to_vec())).unwrap());
        if !deaf.load(Ordering::Relaxed) {
            wire.incoming.extend(frames);
        }
        let now = smoltcp::time::Instant::from_micros(start.elapsed().as_micros() as i64);
        iface.poll(now, &mut wire, &mut sockets);
        if let Some(dhcpv4::Event::Configured(config)) = sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
            iface.update_ip_addrs(|a| a.push(IpCidr::Ipv4(config.address)).unwrap());
        }
        let socket = sockets.get_mut::<tcp::Socket<'_>>(echo);
        if !socket.is_open() {
            socket.listen(80).unwrap();
        }
        while socket.can_recv() && socket.can_send() {
            let room = socket.send_capacity() - socket.send_queue();
            let data = socket.recv(|data| (data.len().min(room), data[..data.len().min(room)].to_vec())).unwrap();
            socket.send_slice(&data).unwrap();
        }
        if !socket.may_recv() && socket.recv_queue() == 0 && socket.may_send() {
            socket.close();
        }
        iface.poll(now, &mut wire, &mut sockets);
        wire.links[0].flush().unwrap();
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_gets_an_address_is_probed_and_reached_and_an_outage_is_seen() {
    let folder = std::env::temp_dir().join(format!("xenolith-hostnet-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let door = folder.join("net");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let web = Guest { name: "web".into(), mac: MAC, ip: Ipv4Address::new(10, 0, 2, 16), starts: true };
    let mut host = Host::start(std::slice::from_ref(&door), vec![(web, Some(listener))]).unwrap();
    let (deaf, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| guest(&door, &deaf, &stop));
        // The caller is there before the guest, and waits for it.
        let mut client = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, host.port(0).unwrap())).unwrap();
        wait("address", || host.up(0).is_some());
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
        let mut writer = client.try_clone().unwrap();
        let copy = sent.clone();
        let sender = scope.spawn(move || {
            writer.write_all(&copy).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        std::io::Read::read_to_end(&mut client, &mut back).unwrap();
        sender.join().unwrap();
        assert!(back == sent, "{} of {} bytes came back as sent", back.len(), sent.len());

        host.probe(Some(Duration::from_millis(1)));
        wait("answers", || host.probes(0, |log| log.counts().1 > 20).unwrap());
        let from = Instant::now();
        deaf.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(60));
        deaf.store(false, Ordering::Relaxed);
        let to = Instant::now();
        wait("answers after", || host.probes(0, |log| log.first_after(to).is_some()).unwrap());
        let gap = host.probes(0, |log| log.longest_gap(from, to)).unwrap().unwrap();
        assert!(gap >= Duration::from_millis(50), "the outage was seen as {gap:?}");
        let counts = host.counts();
        assert_eq!((counts.resets_in, counts.resets_out), (0, 0));
        assert!(counts.bytes_in > 1_000_000 && counts.bytes_out > 1_000_000);
        stop.store(true, Ordering::Relaxed);
    });
    host.stop().unwrap();
    assert!(!door.exists(), "the socket is left behind");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_guest_without_answer_is_an_error_that_says_so() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || drop(listener.accept()));
    let error = client::download(port, 10, 1, &AtomicU64::new(0)).unwrap_err();
    server.join().unwrap();
    let text = format!("{error:#}");
    assert!(text.contains("web guest"), "{text}");
}
