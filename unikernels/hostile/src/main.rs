//! The sacrificial guest: commits every offence a guest can, on demand, and says how each was answered. A test runs it
//! beside a neighbour whose traffic must go on.
//!
//! Key `abuse`: comma-separated kinds (default: all that a refusal answers): `numbers`, `pointers`, `counts`, `ports`, `grants`,
//! `physmap`, `vcpu`, `control`, `spam`), and only by name: `store` (the store's quotas and a lying ring), `device` (where another
//! domain owns 00:03.0 on GSI 23), `blk` and `net` (against the backend of its first vbd or vif), `avx` (registers that a neighbour on the
//! same CPU uses too), `scrub` (what memory holds that it is given); and those that end this domain, named one at a time: `foreign-memory`, `msr`, `vmrun`, `triple-fault`, `page-tables`, `halt`. Key `spam-calls`: how many (default 20000).
//!
//! Prints `hostile: KIND WHAT: refused with ERRNO` for each, `hostile: KIND WHAT: WRONG …` where the answer was not the
//! documented one, and at the end how many of each there were.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

mod abuses;
mod avx;
mod blk;
mod fatal;
mod frontend;
mod net;
mod report;
mod scrub;
mod store;

use libxenrt::config::config;
use libxenrt::{identity, log};
use report::Report;

libxenrt::main!(run);

/// A kind and how it is committed.
type Abuse = (&'static str, fn(&mut Report));

const REFUSED: [Abuse; 9] = [
    ("numbers", abuses::numbers),
    ("pointers", abuses::pointers),
    ("counts", abuses::counts),
    ("ports", abuses::ports),
    ("grants", abuses::grants),
    ("physmap", abuses::physmap),
    ("vcpu", abuses::vcpu),
    ("control", abuses::control),
    ("spam", abuses::spam),
];

/// Each opens what it needs for itself, so those that need the store are for a domain of their own.
const BY_NAME: [Abuse; 6] = [
    ("scrub", scrub::scrub),
    ("device", abuses::device),
    ("blk", blk::blk),
    ("net", net::net),
    ("avx", avx::avx),
    ("store", store::store),
];

fn run() {
    let wanted = config().get("abuse").unwrap_or("");
    let has = |kind: &str| wanted.split(',').any(|w| w.trim() == kind);
    let mut report = Report::default();
    for (kind, commit) in REFUSED {
        if wanted.is_empty() || has(kind) {
            report.begin(kind);
            commit(&mut report);
        }
    }
    for (kind, commit) in BY_NAME {
        if has(kind) {
            report.begin(kind);
            commit(&mut report);
        }
    }
    log::info!("hostile: {} refused as documented, {} wrong", report.right, report.wrong);
    // A fatal one is committed once: the new instance that a supervisor may make stays harmless.
    if identity::generation() == 0
        && let Some((kind, commit)) = fatal::ALL.into_iter().find(|(kind, _)| has(kind))
    {
        log::info!("hostile: about to commit {kind}");
        commit();
        log::error!("hostile: {kind}: WRONG, went on");
    }
}
