//! The site behind the server: what the control domain publishes below `/xenolith`, read again only when a watch says that it
//! changed, and the requests this guest may make.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use libxenrt::netfront::Netfront;
use libxenrt::store::{Store, StoreError, Transaction};
use libxenrt::{DomId, clock, log};
use web::connection::Moved;
use web::http::Refusal;
use web::server::Site;
use web::status::{self, DiskStatus, DomainStatus, Snapshot};
use web::throughput::Throughput;

/// Token of the watch on `/xenolith`.
const TOKEN: &str = "status";
/// Token of the watches on what driver domains publish.
const DISKS_TOKEN: &str = "disks";
/// Domains and history lines shown; the store is another domain's, so they are bounded here.
const SHOWN_MAX: usize = 64;

/// The site of this guest.
pub struct XenolithSite {
    store: Store,
    domid: DomId,
    snapshot: Snapshot,
    changed: bool,
    disks_changed: bool,
    /// Driver domains whose counters are watched.
    watched: Vec<u32>,
    throughput: Throughput,
}

impl XenolithSite {
    /// Over an open store. Without the watch the status would never change, so that is an error.
    ///
    /// # Errors
    /// The store's.
    pub fn new(mut store: Store, domid: DomId, name: String) -> Result<Self, StoreError> {
        store.watch("/xenolith", TOKEN)?;
        let rights = store.read_opt(Transaction::NONE, &format!("/xenolith/right/{domid}/crash"))?.unwrap_or_default();
        let may_crash = rights.split_whitespace().map(String::from).collect();
        let snapshot = Snapshot { name, may_crash, ..Snapshot::default() };
        Ok(Self {
            store,
            domid,
            snapshot,
            changed: true,
            disks_changed: false,
            watched: Vec::new(),
            throughput: Throughput::default(),
        })
    }

    /// The store, for the loop to wait on and to publish statistics in.
    pub const fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Takes in watch events: the status changed, or the backend of `netfront` did.
    pub fn poll(&mut self, netfront: &mut Netfront) {
        loop {
            match self.store.next_event() {
                Ok(Some(event)) if event.token == TOKEN => self.changed = true,
                Ok(Some(event)) if event.token == DISKS_TOKEN => self.disks_changed = true,
                Ok(Some(event)) => {
                    if let Err(e) = netfront.store_event(&mut self.store, &event) {
                        log::error!("vif 0: {e:?}");
                    }
                }
                Ok(None) => return,
                Err(e) => return log::warn!("store: {e:?}"),
            }
        }
    }

    /// Sets the addresses to show.
    pub fn set_addresses(&mut self, addresses: Vec<String>) {
        self.snapshot.addresses = addresses;
    }

    fn refresh(&mut self) -> Result<(), StoreError> {
        let none = Transaction::NONE;
        let history = self.store.read_opt(none, "/xenolith/history")?.unwrap_or_default();
        self.snapshot.history = history.lines().take(SHOWN_MAX).map(String::from).collect();
        let mut domains = Vec::new();
        for entry in self.store.directory(none, "/xenolith/domain")?.into_iter().take(SHOWN_MAX) {
            let Ok(domid) = entry.parse() else { continue };
            let directory = format!("/xenolith/domain/{entry}");
            let mut fields = Vec::new();
            for key in self.store.directory(none, &directory)?.into_iter().take(SHOWN_MAX) {
                if let Some(value) = self.store.read_opt(none, &format!("{directory}/{key}"))?
                    && key != "domid"
                {
                    fields.push((key, value));
                }
            }
            domains.push(DomainStatus { domid, fields });
        }
        domains.sort_by_key(|d| d.domid);
        self.snapshot.domains = domains;
        for domid in self.drivers() {
            if !self.watched.contains(&domid) {
                self.store.watch(&stats_of(domid), DISKS_TOKEN)?;
                self.watched.push(domid);
            }
        }
        Ok(())
    }

    fn drivers(&self) -> Vec<u32> {
        let driver = |d: &&DomainStatus| d.fields.iter().any(|(key, value)| key == "kind" && value == "driver");
        self.snapshot.domains.iter().filter(driver).map(|d| d.domid).collect()
    }

    /// Reads what driver domains publish of drives and virtual disks, one round trip a level.
    fn refresh_disks(&mut self) -> Result<(), StoreError> {
        let mut places: Vec<(u32, String)> = Vec::new();
        for backend in self.drivers() {
            places.extend(["drive", "vbd"].map(|kind| (backend, String::from(kind))));
        }
        let (drives, frontends): (Vec<_>, Vec<_>) =
            self.below(&places)?.into_iter().partition(|(_, subject)| subject.starts_with("drive/"));
        let models = drives.iter().map(|(backend, subject)| (*backend, format!("{subject}/model")));
        let mut subjects: Vec<_> = models.chain(drives.iter().cloned()).collect();
        subjects.extend(self.below(&frontends)?);
        let paths: Vec<String> = subjects.iter().map(|(b, subject)| format!("{}/{subject}", stats_of(*b))).collect();
        let values = self.store.read_many(&paths)?;
        let found = subjects.into_iter().zip(values);
        self.snapshot.disks = found
            .filter_map(|((backend, subject), value)| Some(DiskStatus { backend, subject, counters: value? }))
            .collect();
        Ok(())
    }

    /// The children of subjects, with the subjects' names before theirs.
    fn below(&mut self, subjects: &[(u32, String)]) -> Result<Vec<(u32, String)>, StoreError> {
        let paths: Vec<String> = subjects.iter().map(|(b, subject)| format!("{}/{subject}", stats_of(*b))).collect();
        let lists = self.store.directory_many(&paths)?;
        let all = subjects.iter().zip(lists);
        let named =
            all.flat_map(|((b, subject), names)| names.into_iter().map(move |n| (*b, format!("{subject}/{n}"))));
        Ok(named.take(SHOWN_MAX).collect())
    }
}

/// Where a domain publishes its counters.
fn stats_of(domid: u32) -> String {
    format!("/local/domain/{domid}/stats")
}

impl Site for XenolithSite {
    fn status_json(&mut self) -> String {
        if core::mem::take(&mut self.changed)
            && let Err(e) = self.refresh()
        {
            log::warn!("status not refreshed: {e:?}");
            self.changed = true;
        }
        if core::mem::take(&mut self.disks_changed)
            && let Err(e) = self.refresh_disks()
        {
            log::warn!("disks not refreshed: {e:?}");
            self.disks_changed = true;
        }
        let now = clock::now().as_millis();
        self.throughput.advance(now);
        status::json(&self.snapshot, &self.throughput, now)
    }

    fn count(&mut self, moved: Moved) {
        self.throughput.add(clock::now().as_millis(), moved.tx_bytes, moved.rx_bytes);
    }

    fn crash(&mut self, domain: &str, how: &str) -> Result<(), Refusal> {
        if !self.snapshot.may_crash.iter().any(|name| name == domain) {
            return Err(Refusal {
                status: 403,
                why: "the system manifest gives this guest no right to crash that domain",
            });
        }
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == ':');
        if how.is_empty() || !plain(how) {
            return Err(Refusal { status: 400, why: "how is not the name of a crash kind" });
        }
        let path = format!("/xenolith/request/{}/crash", self.domid);
        self.store.write(Transaction::NONE, &path, &format!("{domain} {how}")).map_err(|e| {
            log::warn!("{path}: {e:?}");
            Refusal { status: 503, why: "the order could not be placed in xenstore" }
        })
    }
}
