//! Orders to crash a domain: their form, and who but the administrator may give them.
//!
//! A domain writes `NAME KIND` (or `NAME KIND:COUNT`) to `/xenolith/request/N/crash`; it is carried out if NAME is one of the
//! space-separated names in `/xenolith/right/N/crash`, which only xtask's manifest compiler writes.

use alloc::format;
use alloc::string::String;

/// The ways a domain can be told to crash; libxenrt commits them.
pub const KINDS: [&str; 7] = ["panic", "page-fault", "stack-overflow", "hang", "irq-hang", "dma", "port-io"];

/// How to crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// One of [`KINDS`].
    pub kind: &'static str,
    /// After this many more crash points.
    pub count: u32,
}

impl Crash {
    /// The kind of that name, if there is one.
    #[must_use]
    pub fn new(kind: &str, count: u32) -> Option<Self> {
        KINDS.into_iter().find(|&k| k == kind).map(|kind| Self { kind, count })
    }

    /// `KIND` or `KIND:COUNT`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            Some((kind, count)) => Self::new(kind, count.parse().ok()?),
            None => Self::new(text, 0),
        }
    }

    /// The value of `control/crash`.
    #[must_use]
    pub fn to_text(self) -> String {
        if self.count == 0 { String::from(self.kind) } else { format!("{}:{}", self.kind, self.count) }
    }
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not `NAME KIND`.
    Malformed,
    /// No right to crash this domain.
    NoRight(String),
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Malformed => f.write_str("not \"NAME KIND\""),
            Self::NoRight(name) => write!(f, "no right to crash {name}"),
        }
    }
}

/// Checks the value of a request node against that of the right node (empty where there is none).
///
/// # Errors
/// See [`Refusal`].
pub fn check<'a>(request: &'a [u8], right: &[u8]) -> Result<(&'a str, Crash), Refusal> {
    let text = core::str::from_utf8(request).map_err(|_| Refusal::Malformed)?;
    let (name, kind) = text.trim().split_once(' ').ok_or(Refusal::Malformed)?;
    let crash = Crash::parse(kind.trim()).ok_or(Refusal::Malformed)?;
    if !right.split(u8::is_ascii_whitespace).any(|r| r == name.as_bytes()) {
        return Err(Refusal::NoRight(name.chars().take(32).collect()));
    }
    Ok((name, crash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_named_domains_may_be_crashed() {
        let right = b"netback blkback";
        assert_eq!(check(b"netback panic", right), Ok(("netback", Crash { kind: "panic", count: 0 })));
        assert_eq!(check(b"blkback dma:12\n", right), Ok(("blkback", Crash { kind: "dma", count: 12 })));
        assert_eq!(check(b"control panic", right), Err(Refusal::NoRight("control".into())));
        assert_eq!(check(b"net panic", right), Err(Refusal::NoRight("net".into())));
        assert_eq!(check(b"netback panic", b""), Err(Refusal::NoRight("netback".into())));
        for bad in [&b"netback"[..], b"netback explode", b"netback panic:x", b"\xff panic", b"", b" panic"] {
            assert_eq!(check(bad, right), Err(Refusal::Malformed));
        }
    }

    #[test]
    fn orders_round_trip() {
        for kind in KINDS {
            for count in [0, 7] {
                let crash = Crash::new(kind, count).unwrap();
                assert_eq!(Crash::parse(&crash.to_text()), Some(crash));
            }
        }
    }

    proptest! {
        #[test]
        fn no_request_panics(request in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok((name, _)) = check(&request, b"netback") {
                prop_assert_eq!(name, "netback");
            }
        }
    }
}
