//! The start: the initial xenstore from the configuration, then every domain the hypervisor knows.

use super::guests::seeds;
use super::later::Later;
use super::link::Link;
use super::socket::Socket;
use super::{Control, orders};
use abi::evtchn;
use abi::xenolith::{DomInfo, Info, state};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use control::history::History;
use control::report::{Kind, name_text};
use control::store::{Quota, Store};
use control::supervisor::{Policy, Standing, Supervisor};
use libxenrt::event::Event;
use libxenrt::{DomId, Errno, clock, hypercall, log};
use xenstore::{Path, Perms};

/// Numbers are looked through up to here for the domains that [`Info::domains`] counts.
const DOMIDS: u16 = 1024;

/// Makes the control domain ready to serve.
///
/// # Errors
/// What keeps it from starting, for people.
pub fn boot() -> Result<Control, String> {
    let mut control = Control {
        store: Store::new(Quota::default()),
        supervisor: Supervisor::default(),
        history: History::default(),
        links: Vec::new(),
        socket: None,
        dom_exc: None,
        dirty: BTreeSet::new(),
        history_dirty: true,
        later: Later::default(),
        round: 0,
        watchdog: None,
    };
    control.find_domains()?;
    // Bound before anything is attached, so that no death goes unheard.
    let dom_exc = Event::bind_virq(evtchn::VIRQ_DOM_EXC).map_err(|e| format!("VIRQ_DOM_EXC refused: {e}"))?;
    control.dom_exc = Some(dom_exc);
    let there = |l: &&mut Link| control.supervisor.get(l.domid).is_some_and(|s| s.standing != Standing::Absent);
    for link in control.links.iter_mut().filter(there) {
        if let Err(e) = link.attach(&mut control.store) {
            log::warn!("{}: no store: {e}", link.name);
        }
    }
    orders::watch(&mut control)?;
    control.socket = Socket::open().inspect_err(|why| log::warn!("no control socket: {why}")).ok();
    control.dirty.insert(DomId::CONTROL);
    control.dirty.extend(control.links.iter().map(|l| l.domid));
    control.announce_ready();
    log::info!("control: {} domains, {} store nodes", control.links.len() + 1, control.store.total().nodes);
    Ok(control)
}

/// What the hypervisor says about a domain.
pub fn dom_info(domid: DomId) -> Result<DomInfo, Errno> {
    let mut info = DomInfo { domid, ..DomInfo::default() };
    hypercall::dom_info(&mut info).map(|_| info)
}

impl Control {
    /// Plants the initial xenstore, but for what guests that are not there find when they are created, and adds all domains.
    fn find_domains(&mut self) -> Result<(), String> {
        let mut infos = Vec::new();
        let mut machine = Info::default();
        hypercall::info(&mut machine).map_err(|e| format!("the hypervisor tells nothing: {e}"))?;
        if machine.version != abi::xenolith::ABI_VERSION {
            return Err(format!("hypervisor ABI {}, expected {}", machine.version, abi::xenolith::ABI_VERSION));
        }
        let mut left = machine.domains;
        for domid in (0..DOMIDS).map(DomId) {
            if left == 0 {
                break;
            }
            match dom_info(domid) {
                Ok(info) => {
                    left -= 1;
                    if domid != DomId::CONTROL {
                        infos.push(info);
                    }
                }
                Err(Errno::ESRCH) => {}
                Err(e) => return Err(format!("DOM_INFO of domain {domid}: {e}")),
            }
        }
        let absent = |domid| infos.iter().any(|info| info.domid == domid && info.state == state::DESTROYED);
        seeds().plant(&mut self.store, absent)?;
        infos.iter().for_each(|info| self.add_domain(info));
        Ok(())
    }

    fn add_domain(&mut self, info: &DomInfo) {
        let domid = info.domid;
        let name = name_text(&info.name);
        let policy = self.policy(domid, &name);
        if info.state == state::DESTROYED {
            self.supervisor.add_absent(domid, policy);
        } else {
            // The supervisor measures running time from here; a death before this moment is in the queue and must not look stale.
            self.supervisor.add(domid, policy, 0);
            self.store.introduce(domid);
            self.lay_out(domid);
        }
        let kind = self.read(&format!("/xenolith/domain/{domid}/kind"));
        let console = seeds().has(&format!("/local/domain/{domid}/console"));
        self.links.push(Link::new(domid, name, kind.map_or(Kind::Guest, |k| Kind::parse(&k)), console));
        log::debug!("domain {domid} found at {} us", clock::now().as_micros());
    }

    fn policy(&mut self, domid: DomId, name: &str) -> Policy {
        let mut policy = Policy::default();
        let dir = format!("/xenolith/policy/{domid}");
        let keys = Path::absolute(&dir).ok().and_then(|p| self.store.run(DomId::CONTROL, |v| v.directory(&p)).ok());
        for key in keys.map(|(keys, _)| keys).unwrap_or_default() {
            let value = self.read(&format!("{dir}/{key}")).unwrap_or_default();
            if let Err(e) = policy.set(&key, &String::from_utf8_lossy(&value)) {
                log::warn!("{name}: policy {key}: {e:?}, the default stays");
            }
        }
        policy
    }

    /// Makes a node of the layout that the initial tree lacks.
    pub(super) fn ensure(&mut self, path: &str, perms: &str) {
        if self.read(path).is_some() {
            return;
        }
        let made = Path::absolute(path).ok().zip(Perms::parse(perms.as_bytes(), b',').ok());
        let made = made.map(|(path, perms)| self.store.preset(&path, perms, b""));
        if !matches!(made, Some(Ok(()))) {
            log::warn!("{path} could not be made: {made:?}");
        }
    }

    /// A node's value, as the control domain sees it.
    pub(super) fn read(&mut self, path: &str) -> Option<Vec<u8>> {
        let path = Path::absolute(path).ok()?;
        self.store.run(DomId::CONTROL, |v| v.read(&path)).ok()
    }
}
