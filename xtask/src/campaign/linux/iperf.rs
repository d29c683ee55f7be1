//! One run of iperf3 in a guest against the host's server, and what it says at its end.

use crate::linux::peer;
use anyhow::{Context, Result};
use serde::Serialize;

/// A direction over one of the protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The host sends.
    pub to_guest: bool,
    /// Over IPv6.
    pub v6: bool,
}

/// All of them.
pub const WAYS: [Way; 4] = [
    Way { to_guest: false, v6: false },
    Way { to_guest: true, v6: false },
    Way { to_guest: false, v6: true },
    Way { to_guest: true, v6: true },
];

impl Way {
    /// For people.
    pub fn name(self) -> String {
        let way = if self.to_guest { "host → guest" } else { "guest → host" };
        format!("TCP {way}, {}", if self.v6 { "IPv6" } else { "IPv4" })
    }

    /// What the guest runs; `to` are the server's addresses. The first `omitted` seconds come before those that count.
    pub fn command(self, to: [&str; 2], omitted: u32, seconds: u32) -> String {
        let to = to[usize::from(self.v6)];
        let reverse = if self.to_guest { " -R" } else { "" };
        let omitted = if omitted > 0 { format!(" -O {omitted}") } else { String::new() };
        format!("iperf3 -c {to} -p {} -t {seconds}{omitted} -i 0 -f k{reverse}", peer::IPERF)
    }
}

/// Its summary.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// As the receiver had it, Mbit/s.
    pub mbit: f64,
    /// Segments the sender sent again, where it tells.
    pub again: u64,
}

/// Reads the lines that end in `sender` and `receiver`.
///
/// # Errors
/// It did not come to its end.
pub fn parse(output: &str) -> Result<Summary> {
    let line = |end: &str| {
        let line = output.lines().rev().find(|line| line.trim_end().ends_with(end));
        line.map(|line| line.split_whitespace().collect::<Vec<_>>())
            .with_context(|| format!("iperf3 did not say what its {end} had:\n{output}"))
    };
    let rate = |words: &[&str]| {
        let at = words.iter().position(|word| *word == "Kbits/sec")?;
        Some((words.get(at.checked_sub(1)?)?.parse::<f64>().ok()?, words.get(at + 1)?.parse().unwrap_or(0)))
    };
    let bad = || format!("iperf3 wrote no rate:\n{output}");
    let (kbit, _) = rate(&line("receiver")?).with_context(bad)?;
    let (_, again) = rate(&line("sender")?).with_context(bad)?;
    Ok(Summary { mbit: kbit / 1000.0, again })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_read_and_an_end_without_one_is_an_error() {
        let text = "[ ID] Interval           Transfer     Bitrate         Retr\n\
            [  5]   0.00-5.00   sec   185 MBytes  310531 Kbits/sec    7             sender\n\
            [  5]   0.00-5.02   sec   184 MBytes  307858 Kbits/sec                  receiver\n\niperf Done.\n";
        assert_eq!(parse(text).unwrap(), Summary { mbit: 307.858, again: 7 });
        assert!(parse("iperf3: error - unable to connect").unwrap_err().to_string().contains("unable to connect"));
    }

    #[test]
    fn commands_name_the_peer_the_way_asks_for() {
        let [out, _, _, back6] = WAYS.map(|way| way.command(peer::GATEWAY, 0, 3));
        let warm = WAYS[0].command(peer::GATEWAY, 2, 3);
        assert_eq!(out, "iperf3 -c 10.0.2.2 -p 5201 -t 3 -i 0 -f k");
        assert_eq!(back6, "iperf3 -c fd78:656e::2 -p 5201 -t 3 -i 0 -f k -R");
        assert_eq!(warm, "iperf3 -c 10.0.2.2 -p 5201 -t 3 -O 2 -i 0 -f k");
    }
}
