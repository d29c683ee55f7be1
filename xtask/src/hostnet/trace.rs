//! Which resets end a connection, and what went over it before: the last segments of each are kept until one with RST comes.
//!
//! Not every reset does. An end that has closed a connection in order and forgotten it answers with one what comes late or twice
//! (RFC 9293, 3.10.7.1), and nobody is left who would lose by it.

use super::frame::Segment;
use smoltcp::wire::{IpEndpoint, TcpSeqNumber};
use std::collections::VecDeque;
use std::fmt::Write;
use std::time::Instant;

/// Segments kept of a connection: its end, with retransmissions.
const SEGMENTS: usize = 32;
/// Connections kept, those that spoke last.
const CONNECTIONS: usize = 32;
/// Resets whose connections are told of.
const RESETS: usize = 3;

/// The ends of the connections that spoke last.
#[derive(Default)]
pub struct Trace {
    /// The one that spoke last is the last.
    connections: VecDeque<Ends>,
    /// Texts not taken yet.
    resets: Vec<String>,
    /// Resets told of.
    told: usize,
}

/// One connection.
struct Ends {
    /// Sender of the first segment seen, and its receiver.
    ends: [IpEndpoint; 2],
    /// Their first sequence numbers; those shown count from there.
    first: [Option<TcpSeqNumber>; 2],
    /// What acknowledges their FINs.
    fins: [Option<TcpSeqNumber>; 2],
    /// Whose FIN is acknowledged.
    closed: [bool; 2],
    segments: VecDeque<(Instant, Segment)>,
}

impl Trace {
    /// Takes a segment in. True for a reset of a connection that both ends have not closed yet.
    pub fn note(&mut self, segment: &Segment, now: Instant) -> bool {
        let ends = [segment.from, segment.to];
        let place = self.connections.iter().rposition(|c| ends.iter().all(|end| c.ends.contains(end)));
        let known = place.and_then(|i| self.connections.remove(i));
        // Ports come again.
        let known = known.filter(|connection| !(connection.over() && segment.syn));
        let mut connection = known.unwrap_or_else(|| Ends::new(ends));
        connection.note(segment, now);
        let ended = segment.rst && !connection.over();
        if ended && self.told < RESETS {
            self.told += 1;
            self.resets.push(connection.tell(now));
        }
        if self.connections.len() == CONNECTIONS {
            self.connections.pop_front();
        }
        self.connections.push_back(connection);
        ended
    }

    /// What went before the resets since the last call, if they were among the first of all.
    pub fn resets(&mut self) -> Vec<String> {
        std::mem::take(&mut self.resets)
    }
}

impl Ends {
    fn new(ends: [IpEndpoint; 2]) -> Self {
        Self {
            ends,
            first: [None; 2],
            fins: [None; 2],
            closed: [false; 2],
            segments: VecDeque::with_capacity(SEGMENTS),
        }
    }

    /// Both ends have said that they are done, and know that the other knows.
    fn over(&self) -> bool {
        self.closed == [true; 2]
    }

    fn note(&mut self, segment: &Segment, now: Instant) {
        let sender = usize::from(segment.from != self.ends[0]);
        self.first[sender].get_or_insert(segment.seq);
        if let Some(ack) = segment.ack {
            self.first[1 - sender].get_or_insert(ack);
            self.closed[1 - sender] |= self.fins[1 - sender] == Some(ack);
        }
        if segment.fin {
            self.fins[sender] = Some(segment.seq + segment.len + 1);
        }
        if self.segments.len() == SEGMENTS {
            self.segments.pop_front();
        }
        self.segments.push_back((now, *segment));
    }

    /// One line a segment, with the time before `now`.
    fn tell(&self, now: Instant) -> String {
        let mut text = String::new();
        for (at, segment) in &self.segments {
            let sender = usize::from(segment.from != self.ends[0]);
            let from_first = |number: TcpSeqNumber, end: usize| {
                number.0.wrapping_sub(self.first[end].map_or(0, |first| first.0)).cast_unsigned()
            };
            let before = now.saturating_duration_since(*at).as_secs_f64() * 1e3;
            let seq = from_first(segment.seq, sender);
            let _ = write!(text, "-{before:9.3} ms {} > {} seq {seq}+{}", segment.from, segment.to, segment.len);
            if let Some(ack) = segment.ack {
                let _ = write!(text, " ack {}", from_first(ack, 1 - sender));
            }
            let _ = write!(text, " window {}", segment.window);
            for (set, name) in [(segment.syn, " SYN"), (segment.fin, " FIN"), (segment.rst, " RST")] {
                if set {
                    text.push_str(name);
                }
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{IpAddress, Ipv4Address};
    use std::time::Duration;

    fn end(host: u8, port: u16) -> IpEndpoint {
        IpEndpoint::new(IpAddress::from(Ipv4Address::new(10, 0, 2, host)), port)
    }

    fn up(seq: i32, ack: i32) -> Segment {
        Segment {
            from: end(2, 49_153),
            to: end(16, 80),
            seq: TcpSeqNumber(seq),
            ack: Some(TcpSeqNumber(ack)),
            syn: false,
            fin: false,
            rst: false,
            window: 64,
            len: 10,
        }
    }

    fn down(seq: i32, ack: i32) -> Segment {
        Segment { from: end(16, 80), to: end(2, 49_153), len: 0, ..up(seq, ack) }
    }

    #[test]
    fn a_reset_is_told_with_what_went_before_it_on_its_connection_only() {
        let mut trace = Trace::default();
        let start = Instant::now();
        for n in 0..100 {
            assert!(!trace.note(&up(i32::MAX.wrapping_add(n * 10), 7), start));
            // Another connection between the same hosts.
            trace.note(&Segment { from: end(2, 50_000), ..up(1, 1) }, start);
        }
        assert!(trace.resets().is_empty());
        let reset = Segment { rst: true, ack: None, ..down(7, 0) };
        assert!(trace.note(&reset, start + Duration::from_millis(5)));
        let texts = trace.resets();
        let lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).collect();
        assert_eq!(lines.len(), SEGMENTS);
        assert_eq!(lines[SEGMENTS - 2], "-    5.000 ms 10.0.2.2:49153 > 10.0.2.16:80 seq 990+10 ack 0 window 64");
        assert_eq!(lines[SEGMENTS - 1], "-    0.000 ms 10.0.2.16:80 > 10.0.2.2:49153 seq 0+0 window 64 RST");
        assert!(lines.iter().all(|line| !line.contains("50000")));
        // More resets than are told of, and more connections than are kept.
        for port in 0..200 {
            trace.note(&Segment { to: end(2, 1000 + port), ..reset }, start);
        }
        assert_eq!(trace.resets().len(), RESETS - 1);
        assert_eq!(trace.connections.len(), CONNECTIONS);
    }

    #[test]
    fn a_reset_counts_until_both_have_closed_and_know_it() {
        let start = Instant::now();
        let order = [
            up(1, 1),
            Segment { fin: true, ..down(1, 11) },
            Segment { fin: true, len: 0, ..up(11, 2) },
            down(2, 11),
            down(2, 12),
        ];
        for seen in 0..=order.len() {
            for reset in [down(2, 12), up(12, 2)] {
                let mut trace = Trace::default();
                order[..seen].iter().for_each(|segment| assert!(!trace.note(segment, start)));
                let counted = trace.note(&Segment { rst: true, ack: None, ..reset }, start);
                assert_eq!(counted, seen < order.len(), "after {seen} segments");
                // The same ports again.
                trace.note(&Segment { syn: true, ack: None, len: 0, ..up(1000, 0) }, start);
                assert!(trace.note(&Segment { rst: true, ..down(0, 1001) }, start));
            }
        }
    }
}
