//! Offences against xenstore: others' nodes, more than the quota, a ring whose indices lie. The control domain refuses the first by
//! name, and ends the connection for the last, until this domain asks for a new one.

use crate::report::Report;
use abi::io::xs_wire::page;
use core::time::Duration;
use libxenrt::event::{self, Event};
use libxenrt::store::{Store, StoreError, Transaction};
use libxenrt::{SharedPage, clock, log};
use ring::SharedMem;
use xenstore::XsError;
use xenstore::wire::{CONNECTED, RECONNECT, page_error};

/// More than any quota of nodes or watches.
const MANY: u32 = 5000;
/// How long the control domain may take to answer a lie.
const PATIENCE: Duration = Duration::from_secs(5);

fn refused(r: &mut Report, what: &str, must: XsError, got: Result<(), StoreError>) {
    match got {
        Err(StoreError::Server(e)) => r.answer(what, must.name(), format_args!("{e}")),
        other => r.answer(what, must.name(), format_args!("{other:?}")),
    }
}

/// Opens `left` more transactions, one in the other, each as full as it may be: nodes that are not there, and one written again and
/// again. None is committed. What the last one is refused.
fn open_full(store: &mut Store, left: u32) -> Result<(), StoreError> {
    store.transaction(|store, tx| {
        let is_full = |e: &StoreError| matches!(e, StoreError::Server(XsError::NoSpc));
        let full = (0..MANY).find_map(|i| store.read(tx, &alloc::format!("/{i:x}")).err().filter(is_full));
        let full = full.and_then(|_| (0..MANY).find_map(|_| store.write(tx, "stats/full", "").err()));
        match (left, full) {
            (_, None) => Ok(()),
            (0, Some(e)) => Err(e),
            (_, Some(_)) => open_full(store, left.saturating_sub(1)),
        }
    })
}

/// All of them.
pub fn store(r: &mut Report) {
    let mut store = match Store::open() {
        Ok(store) => store,
        Err(e) => return r.answer("open", "a connection", format_args!("{e:?}")),
    };
    let none = Transaction::NONE;
    for path in ["/local/domain/0/name", "/xenolith/policy/1/on-failure", "/xenolith/right/2/crash", "/new"] {
        refused(r, "write to what is not ours", XsError::Acces, store.write(none, path, "x"));
        refused(r, "removal of what is not ours", XsError::Acces, store.rm(none, path));
    }
    refused(r, "read of a policy", XsError::Acces, store.read(none, "/xenolith/policy/1/on-failure").map(|_| ()));
    for path in ["a//b", "stats/", "", "stats/a b", "stats/\u{e9}"] {
        refused(r, "bad path", XsError::Inval, store.write(none, path, "x"));
    }
    refused(r, "removal of the root", XsError::Inval, store.rm(none, "/"));
    refused(r, "giving a node away", XsError::Perm, store.set_perms(none, "stats", &["n1"]));
    refused(r, "long value", XsError::NoSpc, store.write(none, "stats/long", &"x".repeat(3000)));
    refused(r, "ten full transactions", XsError::NoSpc, open_full(&mut store, 9));
    refused(r, "an eleventh transaction", XsError::NoSpc, open_full(&mut store, 10));
    let nodes = (0..MANY).find_map(|i| store.write(none, &alloc::format!("stats/n{i}"), "x").err());
    refused(r, "too many nodes", XsError::NoSpc, nodes.map_or(Ok(()), Err));
    let watches = (0..MANY).find_map(|i| store.watch("stats", &alloc::format!("{i}")).err());
    refused(r, "too many watches", XsError::NoSpc, watches.map_or(Ok(()), Err));
    let (page, event) = store.into_raw();
    for lie in [5000, 1 << 31, u32::MAX] {
        lies(r, &page, &event, lie);
    }
    log::info!("hostile: store: done");
}

/// Publishes a producer that cannot be, is told so, and asks for a new connection.
fn lies(r: &mut Report, page: &SharedPage, event: &Event, ahead: u32) {
    page.store_release(page::REQ_PROD, page.read(page::REQ_CONS).wrapping_add(ahead));
    let told = wait(page, event, |page| page.load_acquire(page::ERROR) == page_error::RINGIDX);
    r.answer("a producer that cannot be", "true", format_args!("{told}"));
    page.store_release(page::CONNECTION, RECONNECT);
    let again =
        wait(page, event, |page| page.load_acquire(page::CONNECTION) == CONNECTED && page.read(page::REQ_PROD) == 0);
    r.answer("a new connection after it", "true", format_args!("{again}"));
}

fn wait(page: &SharedPage, event: &Event, done: impl Fn(&SharedPage) -> bool) -> bool {
    let deadline = clock::now() + PATIENCE;
    while !done(page) {
        event.take_pending();
        let asked = event.notify().is_ok() && event::poll(&[event.port()], Some(deadline)).is_ok();
        if !asked || clock::now() >= deadline {
            return done(page);
        }
    }
    true
}
