//! The machine's console: lines as they come over COM1, each with its domain.

use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The hypervisor's name in the console.
pub const HYPERVISOR: &str = "xenolith";

/// Bytes of a line that are read as one.
const LONGEST: u64 = 4096;
/// Bytes of lines that are kept, the last ones: domains write as much as they like.
const KEPT: usize = 32 << 20;

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Who wrote it; the hypervisor is [`HYPERVISOR`].
    pub domain: String,
    /// What.
    pub text: String,
}

impl Line {
    /// Reads `(name) text`; a line without a name is the hypervisor's.
    fn parse(raw: &str) -> Self {
        let raw = raw.trim_end_matches(['\r', '\n']);
        let named = raw.strip_prefix('(').and_then(|rest| rest.split_once(") "));
        let valid = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        match named.filter(|(name, _)| valid(name)) {
            Some((name, text)) => Self { domain: name.to_string(), text: text.to_string() },
            None => Self { domain: HYPERVISOR.to_string(), text: raw.to_string() },
        }
    }

    /// What it takes in memory, about.
    fn size(&self) -> usize {
        size_of::<Self>() + self.domain.len() + self.text.len()
    }

    /// As tests and logs write it.
    pub fn full(&self) -> String {
        format!("({}) {}", self.domain, self.text)
    }
}

#[derive(Default)]
struct State {
    lines: VecDeque<Line>,
    /// Lines before them, which are gone.
    gone: usize,
    /// What those that are kept take.
    bytes: usize,
    first: Option<Instant>,
    ended: bool,
}

impl State {
    /// One more, and the oldest go where there are too many.
    fn push(&mut self, line: Line, most: usize) {
        self.bytes += line.size();
        self.lines.push_back(line);
        while self.bytes > most
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.size();
            self.gone += 1;
        }
    }

    /// Lines so far.
    fn count(&self) -> usize {
        self.gone + self.lines.len()
    }

    /// Those from a number on that are still there.
    fn since(&self, from: usize) -> impl Iterator<Item = &Line> {
        self.lines.iter().skip(from.saturating_sub(self.gone))
    }
}

/// The lines up to now; clones share them.
#[derive(Clone, Default)]
pub struct Console(Arc<(Mutex<State>, Condvar)>);

impl Console {
    /// Reads a stream to its end in a thread of its own; `show` sees each line first.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(stream: UnixStream, mut show: impl FnMut(&Line) + Send + 'static) -> Result<Self> {
        let console = Self::default();
        let filled = console.clone();
        std::thread::Builder::new()
            .name("console".into())
            .spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut raw = Vec::new();
                while matches!(reader.fill_buf(), Ok(bytes) if !bytes.is_empty()) {
                    filled.lock().first.get_or_insert_with(Instant::now);
                    raw.clear();
                    if reader.by_ref().take(LONGEST).read_until(b'\n', &mut raw).is_err() {
                        break;
                    }
                    let line = Line::parse(&String::from_utf8_lossy(&raw));
                    if line.text.is_empty() {
                        continue;
                    }
                    show(&line);
                    filled.lock().push(line, KEPT);
                    filled.0.1.notify_all();
                }
                filled.lock().ended = true;
                filled.0.1.notify_all();
            })
            .context("console thread")?;
        Ok(console)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the first byte came: the hypervisor's entry, as far as it can be seen from outside.
    pub fn first_byte(&self) -> Option<Instant> {
        self.lock().first
    }

    /// Lines so far.
    pub fn len(&self) -> usize {
        self.lock().count()
    }

    /// Lines from a number on, of those that are kept.
    pub fn since(&self, from: usize) -> Vec<Line> {
        self.lock().since(from).cloned().collect()
    }

    /// Lines from number `seen` on, which is moved behind them.
    pub fn news(&self, seen: &mut usize) -> Vec<Line> {
        let state = self.lock();
        let lines = state.since(*seen).cloned().collect();
        *seen = state.count();
        lines
    }

    /// Waits until there are more lines than `known`, the stream ends, or the time is up. True if there are more.
    pub fn wait(&self, known: usize, patience: Duration) -> bool {
        let more = |state: &mut State| state.count() <= known && !state.ended;
        let (state, _) =
            self.0.1.wait_timeout_while(self.lock(), patience, more).unwrap_or_else(PoisonError::into_inner);
        state.count() > known
    }

    /// After the machine has ended: waits until its last lines are here.
    pub fn settle(&self) {
        let _ = self.wait(usize::MAX, Duration::from_secs(2));
    }

    /// The last lines, for errors.
    pub fn tail(&self, count: usize) -> String {
        let state = self.lock();
        state.since(state.count().saturating_sub(count)).map(|l| format!("  {}\n", l.full())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_are_told_apart_by_domain() {
        let parse = |raw: &str| {
            let line = Line::parse(raw);
            (line.domain, line.text)
        };
        assert_eq!(parse("(web) up (really)\r\n"), ("web".into(), "up (really)".into()));
        assert_eq!(parse("early words\n"), (HYPERVISOR.into(), "early words".into()));
        assert_eq!(parse("(no such name) x\n"), (HYPERVISOR.into(), "(no such name) x".into()));
    }

    #[test]
    fn a_waiting_reader_is_woken_by_a_line_and_by_the_end() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let console = Console::start(theirs, |_| ()).unwrap();
        ours.write_all(b"(a) one\n(b) two").unwrap();
        assert!(console.wait(0, Duration::from_secs(10)));
        drop(ours);
        assert!(console.wait(1, Duration::from_secs(10)), "the last line needs no line break");
        assert!(!console.wait(2, Duration::from_secs(10)), "and then there is nothing more to wait for");
        assert_eq!(console.since(1)[0].full(), "(b) two");
        assert!(console.first_byte().is_some());
    }

    #[test]
    fn the_oldest_lines_go_and_the_others_keep_their_numbers() {
        let mut state = State::default();
        let line = |text: &str| Line { domain: "a".into(), text: text.into() };
        let most = 3 * line("0").size();
        for text in ["0", "1", "2", "3", "4"] {
            state.push(line(text), most);
        }
        let texts = |from: usize| state.since(from).map(|l| l.text.clone()).collect::<Vec<_>>();
        assert_eq!((state.count(), texts(0), texts(4), texts(5)), (5, texts(2), vec!["4".into()], vec![]));
        assert_eq!(texts(2), ["2", "3", "4"]);
    }
}
