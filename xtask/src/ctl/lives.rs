//! Orders that a guest follows by itself, in its own time: asked, then waited for.

use crate::machine::control::Control;
use crate::machine::protocol::Domain;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Between looks.
const LOOK: Duration = Duration::from_millis(100);

fn record(control: &Control, domain: &str) -> Result<(Domain, Value)> {
    let ok = control.ask("list")?;
    let named = |d: &&Value| d["name"] == domain || domain.parse::<u64>().is_ok_and(|id| d["id"] == id);
    let found = ok["domains"].as_array().into_iter().flatten().find(named);
    let value = found.with_context(|| format!("control lists no domain `{domain}`"))?.clone();
    Ok((serde_json::from_value(value.clone()).context("answer to `list`")?, value))
}

/// Asks a domain to switch itself off or to reboot; waits for it if there is patience. Returns its record in `list`.
///
/// # Errors
/// Control's refusal; the domain has not followed in time: what it did, and the remedy.
pub fn shutdown(control: &Control, domain: &str, reboot: bool, patience: Option<Duration>) -> Result<Value> {
    let (before, _) = record(control, domain)?;
    control.request(&json!({ "cmd": if reboot { "reboot" } else { "shutdown" }, "dom": domain }))?;
    let Some(patience) = patience else { return Ok(record(control, domain)?.1) };
    let began = Instant::now();
    loop {
        let (now, value) = record(control, domain)?;
        match judge(&before, &now, reboot) {
            Verdict::Done => return Ok(value),
            Verdict::Else(what) => bail!("{what}"),
            Verdict::Waits if crate::signals::stop() => bail!("interrupted; `{domain}` may still follow"),
            Verdict::Waits if began.elapsed() > patience => bail!("{}", late(&now, reboot, patience)),
            Verdict::Waits => std::thread::sleep(LOOK),
        }
    }
}

/// What has become of an order.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    Waits,
    Else(String),
}

fn judge(before: &Domain, now: &Domain, reboot: bool) -> Verdict {
    let name = &now.name;
    let why = now.why.as_deref().unwrap_or_default();
    if now.order.is_some() && now.restarts == before.restarts {
        return Verdict::Waits;
    }
    match (now.state.as_str(), reboot) {
        ("running", true) if now.restarts > before.restarts => Verdict::Done,
        ("stopped" | "destroyed", false) if now.last_cause == "poweroff" => Verdict::Done,
        ("running" | "restarting" | "back-off", false) if now.restarts > before.restarts || now.state != "running" => {
            Verdict::Else(format!("{name} has begun anew instead of switching itself off ({})", now.last_cause))
        }
        ("stopped" | "destroyed" | "gave-up", _) => Verdict::Else(format!("{name} has ended otherwise: {why}")),
        _ => Verdict::Waits,
    }
}

fn late(now: &Domain, reboot: bool, patience: Duration) -> String {
    let name = &now.name;
    let seconds = patience.as_secs_f64();
    let what = if reboot { "begun anew" } else { "switched itself off" };
    let heard = match &now.order {
        Some(order) if !order.acknowledged => "it has not even heard (is its kernel up and built for Xen?)",
        _ => "it has heard",
    };
    let remedy = if reboot {
        format!("cargo xtask ctl restart {name} begins it anew without asking")
    } else {
        format!("cargo xtask ctl destroy {name} ends it without asking")
    };
    format!("{name} has not {what} within {seconds} s; {heard}. {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(state: &str, restarts: u64, cause: &str, order: Option<bool>) -> Domain {
        let order = order.map(|heard| json!({ "what": "poweroff", "since_us": 5, "acknowledged": heard }));
        serde_json::from_value(json!({
            "id": 2, "name": "linux", "kind": "guest", "state": state, "restarts": restarts, "last_cause": cause,
            "last_outage_us": null, "last_serving_us": null, "memory_kib": 1, "why": "panic: x", "order": order,
        }))
        .unwrap()
    }

    #[test]
    fn an_order_is_followed_waited_for_or_something_else_has_come_of_it() {
        let before = domain("running", 1, "none", None);
        let judge = |now: &Domain, reboot| super::judge(&before, now, reboot);
        for reboot in [false, true] {
            assert_eq!(judge(&domain("running", 1, "none", Some(true)), reboot), Verdict::Waits);
            assert!(matches!(judge(&domain("gave-up", 1, "panic", None), reboot), Verdict::Else(_)));
        }
        assert_eq!(judge(&domain("stopped", 1, "poweroff", None), false), Verdict::Done);
        assert_eq!(judge(&domain("running", 2, "reboot", None), true), Verdict::Done);
        assert_eq!(judge(&domain("back-off", 1, "reboot", None), true), Verdict::Waits);
        let Verdict::Else(what) = judge(&domain("running", 2, "reboot", None), false) else { panic!("it rebooted") };
        assert!(what.contains("begun anew"));
        let Verdict::Else(what) = judge(&domain("stopped", 1, "panic", None), true) else { panic!("it died") };
        assert!(what.contains("panic: x"));
    }

    #[test]
    fn one_that_does_not_follow_is_told_with_the_remedy() {
        let deaf = late(&domain("running", 0, "none", Some(false)), false, Duration::from_secs(9));
        for part in ["linux", "within 9 s", "has not even heard", "ctl destroy linux"] {
            assert!(deaf.contains(part), "`{part}` is missing in {deaf}");
        }
        assert!(late(&domain("running", 0, "none", Some(true)), true, Duration::ZERO).contains("ctl restart linux"));
    }
}
