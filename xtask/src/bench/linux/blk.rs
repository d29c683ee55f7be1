//! The disk of a Linux guest beside bare Linux: fio on the raw device, `O_DIRECT`, over the same image, filled and in the host's page
//! cache.

use super::{PAIR_HEADING, Pair, Session, Spent, spent_heading};
use crate::bench::blk::fill;
use crate::bench::statistics::summary;
use crate::drive::Drives;
use crate::manifest::System;
use crate::units::Size;
use crate::{image, progress, table};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::sync::Arc;

/// Size of the drive: as large as the measure needs, small enough for any host's page cache.
const SIZE: u64 = 256 << 20;

/// What is measured.
struct Workload {
    name: &'static str,
    rw: &'static str,
    size: u32,
    depth: u32,
    /// Requests count, not bytes.
    by_request: bool,
    aim: f64,
}

const WORKLOADS: [Workload; 4] = [
    Workload { name: "4 KiB random reads, depth 1", rw: "randread", size: 4096, depth: 1, by_request: true, aim: 0.6 },
    Workload {
        name: "4 KiB random reads, depth 32",
        rw: "randread",
        size: 4096,
        depth: 32,
        by_request: true,
        aim: 0.9,
    },
    Workload { name: "1 MiB sequential reads", rw: "read", size: 1 << 20, depth: 4, by_request: false, aim: 0.9 },
    Workload { name: "1 MiB sequential writes", rw: "write", size: 1 << 20, depth: 4, by_request: false, aim: 0.9 },
];

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Boots of each side.
    pub rounds: u32,
    /// Of a run.
    pub seconds: u32,
}

/// All that was measured.
#[derive(Serialize)]
pub struct Figures {
    /// Guest and bare.
    pub pairs: Vec<Pair>,
    latencies_us: Vec<(String, [f64; 4])>,
    spent: Vec<(String, f64, Spent)>,
}

/// What fio says of a run (`--minimal`, terse version 3).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Run {
    kib: f64,
    kib_s: f64,
    iops: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Takes all figures.
///
/// # Errors
/// A machine does not run, or a run has an error.
pub fn measure(system: &System, effort: Effort) -> Result<Figures> {
    let mut system = system.clone();
    for disk in system.machine.disks.iter_mut().filter(|disk| disk.image.is_none()) {
        disk.size = Some(Size(SIZE));
    }
    image::prepare(std::iter::once(&system))?;
    let guest = super::guest_of(&system)?;
    let drives = Arc::new(Drives::open(&system)?);
    fill(&drives)?;
    let steps = progress::steps("Linux's disk", u64::from(effort.rounds) * 2 * (1 + WORKLOADS.len() as u64));
    let (mut ours, mut bare) = (vec![Vec::new(); WORKLOADS.len()], vec![Vec::new(); WORKLOADS.len()]);
    let mut spent = Vec::new();
    for round in 1..=effort.rounds {
        let next = |what: &str| steps.next(&format!("guest, round {round}: {what}"));
        next("boot");
        spent = all(&mut Session::guest(&system, guest, &drives)?, "/dev/xvda", effort.seconds, &mut ours, next)?;
        let next = |what: &str| steps.next(&format!("bare, round {round}: {what}"));
        next("boot");
        all(&mut Session::bare(&system, guest, &drives)?, "/dev/sda", effort.seconds, &mut bare, next)?;
    }
    steps.done();
    let mut figures = Figures { pairs: Vec::new(), latencies_us: Vec::new(), spent };
    for ((workload, ours), bare) in WORKLOADS.iter().zip(&ours).zip(&bare) {
        let of = |runs: &[Run]| {
            runs.iter().map(|r| if workload.by_request { r.iops } else { r.kib_s * 1024.0 / 1e6 }).collect::<Vec<_>>()
        };
        let unit = if workload.by_request { "IOPS" } else { "MB/s" };
        figures.pairs.push(Pair::new(workload.name, unit, (workload.aim, false), of(ours), of(bare)));
        let median = |runs: &[Run], value: fn(&Run) -> f64| summary(runs.iter().map(value)).p50;
        let latency = [
            median(ours, |r| r.p50_us),
            median(ours, |r| r.p99_us),
            median(bare, |r| r.p50_us),
            median(bare, |r| r.p99_us),
        ];
        figures.latencies_us.push((workload.name.to_string(), latency));
    }
    Ok(figures)
}

/// Every workload once, on one boot. Returns what the domains did, with the requests.
fn all(
    session: &mut Session,
    device: &str,
    seconds: u32,
    runs: &mut [Vec<Run>],
    next: impl Fn(&str),
) -> Result<Vec<(String, f64, Spent)>> {
    let command = |workload: &Workload, seconds: u32| {
        format!(
            "fio --name=x --filename={device} --ioengine=libaio --direct=1 --rw={} --bs={} --iodepth={} --time_based --runtime={seconds} --minimal",
            workload.rw, workload.size, workload.depth
        )
    };
    // The emulator translates code when it meets it first: both sides start warm.
    for workload in &WORKLOADS[1..] {
        session.run(&command(workload, 1), 1)?;
    }
    let mut spent = Vec::new();
    for (workload, runs) in WORKLOADS.iter().zip(runs) {
        next(workload.name);
        let (output, cost) = session.watched(&command(workload, seconds), seconds)?;
        let run = parse(&output, workload.rw == "write").with_context(|| format!("{}:\n{output}", workload.name))?;
        let requests = run.kib * 1024.0 / f64::from(workload.size);
        spent.extend(cost.map(|cost| (workload.name.to_string(), requests, cost)));
        runs.push(run);
    }
    Ok(spent)
}

/// Reads fio's line.
fn parse(output: &str, writes: bool) -> Result<Run> {
    let line = output.lines().find(|line| line.starts_with("3;")).context("fio wrote no result")?;
    let fields: Vec<&str> = line.split(';').collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("fio's result is cut");
    ensure!(number(4)? == 0.0, "fio had error {}", number(4)?);
    // The reads' 41 numbers begin at 5, the writes' behind them.
    let base = if writes { 46 } else { 5 };
    let percentile = |which: &str| {
        let of = fields.get(base + 12..base + 32).unwrap_or_default();
        of.iter().find_map(|field| field.strip_prefix(which)?.strip_prefix("%=")?.parse().ok()).unwrap_or(0.0)
    };
    let run = Run {
        kib: number(base)?,
        kib_s: number(base + 1)?,
        iops: number(base + 2)?,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
    };
    ensure!(run.kib > 0.0, "fio moved nothing");
    Ok(run)
}

impl Figures {
    /// For people.
    pub fn describe(&self) -> String {
        let pairs: Vec<Vec<String>> = self.pairs.iter().map(Pair::cells).collect();
        let latency = |(name, values): &(String, [f64; 4])| {
            std::iter::once(name.clone()).chain(values.iter().map(|us| format!("{us:.0}"))).collect::<Vec<_>>()
        };
        let latencies: Vec<Vec<String>> = self.latencies_us.iter().map(latency).collect();
        let costs: Vec<Vec<String>> =
            self.spent.iter().flat_map(|(what, requests, spent)| spent.rows(what, Some(*requests))).collect();
        let spent = spent_heading("request");
        let spent: Vec<&str> = spent.iter().map(String::as_str).collect();
        format!(
            "{}\n{}\n{}",
            table::format(&PAIR_HEADING, &pairs),
            table::format(&["latency, µs", "guest p50", "guest p99", "bare p50", "bare p99"], &latencies),
            table::format(&spent, &costs)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terse_line_is_read_and_an_error_in_it_told() {
        let mut fields = vec!["0".to_string(); 130];
        fields[0] = "3".into();
        for (at, value) in [
            (5, "8000"),
            (6, "2000"),
            (7, "500"),
            (17, "1.000000%=9"),
            (24, "50.000000%=1234"),
            (29, "99.000000%=5678"),
        ] {
            fields[at] = value.into();
        }
        let line = fields.join(";");
        let run = parse(&format!("warning\n{line}\n"), false).unwrap();
        assert_eq!(run, Run { kib: 8000.0, kib_s: 2000.0, iops: 500.0, p50_us: 1234.0, p99_us: 5678.0 });
        assert!(parse(&line, true).unwrap_err().to_string().contains("nothing"));
        fields[4] = "5".into();
        assert!(parse(&fields.join(";"), false).unwrap_err().to_string().contains("error 5"));
        assert!(parse("fio: no such file", false).is_err());
    }
}
