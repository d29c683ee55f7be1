//! The guest: blkfront under each workload, and one loop that turns them all, publishes their counters and obeys an order to end.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use blkcheck::disk::{Command, Disk, Done, Failure, Info, Op};
use blkcheck::options::Options;
use blkcheck::report;
use blkcheck::workload::{Turn, Workload};
use core::time::Duration;
use libxenrt::blkfront::{self, Blkfront, Buffer, IoError, Request};
use libxenrt::config::config;
use libxenrt::store::{Store, StoreError, Transaction};
use libxenrt::{Instant, clock, event, log, println};

/// How often statistics go to the store.
const STATS_PERIOD: Duration = Duration::from_secs(1);
/// How long a backend may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// After which a request without an answer counts as one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The node with an order to end, and its watch.
const SHUTDOWN: &str = "control/shutdown";

/// A vbd.
struct Vbd(Blkfront);

impl Disk for Vbd {
    type Buffer = Buffer;
    fn info(&self) -> Info {
        let info = self.0.info();
        Info {
            sectors: info.sectors,
            align: info.align(),
            max_sectors: info.max_sectors,
            discard: info.discard_granularity > 0,
        }
    }
    fn now_us(&self) -> u64 {
        clock::now().as_micros()
    }
    fn buffer(&mut self, len: usize) -> Option<Buffer> {
        self.0.buffer(len)
    }
    fn put(&mut self, buffer: &mut Buffer, offset: usize, from: &[u8]) {
        buffer.copy_in(offset, from);
    }
    fn get(&self, buffer: &Buffer, offset: usize, to: &mut [u8]) {
        buffer.copy_out(offset, to);
    }
    fn submit(&mut self, command: Command, buffer: Option<Buffer>, token: u32) -> Result<(), Option<Buffer>> {
        let op = match command.op {
            Op::Read => blkfront::Op::Read,
            Op::Write { fua } => blkfront::Op::Write { fua },
            Op::Flush => blkfront::Op::Flush,
            Op::Discard => blkfront::Op::Discard,
        };
        let Command { sector, sectors, .. } = command;
        let deadline = Some(clock::now() + REQUEST_TIMEOUT);
        let request = Request { op, sector, sectors, buffer, token: u64::from(token), deadline };
        self.0.submit(request).map_err(|refused| refused.request.buffer)
    }
    fn kick(&mut self) {
        self.0.kick();
    }
    fn completed(&mut self) -> Option<Done<Buffer>> {
        let done = self.0.completed()?;
        let result = done.result.map_err(|e| if e == IoError::TimedOut { Failure::TimedOut } else { Failure::Failed });
        Some(Done { token: u32::try_from(done.token).unwrap_or(u32::MAX), result, buffer: done.buffer })
    }
}

struct Checked {
    vbd: Vbd,
    workload: Workload,
    reported: bool,
}

impl Checked {
    fn more(&self) -> [(&'static str, u64); 2] {
        let counters = self.vbd.0.counters();
        [("notifications", counters.notifications), ("links", counters.links)]
    }

    fn say(&mut self) {
        for line in self.workload.said() {
            println!("blkcheck: {line}");
        }
    }

    /// One turn; true where another one is due at once.
    fn turn(&mut self, ending: bool) -> bool {
        self.vbd.0.take_event();
        let turn = self.workload.turn(&mut self.vbd, ending);
        self.say();
        turn == Turn::Moved || (turn == Turn::Wait && !self.vbd.0.idle())
    }

    /// The report, once.
    fn report(&mut self, store: &mut Store) {
        if !self.workload.is_done() || self.reported {
            return;
        }
        self.reported = true;
        let number = self.workload.vbd();
        let pairs = self.workload.pairs(&self.more());
        for line in report::lines(&pairs) {
            println!("blkcheck: report {line}");
        }
        self.publish(store);
        if let Err(e) = store.write(Transaction::NONE, &format!("stats/report/{number}"), &report::json(&pairs)) {
            log::warn!("report not published: {e:?}");
        }
        println!("blkcheck: done {number} {}", if self.workload.report.passed() { "pass" } else { "fail" });
    }

    fn publish(&self, store: &mut Store) {
        let text = report::plain(&self.workload.pairs(&self.more()));
        if let Err(e) = store.post(&format!("stats/vbd/{}", self.workload.vbd()), &text) {
            log::debug!("statistics not published: {e:?}");
        }
    }
}

/// Runs until every vbd's workload is done.
pub fn run() {
    let options = match Options::parse(config().pairs()) {
        Ok(options) => options,
        Err(key) => return log::error!("blkcheck: bad value of {key}"),
    };
    if let Err(e) = check(&options) {
        log::error!("blkcheck: {e}");
    }
}

fn check(options: &Options) -> Result<(), String> {
    let lost = |e: StoreError| format!("xenstore: {e:?}");
    let mut store = Store::open().map_err(lost)?;
    let mut all = Vec::new();
    for number in numbers(&mut store, options).map_err(lost)? {
        all.push(connect(&mut store, number, options)?);
    }
    if all.is_empty() {
        return Err("no vbd".into());
    }
    store.watch(SHUTDOWN, "shutdown").map_err(lost)?;
    let mut ending = false;
    let mut next_stats = clock::now();
    loop {
        let mut again = false;
        for one in &mut all {
            again |= one.turn(ending);
            one.report(&mut store);
        }
        while let Some(event) = store.next_event().map_err(lost)? {
            for one in &mut all {
                one.vbd.0.store_event(&mut store, &event).map_err(|e| format!("{}: {e:?}", one.workload.vbd()))?;
            }
            if event.token == "shutdown" && !ending {
                ending = store.read_opt(Transaction::NONE, SHUTDOWN).map_err(lost)?.is_some_and(|v| !v.is_empty());
            }
        }
        let over = all.iter().all(|one| one.reported);
        if over && (!options.wait || ending) {
            return Ok(());
        }
        let now = clock::now();
        if now >= next_stats {
            next_stats = now + STATS_PERIOD;
            all.iter().for_each(|one| one.publish(&mut store));
        }
        if !again || over {
            sleep(&store, &all, next_stats)?;
        }
    }
}

fn sleep(store: &Store, all: &[Checked], until: Instant) -> Result<(), String> {
    let mut ports: Vec<_> = all.iter().filter_map(|one| one.vbd.0.port()).collect();
    ports.push(store.port());
    event::poll(&ports, Some(until)).map(drop).map_err(|e| format!("wait refused: {e}"))
}

/// The vbds to check: those named, or all.
fn numbers(store: &mut Store, options: &Options) -> Result<Vec<u32>, StoreError> {
    if !options.vbd.is_empty() {
        return Ok(options.vbd.clone());
    }
    let mut found: Vec<u32> =
        store.directory(Transaction::NONE, "device/vbd")?.iter().filter_map(|name| name.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

fn connect(store: &mut Store, number: u32, options: &Options) -> Result<Checked, String> {
    let pool_pages = u16::try_from(options.pool_kib / 4).unwrap_or(u16::MAX);
    let usual = blkfront::Options::default();
    let settings = blkfront::Options { pool_pages, spin_us: options.spin_us.unwrap_or(usual.spin_us), ..usual };
    let disk = Blkfront::connect(store, number, settings, clock::now() + CONNECT_TIMEOUT)
        .map_err(|e| format!("vbd {number} not connected: {e:?}"))?;
    let vbd = Vbd(disk);
    let workload = Workload::new(number, options, vbd.info(), vbd.now_us())
        .map_err(|key| format!("{key} does not fit vbd {number}: {:?}", vbd.0.info()))?;
    Ok(Checked { vbd, workload, reported: false })
}
