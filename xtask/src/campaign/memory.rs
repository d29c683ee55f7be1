//! Memory over a campaign: the most of one half of the kills against the most of the other, as what is mapped and queued at one look is
//! never the same twice.

use crate::machine::protocol::System as Memory;
use serde::Serialize;

/// The most memory seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Most {
    /// Heap of the hypervisor, bytes.
    pub hypervisor_heap_bytes: u64,
    /// Frames that somebody has, KiB.
    pub used_kib: u64,
    /// Heap of control, bytes.
    pub control_heap_bytes: u64,
}

impl Most {
    /// Over two looks.
    pub fn with(self, now: &Memory) -> Self {
        Self {
            hypervisor_heap_bytes: self.hypervisor_heap_bytes.max(now.hypervisor_heap_bytes),
            used_kib: self.used_kib.max(now.total_kib.saturating_sub(now.free_kib)),
            control_heap_bytes: self.control_heap_bytes.max(now.control_heap_bytes),
        }
    }

    /// What later is more by more than looks differ.
    pub fn grown(self, later: Self) -> Vec<String> {
        let all = [
            ("the hypervisor's heap", self.hypervisor_heap_bytes, later.hypervisor_heap_bytes, 32 << 10),
            ("the frames in use, KiB,", self.used_kib, later.used_kib, 64),
            ("control's heap", self.control_heap_bytes, later.control_heap_bytes, 32 << 10),
        ];
        let grown = all.into_iter().filter(|(_, before, after, slack)| *after > before + slack);
        grown.map(|(what, before, after, _)| format!("{what} grew from {before} to {after}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_looks_differ_is_growth() {
        let first = Most { hypervisor_heap_bytes: 200_000, used_kib: 30_000, control_heap_bytes: 80_000 };
        assert!(first.grown(Most { hypervisor_heap_bytes: 220_000, ..first }).is_empty());
        assert!(
            first.grown(Most { hypervisor_heap_bytes: 250_000, ..first })[0]
                .contains("heap grew from 200000 to 250000")
        );
        assert!(first.grown(Most { used_kib: 30_100, ..first })[0].contains("frames"));
    }
}
