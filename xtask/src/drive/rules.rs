//! Which commands of a drive are delayed or fail: by xtask's own server ([`Rules`]) or by QEMU's blkdebug ([`blkdebug`]).

use crate::manifest::disk::{Deed, Fault, Inject};
use std::time::Duration;

/// Linux's EIO.
const EIO: u32 = 5;

/// What happens to one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Time until the drive answers.
    pub delay: Duration,
    /// With an error.
    pub error: bool,
}

/// The rules of a drive, with how often each matched.
pub struct Rules(Vec<(Fault, u64)>);

impl Rules {
    /// As the manifest has them.
    pub fn new(faults: &[Fault]) -> Self {
        Self(faults.iter().map(|&fault| (fault, 0)).collect())
    }

    /// Adds a rule; its count begins now.
    pub fn add(&mut self, fault: Fault) {
        self.0.push((fault, 0));
    }

    /// Takes all rules away.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Judges a command, in the order of arrival; of several rules that apply the first counts.
    pub fn judge(&mut self, on: Deed, first: u64, sectors: u64) -> Verdict {
        let mut verdict = None;
        for (fault, matched) in &mut self.0 {
            let end = fault.sectors.map_or(u64::MAX, |n| fault.first.saturating_add(n));
            let touched = on == Deed::Flush || (first < end && fault.first < first.saturating_add(sectors));
            if fault.on != on || !touched {
                continue;
            }
            let applies = *matched >= fault.after && fault.times.is_none_or(|n| *matched - fault.after < n);
            *matched += 1;
            if applies && verdict.is_none() {
                verdict = Some(Verdict { delay: fault.delay.0, error: fault.error });
            }
        }
        verdict.unwrap_or_default()
    }
}

/// A rule as QEMU's blkdebug has it.
pub fn blkdebug(inject: &Inject) -> serde_json::Value {
    let kind = match inject.on {
        Deed::Read => "read",
        Deed::Write => "write",
        Deed::Flush => "flush",
        Deed::Discard => "discard",
    };
    let mut rule =
        serde_json::json!({ "event": "none", "iotype": kind, "errno": EIO, "once": inject.once, "immediately": false });
    if let Some(sector) = inject.sector {
        rule["sector"] = sector.into();
    }
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;

    const RULE: Fault = Fault {
        on: Deed::Read,
        first: 8,
        sectors: Some(8),
        after: 1,
        times: Some(2),
        delay: Span(Duration::ZERO),
        error: true,
    };

    #[test]
    fn a_rule_applies_to_its_kind_sectors_and_turns() {
        let mut rules = Rules::new(&[RULE]);
        let mut judge = |on, first, sectors| rules.judge(on, first, sectors).error;
        assert!(!judge(Deed::Write, 8, 1) && !judge(Deed::Read, 0, 8) && !judge(Deed::Read, 16, 1), "not its matter");
        assert!(!judge(Deed::Read, 15, 1), "the first passes");
        assert!(judge(Deed::Read, 0, 9) && judge(Deed::Read, 15, 9));
        assert!(!judge(Deed::Read, 8, 1), "its turns are over");
    }

    #[test]
    fn of_several_rules_the_first_counts_and_all_go_on_counting() {
        let slow = Fault { after: 0, delay: Span(Duration::from_millis(5)), error: false, ..RULE };
        let mut rules = Rules::new(&[slow]);
        rules.add(RULE);
        let first = rules.judge(Deed::Read, 8, 1);
        assert_eq!(first, Verdict { delay: Duration::from_millis(5), error: false });
        rules.judge(Deed::Read, 8, 1);
        assert!(rules.judge(Deed::Read, 8, 1).error, "the second rule's last turn");
        rules.clear();
        assert_eq!(rules.judge(Deed::Read, 8, 1), Verdict::default());
    }

    #[test]
    fn blkdebug_gets_its_own_words() {
        let rule = blkdebug(&Inject { on: Deed::Write, sector: Some(7), once: true });
        assert_eq!(rule["iotype"], "write");
        assert_eq!(rule["sector"], 7);
        assert!(blkdebug(&Inject { on: Deed::Read, sector: None, once: false }).get("sector").is_none());
    }
}
