//! Orders to crash, from the control socket or from a domain with the right; and the reports of domains that they serve again.
//!
//! Both are nodes that domains write, so this domain watches its own store.

use super::Control;
use alloc::format;
use alloc::string::String;
use control::report::Kind;
use control::rights::{self, Crash};
use libxenrt::{DomId, clock, log};
use xenstore::{Path, Perms, XsError};

const REQUESTS: &str = "/xenolith/request";
const TOKEN_REQUEST: &str = "request";
const TOKEN_SERVING: &str = "serving";
const TOKEN_SHUTDOWN: &str = "shutdown";
/// Events looked at in one round.
const EVENTS: usize = 64;

/// Registers the watches.
///
/// # Errors
/// For people.
pub fn watch(control: &mut Control) -> Result<(), String> {
    let failed = |e: XsError| format!("own watch refused: {e}");
    let store = &mut control.store;
    store.watch(DomId::CONTROL, REQUESTS.as_bytes(), TOKEN_REQUEST.as_bytes()).map_err(failed)?;
    for link in &control.links {
        for (path, token) in [(serving_path(link.domid), TOKEN_SERVING), (shutdown_path(link.domid), TOKEN_SHUTDOWN)] {
            store.watch(DomId::CONTROL, path.as_bytes(), token.as_bytes()).map_err(failed)?;
        }
    }
    Ok(())
}

/// Where a domain says that it serves.
pub fn serving_path(domid: DomId) -> String {
    format!("/local/domain/{domid}/control/serving")
}

/// Where a domain is asked to end or to reboot.
fn shutdown_path(domid: DomId) -> String {
    format!("/local/domain/{domid}/control/shutdown")
}

/// Where a domain is told to crash.
fn crash_path(domid: DomId) -> String {
    format!("/local/domain/{domid}/control/crash")
}

/// The number in `PREFIX N SUFFIX`.
fn domid_in(path: &str, prefix: &str, suffix: &str) -> Option<DomId> {
    path.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok().map(DomId)
}

impl Control {
    /// Serves this domain's own watch events.
    pub fn orders(&mut self) {
        for _ in 0..EVENTS {
            let Some(event) = self.store.next_event(DomId::CONTROL) else { return };
            match event.token.as_str() {
                TOKEN_SERVING => {
                    if let Some(domid) = domid_in(&event.path, "/local/domain/", "/control/serving") {
                        self.serving(domid, &event.path);
                    }
                }
                TOKEN_SHUTDOWN => {
                    if let Some(domid) = domid_in(&event.path, "/local/domain/", "/control/shutdown")
                        && self.read(&event.path).is_none_or(|value| value.is_empty())
                    {
                        self.supervisor.on_acknowledged(domid);
                    }
                }
                // Where the queue overflowed, the event names the directory: look at all of it.
                _ if event.path == REQUESTS => {
                    for domid in self.links.iter().map(|l| l.domid).collect::<alloc::vec::Vec<_>>() {
                        self.request(domid);
                    }
                }
                _ => {
                    if let Some(domid) = domid_in(&event.path, "/xenolith/request/", "/crash") {
                        self.request(domid);
                    }
                }
            }
        }
    }

    /// A domain wrote `/xenolith/request/N/crash`.
    fn request(&mut self, domid: DomId) {
        let node = format!("{REQUESTS}/{domid}/crash");
        let Some(request) = self.read(&node) else { return };
        if let Ok(path) = Path::absolute(&node) {
            let _ = self.store.run(DomId::CONTROL, |v| v.rm(&path));
        }
        let right = self.read(&format!("/xenolith/right/{domid}/crash")).unwrap_or_default();
        let outcome = match rights::check(&request, &right) {
            Ok((name, crash)) => match self.links.iter().find(|l| l.name == name).map(|l| l.domid) {
                Some(victim) => match self.order_crash(victim, crash) {
                    Ok(()) => format!("has {name} crash: {}", crash.to_text()),
                    Err(e) => format!("has {name} crash, but it could not be told: {e}"),
                },
                None => format!("wants {name} to crash: no such domain"),
            },
            Err(refusal) => format!("request to crash refused: {refusal}"),
        };
        if let Some(link) = self.links.iter_mut().find(|l| l.domid == domid)
            && link.may_log()
        {
            log::warn!("{}: {outcome}", link.name);
        }
    }

    /// Whether a domain would follow an order to crash. A driver does, also while it has not set its watch yet: after a restart it
    /// serves first. Guests may be anybody's.
    pub fn hears_of_crashes(&self, domid: DomId) -> bool {
        let driver = self.links.iter().any(|l| l.domid == domid && l.kind == Kind::Driver);
        let node = Path::absolute(&crash_path(domid));
        driver || node.is_ok_and(|node| self.store.is_watched(domid, &node))
    }

    /// Tells a domain to crash.
    ///
    /// # Errors
    /// The store's.
    pub fn order_crash(&mut self, domid: DomId, crash: Crash) -> Result<(), XsError> {
        let path = Path::absolute(&crash_path(domid)).map_err(|_| XsError::Inval)?;
        // The domain owns the node, so that it can take the order away before it carries it out.
        self.store.preset(&path, Perms::owned_by(domid), crash.to_text().as_bytes())?;
        self.supervisor.order_crash(domid);
        Ok(())
    }

    /// Writes what a domain is asked to do.
    ///
    /// # Errors
    /// The store's.
    pub fn write_order(&mut self, domid: DomId, reboot: bool) -> Result<(), XsError> {
        let path = Path::absolute(&shutdown_path(domid)).map_err(|_| XsError::Inval)?;
        // The domain owns the node, so that it can acknowledge by emptying it.
        let what: &[u8] = if reboot { b"reboot" } else { b"poweroff" };
        self.store.preset(&path, Perms::owned_by(domid), what)
    }

    /// A restarted domain serves again.
    fn serving(&mut self, domid: DomId, path: &str) {
        if self.read(path).is_none_or(|value| value.is_empty()) {
            return;
        }
        let now = clock::now().as_ns();
        let Some(death) = self.history.last_mut(domid).filter(|d| d.outage_us.is_some() && d.serving_us.is_none())
        else {
            return;
        };
        let serving_us = now.saturating_sub(death.time_ns) / 1000;
        death.serving_us = Some(serving_us);
        let name = death.name.clone();
        self.tell("serving", |o| {
            o.number("id", domid.0).text("dom", &name).number("serving_us", serving_us);
        });
        self.changed(domid);
    }
}
