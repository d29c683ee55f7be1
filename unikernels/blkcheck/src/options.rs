//! What a workload is told, from `key=value` pairs (`docs/blkcheck.md`).

use alloc::vec::Vec;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Random requests, everything checked.
    Verify,
    /// A deterministic sequence for power cuts.
    Power,
    /// Reads one after the other.
    SeqRead,
    /// Writes one after the other.
    SeqWrite,
    /// Reads anywhere.
    RandRead,
    /// Writes anywhere.
    RandWrite,
}

impl Mode {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Verify, "verify"),
        (Self::Power, "power"),
        (Self::SeqRead, "seq-read"),
        (Self::SeqWrite, "seq-write"),
        (Self::RandRead, "rand-read"),
        (Self::RandWrite, "rand-write"),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(mode, _)| *mode == self).map_or("", |(_, name)| name)
    }
    fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(mode, _)| *mode)
    }
}

/// A workload's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the keys of docs/blkcheck.md")]
pub struct Options {
    pub mode: Mode,
    pub vbd: Vec<u32>,
    pub seed: u64,
    pub first: u64,
    pub sectors: u64,
    pub depth: usize,
    pub size: u32,
    pub duration_ms: u64,
    pub bytes: u64,
    pub flush_every: u64,
    pub discard_every: u64,
    pub stall_us: u64,
    pub pool_kib: u32,
    pub spin_us: Option<u64>,
    pub wait: bool,
}

impl Options {
    /// From pairs; other keys are others' business.
    ///
    /// # Errors
    /// The key whose value makes no sense.
    pub fn parse<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, &'a str> {
        let mut o = Self {
            mode: Mode::Verify,
            vbd: Vec::new(),
            seed: 1,
            first: 0,
            sectors: 0,
            depth: 32,
            size: 0,
            duration_ms: 10_000,
            bytes: 0,
            flush_every: 64,
            discard_every: 0,
            stall_us: 0,
            pool_kib: 2048,
            spin_us: None,
            wait: false,
        };
        for (key, value) in pairs {
            if o.set(key, value).is_none() {
                return Err(key);
            }
        }
        if o.size == 0 {
            o.size = if matches!(o.mode, Mode::RandRead | Mode::RandWrite) { 4096 } else { 1 << 20 };
        }
        // A request that never finds memory would never be submitted.
        if u64::from(o.size) > u64::from(o.pool_kib) << 10 {
            return Err("pool-kib");
        }
        Ok(o)
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "mode" => self.mode = Mode::parse(value)?,
            "vbd" if value != "all" => {
                self.vbd = value.split(',').map(|n| n.trim().parse().ok()).collect::<Option<_>>()?;
            }
            "seed" => self.seed = value.parse().ok()?,
            "first" => self.first = value.parse().ok()?,
            "sectors" => self.sectors = value.parse().ok()?,
            "depth" => self.depth = value.parse().ok().filter(|d| (1..=256).contains(d))?,
            "size" => self.size = value.parse().ok().filter(|s: &u32| s.is_multiple_of(512) && *s <= 1 << 20)?,
            "duration-ms" => self.duration_ms = value.parse().ok()?,
            "bytes" => self.bytes = value.parse().ok()?,
            "flush-every" => self.flush_every = value.parse().ok()?,
            "discard-every" => self.discard_every = value.parse().ok()?,
            "stall-us" => self.stall_us = value.parse().ok()?,
            "pool-kib" => self.pool_kib = value.parse().ok().filter(|k| (4..=65_536).contains(k))?,
            "spin-us" => self.spin_us = Some(value.parse().ok()?),
            "then" => self.wait = value == "wait",
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_mode_and_nonsense_is_named() {
        let parse = |text: &'static str| Options::parse(text.split(' ').filter_map(|p| p.split_once('=')));
        let o = parse("mode=rand-read depth=1 log=debug then=wait vbd=51712,51728").unwrap();
        assert_eq!((o.mode, o.depth, o.size, o.wait, o.vbd), (Mode::RandRead, 1, 4096, true, vec![51712, 51728]));
        assert_eq!(parse("").unwrap().size, 1 << 20);
        for bad in ["pool-kib=1020", "mode=fast", "depth=0", "size=1000", "vbd=a", "seed=-1"] {
            assert_eq!(parse(bad), Err(bad.split('=').next().unwrap()));
        }
    }
}
