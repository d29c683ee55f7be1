//! Whether a domain runs, and waiting for one that does not because control restarts it or holds it back: a driver that has died often
//! of itself, or along with another's stray device, waits for seconds before its next start (`back-off`).

use super::Machine;
use super::protocol::Domain;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// Between looks.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for domains that control holds back: several of its longest waits (10 s) one after the other.
pub const HELD: Duration = Duration::from_secs(90);

/// What a domain is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It runs.
    Runs,
    /// It has stopped, and control has not decided or is restarting it.
    Restarts,
    /// Control starts it again later; why.
    Held(String),
    /// It does not run again by itself; why.
    Ended(String),
}

impl Domain {
    /// What it is about, as control lists it.
    pub fn standing(&self) -> Standing {
        let why = self.why.clone().unwrap_or_default();
        match self.state.as_str() {
            "running" => Standing::Runs,
            "back-off" => Standing::Held(why),
            // The hypervisor's word, until control has seen to the death.
            "restarting" | "stopped" if why.is_empty() => Standing::Restarts,
            state => Standing::Ended(format!("{state}: {why}")),
        }
    }
}

/// What is to be done about standings seen at a time.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Done,
    /// Look again; a word to tell where there is a new one.
    Wait(Option<String>),
    Fail(String),
}

/// A wait until a domain runs.
struct Wait<'a> {
    name: &'a str,
    told: Option<String>,
}

impl Wait<'_> {
    fn next(&mut self, standing: Standing, waited: Duration) -> Next {
        let name = self.name;
        let why = match standing {
            Standing::Runs => return Next::Done,
            Standing::Ended(why) => return Next::Fail(format!("`{name}` runs no more: {why}")),
            Standing::Restarts => "is being restarted".to_string(),
            Standing::Held(why) => why,
        };
        if waited > HELD {
            return Next::Fail(format!("`{name}` does not run within {} s: {why}", HELD.as_secs()));
        }
        let word = (self.told.as_ref() != Some(&why)).then(|| format!("{name} {why}"));
        self.told = Some(why);
        Next::Wait(word)
    }
}

impl Machine {
    /// Control's list.
    ///
    /// # Errors
    /// No answer of control.
    pub fn domains(&mut self) -> Result<Vec<Domain>> {
        let ok = self.ask(&serde_json::json!({ "cmd": "list" }))?;
        serde_json::from_value(ok["domains"].clone()).context("answer to `list`")
    }

    /// Waits until a domain runs, however it came not to; `tell` hears why it does not, once for each reason.
    ///
    /// # Errors
    /// Control has given it up, or holds it back for longer than [`HELD`]: why.
    pub fn await_running(&mut self, name: &str, mut tell: impl FnMut(&str)) -> Result<()> {
        let begin = Instant::now();
        let mut wait = Wait { name, told: None };
        loop {
            let domain = self.domains()?.into_iter().find(|domain| domain.name == name);
            let standing = domain.with_context(|| format!("control lists no domain `{name}`"))?.standing();
            match wait.next(standing, begin.elapsed()) {
                Next::Done => return Ok(()),
                Next::Fail(why) => return Err(self.failure(&why)),
                Next::Wait(word) => word.iter().for_each(|word| tell(word)),
            }
            let look = Instant::now();
            self.wait_for("look at the domains", HELD, |_| (look.elapsed() >= LOOK).then_some(()))?;
        }
    }

    /// As [`Machine::wait_for`], but time in which control holds a domain back does not count, up to [`HELD`].
    ///
    /// # Errors
    /// As [`Machine::wait_for`].
    pub fn wait_beyond_back_off<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut done: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let begin = Instant::now();
        let mut since = begin;
        loop {
            // None at the end of a part of the wait.
            let found = self
                .wait_for(what, HELD, |m| done(m).map(Some).or_else(|| (since.elapsed() > patience).then_some(None)))?;
            if let Some(found) = found {
                return Ok(found);
            }
            let held = self.domains()?.iter().any(|domain| matches!(domain.standing(), Standing::Held(_)));
            if !held || begin.elapsed() > HELD {
                return Err(self.failure(&format!("no {what} within {:.0} s", begin.elapsed().as_secs_f64())));
            }
            since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(state: &str, why: &str) -> Domain {
        serde_json::from_value(serde_json::json!({
            "id": 2, "name": "blkback", "kind": "driver", "state": state, "restarts": 3, "last_cause": "iommu-fault",
            "last_outage_us": null, "last_serving_us": null, "memory_kib": 1, "why": why,
        }))
        .unwrap()
    }

    #[test]
    fn a_driver_is_waited_for_while_control_restarts_it_or_holds_it_back() {
        let mut wait = Wait { name: "blkback", told: None };
        let mut next = |state: &str, why: &str, waited| wait.next(domain(state, why).standing(), waited);
        let soon = Duration::ZERO;
        let held = "waits 10000 ms after 12 failures: iommu-fault";
        assert_eq!(next("stopped", "", soon), Next::Wait(Some("blkback is being restarted".into())));
        assert_eq!(next("restarting", "", soon), Next::Wait(None), "told already");
        assert_eq!(next("back-off", held, soon), Next::Wait(Some(format!("blkback {held}"))));
        // More than control's longest wait: the host may have no time for it.
        assert_eq!(next("back-off", held, Duration::from_secs(40)), Next::Wait(None));
        let again = "waits 10000 ms after 13 failures: watchdog";
        assert_eq!(next("back-off", again, Duration::from_secs(41)), Next::Wait(Some(format!("blkback {again}"))));
        assert_eq!(next("running", "", Duration::from_secs(50)), Next::Done);
    }

    #[test]
    fn one_that_does_not_come_back_ends_the_wait_with_the_reason() {
        let mut wait = Wait { name: "blkback", told: None };
        let mut next = |state: &str, why: &str, waited| wait.next(domain(state, why).standing(), waited);
        for state in ["gave-up", "stopped", "destroyed", "paused"] {
            let Next::Fail(why) = next(state, "killed by order", Duration::ZERO) else {
                panic!("{state} is waited for")
            };
            assert!(why.contains(state) && why.contains("killed by order"), "{why}");
        }
        for (state, why) in [("back-off", "waits 5 ms"), ("stopped", "")] {
            assert!(matches!(next(state, why, HELD * 2), Next::Fail(_)), "{state}");
        }
    }
}
