//! What an honest guest knows of its sectors. Each write of a sector is a version of it, counted in ring order; a read must give the
//! version that was the last one asked for before it. A loss of power must leave a version not older than the last one that a flush
//! or a barrier has made stable.

use abi::DomId;
use abi::io::blkif::op;
use std::collections::BTreeSet;

/// What is known of a sector.
#[derive(Clone, Copy, Default)]
struct Known {
    /// Last version asked for.
    asked: u32,
    /// Last version that is stable.
    stable: u32,
}

/// A request, as the judge knows it.
#[derive(Clone)]
pub struct Case {
    operation: u8,
    first: u64,
    /// The version of each sector: what a write makes, what a read must find.
    versions: Vec<u32>,
    /// For a flush, what it makes stable: sector and version.
    covers: Vec<(u64, u32)>,
}

/// See the module's head.
pub struct Judge {
    dom: DomId,
    /// Where the vbd begins on the drive.
    pub first: u64,
    pub sectors: u64,
    known: Vec<Known>,
    /// Versions that may hold anything: of discards, and of writes that failed.
    vague: BTreeSet<(u64, u32)>,
}

impl Judge {
    pub fn new(dom: DomId, first: u64, sectors: u64) -> Self {
        Self { dom, first, sectors, known: vec![Known::default(); sectors as usize], vague: BTreeSet::new() }
    }

    /// A request is about to be put on the ring.
    pub fn ask(&mut self, operation: u8, first: u64, sectors: u64) -> Case {
        let range = first..first + sectors;
        let covers = match operation {
            // All that is before it in the ring, answered or not: that is more than blkif promises, and what we do.
            op::FLUSH_DISKCACHE | op::WRITE_BARRIER => self.all(),
            _ => Vec::new(),
        };
        let mut versions = Vec::new();
        for sector in range {
            let known = &mut self.known[sector as usize];
            if operation != op::READ {
                known.asked += 1;
            }
            versions.push(known.asked);
            if operation == op::DISCARD {
                self.vague.insert((sector, known.asked));
            }
        }
        Case { operation, first, versions, covers }
    }

    fn all(&self) -> Vec<(u64, u32)> {
        (0..).zip(&self.known).map(|(sector, known)| (sector, known.asked)).collect()
    }

    /// The sector's content in the version that the request writes.
    pub fn content(&self, case: &Case, sector: u64) -> [u8; 512] {
        content(self.dom, sector, case.versions[(sector - case.first) as usize])
    }

    /// A request was answered; what a read has found is given.
    pub fn answered(&mut self, case: &Case, done: bool, read: &[[u8; 512]]) -> Result<(), String> {
        for (sector, &version) in (case.first..).zip(&case.versions) {
            let known = &mut self.known[sector as usize];
            if case.operation != op::READ && !done {
                self.vague.insert((sector, version));
            }
            if done && matches!(case.operation, op::WRITE_BARRIER | op::FLUSH_DISKCACHE) {
                known.stable = known.stable.max(version);
            }
        }
        if done {
            for &(sector, version) in &case.covers {
                let known = &mut self.known[sector as usize];
                known.stable = known.stable.max(version);
            }
        }
        for ((bytes, sector), &version) in read.iter().zip(case.first..).zip(&case.versions) {
            if !self.vague.contains(&(sector, version)) && *bytes != content(self.dom, sector, version) {
                return Err(format!("read of sector {sector}: {} instead of version {version}", describe(bytes)));
            }
        }
        Ok(())
    }

    /// The sector as it is in the end, when all is answered.
    pub fn finally(&self, sector: u64, bytes: &[u8]) -> Result<(), String> {
        let version = self.known[sector as usize].asked;
        if self.vague.contains(&(sector, version)) || bytes == content(self.dom, sector, version) {
            return Ok(());
        }
        Err(format!("sector {sector} is {} instead of version {version}", describe(bytes)))
    }

    /// The sector as a loss of power has left it.
    pub fn after_power_loss(&self, sector: u64, bytes: &[u8]) -> Result<(), String> {
        let known = self.known[sector as usize];
        let versions = known.stable..=known.asked;
        if versions.clone().any(|v| self.vague.contains(&(sector, v)) || bytes == content(self.dom, sector, v)) {
            return Ok(());
        }
        Err(format!("sector {sector} is {} after a loss of power, instead of one of {versions:?}", describe(bytes)))
    }
}

/// Whose, where, which version, and every word differs from its neighbours'.
fn content(dom: DomId, sector: u64, version: u32) -> [u8; 512] {
    let mut bytes = [0; 512];
    if version == 0 {
        return bytes; // as the drive was made
    }
    for (n, word) in (0u32..).zip(bytes.chunks_mut(16)) {
        word[..4].copy_from_slice(&u32::from(dom.0).to_le_bytes());
        word[4..8].copy_from_slice(&(sector as u32).to_le_bytes());
        word[8..12].copy_from_slice(&version.to_le_bytes());
        word[12..].copy_from_slice(&n.to_le_bytes());
    }
    bytes
}

fn describe(bytes: &[u8]) -> String {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let heads: BTreeSet<[u32; 3]> = (0..512).step_by(16).map(|at| [word(at), word(at + 4), word(at + 8)]).collect();
    format!("{heads:?}")
}
