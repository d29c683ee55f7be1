//! Nodes that deaths leave behind in xenstore. Their number alone tells little: what a domain counts of itself is published when an
//! instance has lived for a second, which under a kill every half a second the first one may be that does late. So the nodes
//! themselves are compared: all there were once everybody had published and died, and those that are more at the end, and stay.

use crate::machine::Machine;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Paths of nodes.
pub type Nodes = BTreeSet<String>;

/// Longest wait for what domains publish of themselves, and for what is under way at the end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Paths named in an error.
const NAMED: usize = 8;

/// All there are now.
///
/// # Errors
/// No answer.
pub fn all(machine: &Machine) -> Result<Nodes> {
    let mut nodes = Nodes::new();
    let mut ahead = vec![String::new()];
    while let Some(parent) = ahead.pop() {
        let path = if parent.is_empty() { "/" } else { &parent };
        let answer = match machine.control.request(&json!({ "cmd": "xs-ls", "path": path })) {
            // Gone since its parent was read.
            Err(error) if !parent.is_empty() && format!("{error:#}").ends_with("ENOENT") => continue,
            answer => answer?,
        };
        let children = answer["children"].as_array().with_context(|| format!("xs-ls {path} answers {answer}"))?;
        ahead.extend(children.iter().filter_map(Value::as_str).map(|child| format!("{parent}/{child}")));
        nodes.insert(parent);
    }
    Ok(nodes)
}

/// A device that a driver domain serves and has not told of below its `stats` yet.
fn unpublished(nodes: &Nodes) -> Option<&String> {
    nodes.iter().find(|path| {
        let parts: Vec<&str> = path.split('/').collect();
        matches!(parts[..], ["", "local", "domain", domain, "backend", kind, frontend, device]
            if !nodes.contains(&format!("/local/domain/{domain}/stats/{kind}/{frontend}/{device}")))
    })
}

/// Waits until every driver domain has published what it counts. To be called before the first kill.
///
/// # Errors
/// One does not; control does not answer.
pub fn published(machine: &mut Machine) -> Result<()> {
    // The same twice: nothing is half published.
    let before = RefCell::new(Nodes::new());
    machine.wait_for("statistics of every driver domain in xenstore", PATIENCE, |m| {
        let now = all(m).ok()?;
        let same = before.replace(now.clone()) == now;
        (same && unpublished(&now).is_none()).then_some(())
    })
}

/// What is there and was not `before`, and does not go away by itself; told as a failure. Both looks are at the end of a restart.
///
/// # Errors
/// No answer.
pub fn grown(machine: &mut Machine, before: &Nodes) -> Result<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = all(machine)?;
        let more = new(before, &now);
        // An order or a transaction under way ends.
        if more.is_empty() || Instant::now() >= deadline {
            return Ok((!more.is_empty()).then(|| describe(&more)));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What is more, without that which guests, whom nobody killed, publish of themselves when they come to it.
fn new<'a>(before: &'a Nodes, now: &'a Nodes) -> Vec<&'a str> {
    let of_a_guest = |path: &str| {
        let parts: Vec<&str> = path.split('/').take(5).collect();
        matches!(parts[..], ["", "local", "domain", domain, "stats"]
            if !now.contains(&format!("/local/domain/{domain}/backend")))
    };
    now.difference(before).map(String::as_str).filter(|path| !of_a_guest(path)).collect()
}

fn describe(more: &[&str]) -> String {
    let named = more.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    let rest = if more.len() > NAMED { ", …" } else { "" };
    format!("the store has {} nodes that deaths left there: {named}{rest}", more.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(paths: &[&str]) -> Nodes {
        paths.iter().map(|path| (*path).to_string()).collect()
    }

    #[test]
    fn a_driver_domain_has_published_when_each_of_its_devices_is_told_of() {
        let mut nodes = nodes(&[
            "",
            "/local/domain/1/backend",
            "/local/domain/1/backend/vbd/2/0",
            "/local/domain/1/backend/vbd/2/0/state",
            "/local/domain/1/stats/backend",
        ]);
        assert_eq!(unpublished(&nodes).unwrap(), "/local/domain/1/backend/vbd/2/0");
        nodes.insert("/local/domain/1/stats/vbd/2/0".into());
        assert_eq!(unpublished(&nodes), None);
    }

    #[test]
    fn one_node_more_is_named_and_fewer_are_none() {
        let before = nodes(&["", "/local/domain/1/backend", "/local/domain/1/control/crash"]);
        let mut now = nodes(&["", "/local/domain/1/backend", "/local/domain/2/stats", "/local/domain/2/stats/vbd/0"]);
        assert!(new(&before, &now).is_empty());
        now.insert("/local/domain/1/stats/left".into());
        assert_eq!(new(&before, &now), ["/local/domain/1/stats/left"]);
        assert!(describe(&new(&before, &now)).ends_with("1 nodes that deaths left there: /local/domain/1/stats/left"));
    }
}
