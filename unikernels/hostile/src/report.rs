//! What the hypervisor answered, against what it must.

use libxenrt::abi::Errno;
use libxenrt::log;

/// Counts answers, and prints each.
#[derive(Debug, Default)]
pub struct Report {
    kind: &'static str,
    /// Answered as documented.
    pub right: u32,
    /// Not so.
    pub wrong: u32,
}

impl Report {
    /// The kind that follows.
    pub fn begin(&mut self, kind: &'static str) {
        self.kind = kind;
    }

    /// An offence whose documented answer is `must`.
    pub fn errno(&mut self, what: &str, must: Errno, got: Result<u64, Errno>) {
        match got {
            Err(e) if e == must => self.right(what, must.name()),
            Err(e) => self.wrong(what, format_args!("refused with {e}, not {must}")),
            Ok(v) => self.wrong(what, format_args!("accepted ({v:#x}), not {must}")),
        }
    }

    /// An entry of a batch whose documented status is `must`.
    pub fn status(&mut self, what: &str, must: i16, call: Result<u64, Errno>, got: i16) {
        match call {
            Ok(_) if got == must => {
                self.right = self.right.saturating_add(1);
                log::info!("hostile: {} {what}: refused with GNTST {must}", self.kind);
            }
            Ok(_) => self.wrong(what, format_args!("status {got}, not {must}")),
            Err(e) => self.wrong(what, format_args!("the call was refused with {e}")),
        }
    }

    /// An offence against the store, whose documented answer is `must`.
    pub fn answer(&mut self, what: &str, must: &str, got: core::fmt::Arguments<'_>) {
        if got.as_str() == Some(must) || alloc::format!("{got}") == must {
            self.right(what, must);
        } else {
            self.wrong(what, format_args!("answered {got}, not {must}"));
        }
    }

    /// What must be so beside all offences.
    pub fn holds(&mut self, what: &str, so: bool) {
        if so {
            self.right = self.right.saturating_add(1);
            log::info!("hostile: {} {what}: holds", self.kind);
        } else {
            self.wrong(what, format_args!("it is not so"));
        }
    }

    fn right(&mut self, what: &str, name: &str) {
        self.right = self.right.saturating_add(1);
        log::info!("hostile: {} {what}: refused with {name}", self.kind);
    }

    fn wrong(&mut self, what: &str, why: core::fmt::Arguments<'_>) {
        self.wrong = self.wrong.saturating_add(1);
        log::error!("hostile: {} {what}: WRONG, {why}", self.kind);
    }
}
