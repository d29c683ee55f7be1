//! What happens when a domain stops. The order is the outage: fetch the event, decide, DOM_RESTART, re-attach the store ring; history,
//! events for the socket, logs and status nodes come after, and the latter only when nothing else waits.

use super::Control;
use abi::xenolith::{Event, cause};
use alloc::format;
use alloc::string::String;
use control::history::{Action, Death, Phases, bounded, detail};
use control::report;
use control::supervisor::Decision;
use libxenrt::{DomId, Errno, Instant, clock, hypercall, log};
use xenstore::Path;

/// A restart that was done.
#[derive(Clone, Copy)]
pub struct Restarted {
    pub phases: Phases,
    pub entered: Instant,
}

impl Restarted {
    /// From a stop to the entry of the new instance.
    const fn outage_us(&self, stopped_ns: u64) -> u64 {
        self.entered.as_ns().saturating_sub(stopped_ns) / 1000
    }
}

/// Events answered in one go; more wait for the next round.
const EVENTS: usize = 32;

impl Control {
    /// Answers all deaths that are waiting, and starts what has waited long enough.
    pub fn failures(&mut self) {
        if self.dom_exc.as_ref().is_some_and(libxenrt::event::Event::take_pending) {
            self.drain_events();
        }
        while let Some(domid) = self.supervisor.due(clock::now().as_ns()) {
            self.restart_after_wait(domid);
        }
    }

    /// Fetches events until there is none.
    pub fn drain_events(&mut self) {
        for _ in 0..EVENTS {
            let mut event = Event::default();
            match hypercall::next_event(&mut event) {
                Ok(_) => self.died(&event),
                Err(Errno::ENODATA) => return,
                Err(e) => return log::error!("NEXT_EVENT refused: {e}"),
            }
        }
    }

    fn died(&mut self, event: &Event) {
        let (mut decision, ordered) = self.supervisor.on_event(event, clock::now().as_ns());
        let restart = (decision == Decision::Restart).then(|| self.restart(event.domid));
        if let Some(Err(e)) = restart {
            decision = self.restart_failed(event.domid, e);
        }
        self.after_death(event, &decision, ordered, restart.and_then(Result::ok));
    }

    fn restart_failed(&mut self, domid: DomId, e: Errno) -> Decision {
        self.supervisor.on_restart_failed(domid, e.name(), clock::now().as_ns())
    }

    pub fn attach(&mut self, domid: DomId) {
        if let Some(link) = self.links.iter_mut().find(|l| l.domid == domid) {
            if let Err(e) = link.attach(&mut self.store) {
                log::warn!("{}: no store: {e}", link.name);
            }
            link.turn(&mut self.store);
        }
    }

    /// Tries again what failed when a domain was started.
    pub fn reattach_missing(&mut self) {
        let running = |domid| self.supervisor.get(domid).is_some_and(|s| s.why.is_empty());
        let missing: alloc::vec::Vec<_> =
            self.links.iter().filter(|l| !l.is_attached() && running(l.domid)).map(|l| l.domid).collect();
        for domid in missing {
            self.attach(domid);
        }
    }

    fn after_death(&mut self, event: &Event, decision: &Decision, ordered: bool, restarted: Option<Restarted>) {
        let domid = event.domid;
        let action = match decision {
            Decision::Stale => return,
            Decision::Restart => Action::Restarted,
            Decision::BackOff { .. } => Action::BackOff,
            Decision::GiveUp { .. } => Action::GaveUp,
            Decision::Leave => Action::Left,
            Decision::Destroy => Action::Destroyed,
        };
        let (outage_us, phases) = (restarted.map(|r| r.outage_us(event.time_ns)), restarted.map(|r| r.phases));
        let death = Death {
            domid,
            name: bounded(self.name(domid)),
            time_ns: event.time_ns,
            cause: cause::name(event.cause),
            detail: bounded(&detail(event)),
            ordered,
            action,
            outage_us,
            serving_us: None,
            phases,
        };
        let Death { name, cause, detail, .. } = &death;
        let end = outage_us.map_or_else(|| String::from(action.name()), |us| format!("restarted {us} us after"));
        let what = if detail.is_empty() { String::from(*cause) } else { format!("{cause}: {detail}") };
        self.note(match *decision {
            Decision::Leave | Decision::Destroy => format!("{name} stopped ({what})"),
            _ => format!("{name} died ({what}), {end}"),
        });
        self.tell("died", |o| {
            o.number("id", domid.0).text("dom", &death.name).number("time_us", death.time_ns / 1000);
            o.text("cause", death.cause).text("detail", &death.detail).flag("ordered", ordered);
        });
        match decision {
            Decision::Restart => self.tell_restarted(domid, outage_us, phases),
            Decision::BackOff { delay_ns, failures } => self.tell("back-off", |o| {
                o.number("id", domid.0).text("dom", &death.name);
                o.number("delay_us", delay_ns / 1000).number("failures", *failures);
            }),
            Decision::GiveUp { failures } => {
                let why = self.supervisor.get(domid).map(|s| s.why.clone()).unwrap_or_default();
                self.tell("gave-up", |o| {
                    o.number("id", domid.0).text("dom", &death.name).number("failures", *failures).text("why", &why);
                });
            }
            Decision::Leave | Decision::Destroy | Decision::Stale => self.tell("stopped", |o| {
                o.number("id", domid.0).text("dom", &death.name).text("cause", death.cause);
            }),
        }
        self.history.push(death);
        self.changed(domid);
        if action != Action::Restarted
            && let Some(link) = self.links.iter_mut().find(|l| l.domid == domid)
        {
            link.detach(&mut self.store);
            self.store.release(domid);
        }
        if *decision == Decision::Destroy
            && let Err(e) = self.take_down(domid, &format!("destroyed by its policy after {what}"))
        {
            log::error!("{e}");
        }
    }

    fn restart_after_wait(&mut self, domid: DomId) {
        match self.restart(domid) {
            Ok(restarted) => self.note_restart(domid, restarted),
            Err(e) => {
                let decision = self.restart_failed(domid, e);
                log::warn!("{} could not be restarted: {e}; {decision:?}", self.name(domid));
                self.changed(domid);
            }
        }
    }

    /// Completes the last death of a domain that was restarted later than at once.
    fn note_restart(&mut self, domid: DomId, restarted: Restarted) {
        let phases = restarted.phases;
        let mut outage_us = None;
        if let Some(death) = self.history.last_mut(domid).filter(|d| d.outage_us.is_none()) {
            outage_us = Some(restarted.outage_us(death.time_ns));
            (death.outage_us, death.phases) = (outage_us, Some(phases));
        }
        self.note(format!("{} restarted", self.name(domid)));
        self.tell_restarted(domid, outage_us, Some(phases));
        self.changed(domid);
    }

    fn tell_restarted(&mut self, domid: DomId, outage_us: Option<u64>, phases: Option<Phases>) {
        let name = String::from(self.name(domid));
        let restarts = super::boot::dom_info(domid).map_or(0, |info| info.restarts);
        self.tell("restarted", |o| {
            o.number("id", domid.0).text("dom", &name).number("restarts", restarts).optional("outage_us", outage_us);
            if let Some(phases) = &phases {
                o.object("phases", |o| report::phases(phases, o));
            }
        });
    }

    /// An administrator's restart of a domain in whatever state.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn restart_by_order(&mut self, domid: DomId) -> Result<(u64, Phases), Errno> {
        // A death that is in the queue is answered first, so that it is not taken for one of the new instance.
        self.drain_events();
        let began = clock::now();
        let running = self.supervisor.get(domid).is_some_and(|s| s.why.is_empty());
        self.supervisor.order_restart(domid);
        let restarted = self.restart(domid)?;
        let (outage_us, phases) = (restarted.outage_us(began.as_ns()), restarted.phases);
        if running {
            let death = Death {
                domid,
                name: bounded(self.name(domid)),
                time_ns: began.as_ns(),
                cause: cause::name(cause::ADMIN),
                detail: bounded("restarted by order"),
                ordered: true,
                action: Action::Restarted,
                outage_us: Some(outage_us),
                serving_us: None,
                phases: Some(phases),
            };
            self.history.push(death);
            self.tell_restarted(domid, Some(outage_us), Some(phases));
            self.changed(domid);
        } else {
            self.note_restart(domid, restarted);
        }
        Ok((outage_us, phases))
    }

    /// Its status nodes and the history are to be written again.
    pub fn changed(&mut self, domid: DomId) {
        self.dirty.insert(domid);
        self.history_dirty = true;
    }

    pub fn forget_order(&mut self, domid: DomId) {
        if let Ok(path) = Path::absolute(&format!("/local/domain/{domid}/control/crash")) {
            let _ = self.store.run(DomId::CONTROL, |v| v.rm(&path));
        }
    }
}
