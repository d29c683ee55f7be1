//! The guest's start and its only loop: packets, server, statistics, and sleep when there is nothing of these.

use crate::xenolith_site::XenolithSite;
use core::fmt::Write;
use core::time::Duration;
use libxenrt::config::config;
use libxenrt::netfront::{Netfront, Options};
use libxenrt::store::Store;
use libxenrt::watchdog::Watchdog;
use libxenrt::{clock, event, identity, log};
use smoltcp::iface::SocketSet;
use smoltcp::time::Instant;
use web::net::Net;
use web::server::Server;

/// How often statistics go to the store.
const STATS_PERIOD: Duration = Duration::from_secs(1);
/// How long the backend may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bursts of work before a look at the store.
const ROUNDS: u32 = 64;

fn smoltcp_now() -> Instant {
    Instant::from_micros(i64::try_from(clock::now().as_micros()).unwrap_or(i64::MAX))
}

/// Serves until the domain is destroyed. Returns (and so powers the domain off) only where it cannot start.
pub fn run() {
    let config = config();
    let mut store = match Store::open() {
        Ok(store) => store,
        Err(e) => return log::error!("no xenstore: {e:?}"),
    };
    let mut netfront = match Netfront::connect(&mut store, 0, Options::default(), clock::now() + CONNECT_TIMEOUT) {
        Ok(netfront) => netfront,
        Err(e) => return log::error!("vif 0 not connected: {e:?}"),
    };
    let domid = identity::domid().unwrap_or_default();
    let mut site = match XenolithSite::new(store, domid, identity::name()) {
        Ok(site) => site,
        Err(e) => return log::error!("status not readable: {e:?}"),
    };
    let mut sockets = SocketSet::new(alloc::vec::Vec::new());
    let port = config.number("port").unwrap_or(80);
    let buffer_bytes = config.number::<usize>("buffer-kib").unwrap_or(64).clamp(4, 1024) * 1024;
    let connections = config.number::<usize>("connections").unwrap_or(12).clamp(1, 64);
    let mut server = Server::new(&mut sockets, port, connections, buffer_bytes);
    let mac = netfront.mac();
    // Ports and sequence numbers shall differ between boots: the time since power-on in ns, and who we are.
    let seed = mac.iter().fold(clock::now().as_ns(), |s, &b| s.rotate_left(8) ^ u64::from(b));
    let mut net = Net::new(&mut netfront, &mut sockets, mac, seed, smoltcp_now());
    let mut watchdog = config.number("watchdog-ms").and_then(|ms| Watchdog::arm(ms).ok());
    log::info!("web: serving port {port}, {connections} connections");

    let mut next_stats = clock::now();
    loop {
        for _ in 0..ROUNDS {
            netfront.take_event();
            let look = |sockets: &mut _| server.drop_repeated(sockets);
            let moved = net.poll(&mut netfront, &mut sockets, smoltcp_now(), look);
            let served = server.poll(&mut sockets, &mut site);
            netfront.flush();
            if !moved && !served {
                break;
            }
        }
        site.poll(&mut netfront);
        let now = clock::now();
        if let Some(watchdog) = &mut watchdog {
            watchdog.feed(now);
        }
        if now >= next_stats {
            next_stats = now + STATS_PERIOD;
            site.set_addresses(net.addresses());
            publish(&mut site, &netfront);
        }
        let mut deadline = next_stats;
        if let Some(at) = net.interface.poll_at(smoltcp_now(), &sockets) {
            let at = u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000);
            deadline = deadline.min(clock::Instant::from_ns(at));
        }
        if !netfront.idle() {
            continue;
        }
        let ports = [site.store().port(), netfront.port().unwrap_or(site.store().port())];
        if let Err(e) = event::poll(&ports, Some(deadline)) {
            return log::error!("wait refused: {e}");
        }
    }
}

/// Publishes what the frontend counted, below the guest's own directory.
fn publish(site: &mut XenolithSite, netfront: &Netfront) {
    let c = netfront.counters();
    let counted = [
        ("tx-packets", c.tx_packets),
        ("tx-bytes", c.tx_bytes),
        ("rx-packets", c.rx_packets),
        ("rx-bytes", c.rx_bytes),
        ("tx-dropped", c.tx_dropped),
        ("tx-errors", c.tx_errors),
        ("bad-responses", c.bad_responses + c.ring_faults),
        ("notifications", c.notifications),
        ("links", c.links),
    ];
    let mut text = alloc::string::String::new();
    for (name, value) in counted {
        let _ = write!(text, "{name}={value} ");
    }
    if let Err(e) = site.store().post("stats/vif/0", text.trim_end()) {
        log::debug!("statistics not published: {e:?}");
    }
}
