//! The smallest domain, and the tests' own: prints who it is and its configuration, ticks by poll timers, and commits a crash
//! where its configuration says so.
//!
//! Keys: `ticks` (how many, default 3), `tick-ms` (default 100), `crash` (`KIND[:COUNT]`, committed after the ticks on the
//! first `crash-times` generations, default 1), `watchdog-ms` (arms the watchdog), `serve` (`yes`: afterwards serve the xenstore
//! connection, and with it crash orders, for good).
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::time::Duration;
use libxenrt::store::{Store, Transaction};
use libxenrt::{clock, config::config, crash, event, identity, log, watchdog::Watchdog};

libxenrt::main!(run);

fn run() {
    let config = config();
    let generation = identity::generation();
    log::info!("hello from {} (generation {generation}) at {} us", identity::name(), clock::now().as_micros());
    for (key, value) in config.pairs() {
        log::info!("config: {key} = {value}");
    }
    let mut watchdog = config.number("watchdog-ms").and_then(|ms| Watchdog::arm(ms).ok());
    let period = Duration::from_millis(config.number("tick-ms").unwrap_or(100));
    for tick in 1..=config.number::<u32>("ticks").unwrap_or(3) {
        let due = clock::now() + period;
        while clock::now() < due {
            if let Err(e) = event::poll(&[], Some(due)) {
                log::error!("poll refused: {e}");
                return;
            }
        }
        if let Some(watchdog) = &mut watchdog {
            watchdog.feed(clock::now());
        }
        log::info!("tick {tick}, {} us late", clock::now().since(due).as_micros());
    }
    if let Some(order) = crash::configured(&config, generation) {
        log::info!("about to commit {}", order.kind.name());
        crash::commit(order.kind);
    }
    if config.get("serve") == Some("yes") {
        serve(watchdog.as_mut(), period);
    }
    log::info!("bye");
}

/// Serves the store connection until it breaks; passes a crash point per event and per period.
fn serve(mut watchdog: Option<&mut Watchdog>, period: Duration) {
    let mut store = match Store::open() {
        Ok(store) => store,
        Err(e) => return log::error!("no xenstore: {e:?}"),
    };
    match store.read(Transaction::NONE, "name") {
        Ok(name) => log::info!("xenstore knows this domain as {name}"),
        Err(e) => log::error!("name not readable: {e:?}"),
    }
    loop {
        crash::point();
        match store.wait_event(clock::now() + period) {
            Ok(Some(event)) => log::info!("{} changed", event.path),
            Ok(None) => {}
            Err(e) => return log::error!("xenstore broke: {e:?}"),
        }
        if let Some(watchdog) = &mut watchdog {
            watchdog.feed(clock::now());
        }
    }
}
