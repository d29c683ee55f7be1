//! The emergency console: the `log` facade and raw lines, one hypercall per line. The hypervisor prefixes the domain's name and
//! keeps the text for `ctl console`.

use crate::{hypercall, watchdog};
use core::fmt::{self, Write};

/// Bytes of a line; what is longer is cut.
const LINE_MAX: usize = 512;

/// A line being put together, without allocation.
pub(crate) struct Line {
    bytes: [u8; LINE_MAX],
    len: usize,
}

impl Line {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; LINE_MAX], len: 0 }
    }
    /// Writes it out with a newline.
    pub(crate) fn send(mut self) {
        let end = self.len.min(LINE_MAX.saturating_sub(1));
        if let Some(last) = self.bytes.get_mut(end) {
            *last = b'\n';
        }
        if let Some(text) = self.bytes.get(..=end) {
            watchdog::while_talking(|| {
                // There is nowhere to report that reporting failed.
                let _ = hypercall::console_write(text);
            });
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        // One byte is kept for the newline.
        let room = LINE_MAX.saturating_sub(1).saturating_sub(self.len);
        let taken = s.as_bytes().get(..s.len().min(room)).unwrap_or_default();
        if let Some(to) = self.bytes.get_mut(self.len..self.len.saturating_add(taken.len())) {
            to.copy_from_slice(taken);
        }
        self.len = self.len.saturating_add(taken.len());
        Ok(())
    }
}

/// Writes one formatted line.
pub fn line(args: fmt::Arguments<'_>) {
    let mut line = Line::new();
    // `Line` cuts, it never fails.
    let _ = line.write_fmt(args);
    line.send();
}

/// Writes a line to the console, without level or filter.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::console::line(::core::format_args!($($arg)*)) };
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                log::Level::Error => "error: ",
                log::Level::Warn => "warning: ",
                log::Level::Info => "",
                log::Level::Debug => "debug: ",
                log::Level::Trace => "trace: ",
            };
            line(format_args!("{level}{}", record.args()));
        }
    }
    fn flush(&self) {}
}

/// Makes the console `log`'s sink at `level` (a name such as `debug`; anything else means `info`).
pub(crate) fn install(level: Option<&str>) {
    static LOGGER: Logger = Logger;
    let level = level.and_then(|name| name.parse().ok()).unwrap_or(log::LevelFilter::Info);
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_and_keeps_room_for_its_end() {
        let mut line = Line::new();
        for _ in 0..100 {
            write!(line, "0123456789").expect("a line never fails");
        }
        assert_eq!(line.len, LINE_MAX - 1);
        install(None);
        assert_eq!(log::max_level(), log::LevelFilter::Info);
    }
}
