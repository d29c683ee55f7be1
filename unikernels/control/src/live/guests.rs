//! The lives of guests: created while the system runs, asked to end or to reboot, destroyed. A driver domain has one life that
//! restarts continue (its peers never learn of them); a guest begins anew each time, with its nodes as they were at first, so that its
//! backends let go of its former rings and meet a new frontend.

use super::boot::dom_info;
use super::failure::Restarted;
use super::{Control, orders};
use abi::xenolith::{DomOp, Info, cause, state};
use alloc::format;
use alloc::string::String;
use control::history::Phases;
use control::report::Kind;
use control::seed::Seeds;
use libxenrt::config::config;
use libxenrt::{DomId, Errno, clock, hypercall, log};
use xenstore::XsError;

/// The initial xenstore.
pub fn seeds() -> Seeds<'static> {
    Seeds::new(config().text())
}

impl Control {
    /// Whether each start of a domain is a new life.
    pub fn lives_anew(&self, domid: DomId) -> bool {
        self.links.iter().any(|l| l.domid == domid && l.kind == Kind::Guest)
    }

    /// Ends the session of a life that is over and lays the nodes for the next one. From here on the former instance, should it
    /// still run, is not heard.
    pub fn new_life(&mut self, domid: DomId) {
        if let Some(link) = self.links.iter_mut().find(|l| l.domid == domid) {
            link.detach(&mut self.store);
        }
        if let Err(e) = seeds().renew(&mut self.store, domid) {
            log::error!("{}: its nodes could not be renewed: {e}", self.name(domid));
        }
        self.lay_out(domid);
    }

    /// Creates a guest that has no memory, or whose former life is over.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn create(&mut self, domid: DomId) -> Result<(), String> {
        // A death that is in the queue is answered first.
        self.drain_events();
        let name = String::from(self.name(domid));
        match self.state_of(domid)? {
            state::DESTROYED => {}
            state::STOPPED => self.destroy(domid)?,
            state::PAUSED => return Err(format!("{name} is paused, not gone; let it go on: unpause {name}")),
            _ => {
                return Err(format!(
                    "{name} runs already; end it first (shutdown {name}) or begin anew (restart {name})"
                ));
            }
        }
        self.new_life(domid);
        self.store.introduce(domid);
        let began = clock::now();
        if let Err(e) = self.patiently(|| hypercall::dom_create(&mut DomOp { domid, ..DomOp::default() })) {
            self.no_life(domid);
            let mut machine = Info::default();
            let free = hypercall::info(&mut machine).map_or(0, |_| machine.free_frames.saturating_mul(4) >> 10);
            return Err(match e {
                Errno::ENOMEM => format!(
                    "{name}: too little free memory, {free} MiB are left; destroy another guest or give the machine more (machine.memory)"
                ),
                e => format!("{name} could not be created: {e}"),
            });
        }
        self.supervisor.on_restarted(domid, began.as_ns());
        self.attach(domid);
        self.note(format!("{name} created"));
        self.tell("created", |o| {
            o.number("id", domid.0).text("dom", &name);
        });
        self.changed(domid);
        Ok(())
    }

    /// Ends a guest, whatever it does, and takes its memory.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn destroy(&mut self, domid: DomId) -> Result<(), String> {
        self.drain_events();
        let name = String::from(self.name(domid));
        match self.state_of(domid)? {
            state::DESTROYED => return Err(format!("{name} is not there: {}", self.why(domid))),
            state::STOPPED => {}
            _ => self.stop_for_good(domid).map_err(|e| format!("kill of {name}: {e}"))?,
        }
        self.take_down(domid, "destroyed by order")
    }

    /// Kills a domain that runs, whose death is left, or that waits to be started again.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn stop_for_good(&mut self, domid: DomId) -> Result<(), Errno> {
        let waited = self.supervisor.order_kill(domid, true);
        if let Err(e) = hypercall::dom_kill(&mut DomOp { domid, ..DomOp::default() }) {
            self.supervisor.order_kill(domid, false);
            return Err(e);
        }
        self.drain_events();
        if waited {
            let name = String::from(self.name(domid));
            self.note(format!("{name} is not started again: killed by order"));
            self.tell("stopped", |o| {
                o.number("id", domid.0).text("dom", &name).text("cause", cause::name(cause::ADMIN));
            });
        }
        Ok(())
    }

    /// Takes a stopped guest's nodes and memory. Its backends see the nodes go, let go of its rings and pages; what they still
    /// hold when the memory is taken is free when they do.
    ///
    /// # Errors
    /// Why not, for people; it is stopped then.
    pub fn take_down(&mut self, domid: DomId, why: &str) -> Result<(), String> {
        let name = String::from(self.name(domid));
        self.no_life(domid);
        let result = hypercall::dom_destroy(&mut DomOp { domid, ..DomOp::default() });
        self.changed(domid);
        result.map_err(|e| {
            format!("{name} is stopped, but its memory could not be taken: {e}; try again: destroy {name}")
        })?;
        self.supervisor.on_destroyed(domid, String::from(why));
        self.note(format!("{name} destroyed"));
        self.tell("destroyed", |o| {
            o.number("id", domid.0).text("dom", &name);
        });
        Ok(())
    }

    /// Fills a domain's memory, which takes long, part by part: between them whoever died is restarted, and the store is served.
    fn patiently(&mut self, mut fill: impl FnMut() -> hypercall::Result) -> Result<(), Errno> {
        loop {
            match fill() {
                Err(Errno::EAGAIN) => {
                    self.drain_events();
                    self.serve_store();
                    self.feed();
                }
                other => return other.map(|_| ()),
            }
        }
    }

    fn no_life(&mut self, domid: DomId) {
        if let Some(link) = self.links.iter_mut().find(|l| l.domid == domid) {
            link.detach(&mut self.store);
        }
        if let Err(e) = seeds().remove(&mut self.store, domid) {
            log::error!("{}: its nodes could not be removed: {e}", self.name(domid));
        }
        self.store.withdraw(domid);
    }

    /// Makes what every domain has beside the initial tree.
    pub fn lay_out(&mut self, domid: DomId) {
        self.ensure(&format!("/local/domain/{domid}"), &format!("n0,r{domid}"));
        self.ensure(&orders::serving_path(domid), &format!("n{domid}"));
    }

    /// Asks a domain to end itself or to reboot, as a toolstack does (xenstore-paths: `control/shutdown`).
    ///
    /// # Errors
    /// The store's.
    pub fn order_shutdown(&mut self, domid: DomId, reboot: bool) -> Result<(), XsError> {
        self.supervisor.order_shutdown(domid, reboot, clock::now().as_ns());
        self.write_order(domid, reboot).inspect_err(|_| self.supervisor.forget_shutdown(domid))
    }

    /// What a domain is to the hypervisor.
    ///
    /// # Errors
    /// For people.
    pub fn state_of(&self, domid: DomId) -> Result<u32, String> {
        dom_info(domid).map(|info| info.state).map_err(|e| format!("DOM_INFO of {}: {e}", self.name(domid)))
    }

    /// Why it does not run; empty if it does.
    pub fn why(&self, domid: DomId) -> String {
        self.supervisor.get(domid).map(|s| s.why.clone()).unwrap_or_default()
    }

    /// DOM_RESTART, for a guest as a new life. Nothing else may come between a failure and this.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn restart(&mut self, domid: DomId) -> Result<Restarted, Errno> {
        if self.lives_anew(domid) {
            self.new_life(domid);
        }
        let mut op = DomOp { domid, ..DomOp::default() };
        let began = clock::now();
        self.patiently(|| hypercall::dom_restart(&mut op))?;
        let entered = clock::now();
        self.keep_quiet(entered);
        self.supervisor.on_restarted(domid, began.as_ns());
        // An order for the instance that is gone must not kill the new one.
        self.forget_order(domid);
        self.attach(domid);
        Ok(Restarted { phases: Phases::from(&op), entered })
    }
}
