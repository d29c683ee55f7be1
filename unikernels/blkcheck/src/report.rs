//! What a workload counts, and how it says it: `key=value` pairs and JSON, cut so that a line passes the console (`docs/blkcheck.md`).

use crate::disk::{Command, Failure, Op};
use crate::histogram::Histogram;
use crate::options::Options;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// Bytes of a report line's JSON: the console breaks lines at 240.
const LINE_MAX: usize = 200;
/// Gaps shorter than this are the disk's ordinary pace.
const GAP_MIN_US: u64 = 1000;

/// Counters of one vbd.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the keys of docs/blkcheck.md")]
pub struct Report {
    pub elapsed_us: u64,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub fua: u64,
    pub discards: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub errors: u64,
    pub timeouts: u64,
    pub lost: u64,
    pub torn: u64,
    pub stale: u64,
    pub misplaced: u64,
    pub corrupt: u64,
    pub latency: Histogram,
    pub gaps: Histogram,
    pub table: Option<u64>,
}

impl Report {
    /// Counts a request that has ended.
    pub fn count(&mut self, command: &Command, result: Result<(), Failure>) {
        let bytes = u64::from(command.sectors).saturating_mul(512);
        let number = match (result, command.op) {
            (Err(Failure::Failed), _) => &mut self.errors,
            (Err(Failure::TimedOut), _) => &mut self.timeouts,
            (Ok(()), Op::Read) => {
                self.read_bytes = self.read_bytes.saturating_add(bytes);
                &mut self.reads
            }
            (Ok(()), Op::Write { fua }) => {
                self.fua = self.fua.saturating_add(u64::from(fua));
                self.written_bytes = self.written_bytes.saturating_add(bytes);
                &mut self.writes
            }
            (Ok(()), Op::Flush) => &mut self.flushes,
            (Ok(()), Op::Discard) => &mut self.discards,
        };
        *number = number.saturating_add(1);
    }

    /// Counts a time without a completion; false where it is too short to count.
    pub fn gap(&mut self, us: u64) -> bool {
        let counts = us >= GAP_MIN_US;
        if counts {
            self.gaps.add(us);
        }
        counts
    }

    /// Nothing failed and nothing was wrong.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.errors == 0
            && self.timeouts == 0
            && self.lost == 0
            && self.torn == 0
            && self.stale == 0
            && self.misplaced == 0
            && self.corrupt == 0
    }

    /// All keys with their values in JSON, `more` at the end.
    #[must_use]
    pub fn pairs(&self, vbd: u32, options: &Options, more: &[(&'static str, u64)]) -> Vec<(&'static str, String)> {
        let numbers = [
            ("seed", options.seed),
            ("elapsed_us", self.elapsed_us),
            ("reads", self.reads),
            ("writes", self.writes),
            ("flushes", self.flushes),
            ("fua", self.fua),
            ("discards", self.discards),
            ("read_bytes", self.read_bytes),
            ("written_bytes", self.written_bytes),
            ("errors", self.errors),
            ("timeouts", self.timeouts),
            ("lost", self.lost),
            ("torn", self.torn),
            ("stale", self.stale),
            ("misplaced", self.misplaced),
            ("corrupt", self.corrupt),
            ("lat_p50", self.latency.percentile(50)),
            ("lat_p90", self.latency.percentile(90)),
            ("lat_p99", self.latency.percentile(99)),
            ("lat_max", self.latency.max()),
            ("gap_p50", self.gaps.percentile(50)),
            ("gap_p99", self.gaps.percentile(99)),
            ("gap_max", self.gaps.max()),
            ("gap_count", self.gaps.count()),
        ];
        let mut pairs = Vec::with_capacity(numbers.len().saturating_add(8));
        pairs.push(("vbd", format!("{vbd}")));
        pairs.push(("mode", format!("\"{}\"", options.mode.name())));
        pairs.extend(numbers.iter().chain(more).map(|&(key, value)| (key, format!("{value}"))));
        if let Some(table) = self.table {
            pairs.push(("table", format!("\"{table:016x}\"")));
        }
        pairs
    }
}

/// One JSON object.
#[must_use]
pub fn json(pairs: &[(&str, String)]) -> String {
    let mut text = String::from("{");
    for (i, (key, value)) in pairs.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(text, "{comma}\"{key}\":{value}");
    }
    text.push('}');
    text
}

/// Several JSON objects that each begin with the first pair and fit a line.
#[must_use]
pub fn lines(pairs: &[(&str, String)]) -> Vec<String> {
    let Some((first, rest)) = pairs.split_first() else { return Vec::new() };
    let mut lines = Vec::new();
    let mut part: Vec<(&str, String)> = Vec::new();
    let mut len = 0usize;
    for pair in rest {
        let more = pair.0.len().saturating_add(pair.1.len()).saturating_add(4);
        if len.saturating_add(more) > LINE_MAX.saturating_sub(20) {
            lines.push(json(&part));
            part.clear();
        }
        if part.is_empty() {
            part.push(first.clone());
            len = 0;
        }
        len = len.saturating_add(more);
        part.push(pair.clone());
    }
    if !part.is_empty() {
        lines.push(json(&part));
    }
    lines
}

/// `key=value` pairs in one line.
#[must_use]
pub fn plain(pairs: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        let _ = write!(text, "{key}={} ", value.trim_matches('"'));
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_cut_into_objects_that_merge_to_the_whole() {
        let options = Options::parse(core::iter::empty()).unwrap();
        let report = Report { table: Some(10), written_bytes: u64::MAX, ..Report::default() };
        let pairs = report.pairs(51712, &options, &[("links", 1)]);
        let cut = lines(&pairs);
        assert!(
            cut.len() > 1 && cut.iter().all(|l| l.len() <= LINE_MAX && l.starts_with("{\"vbd\":51712,")),
            "{cut:?}"
        );
        for (key, value) in pairs.iter().skip(1) {
            let text = format!("\"{key}\":{value}");
            assert_eq!(cut.iter().filter(|l| l.contains(&text)).count(), 1, "{text}");
        }
        assert_eq!(json(&pairs[..2]), "{\"vbd\":51712,\"mode\":\"verify\"}");
        assert!(plain(&pairs).ends_with("links=1 table=000000000000000a"));
        assert!(report.passed() && !Report { torn: 1, ..Report::default() }.passed());
    }
}
