//! How often a domain may have this domain write about it: what is provoked at will must not fill the hypervisor's log, which is slow and
//! which others read.

/// ns between two lines about the same domain.
const PAUSE_NS: u64 = 1_000_000_000;

/// The lines about one domain's requests and offences.
#[derive(Debug, Default)]
pub struct Throttle {
    next_ns: u64,
}

impl Throttle {
    /// Whether a line may be written now; the next one has to wait then.
    pub const fn allows(&mut self, now_ns: u64) -> bool {
        let allowed = now_ns >= self.next_ns;
        if allowed {
            self.next_ns = now_ns.saturating_add(PAUSE_NS);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_is_written_however_many_there_might_be() {
        let mut throttle = Throttle::default();
        let lines = (0..3_500u64).filter(|ms| throttle.allows(ms * 1_000_000)).count();
        assert_eq!(lines, 4);
        assert!(throttle.allows(u64::MAX));
    }
}
