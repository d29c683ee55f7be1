//! Images made by hand: what a drive with a volatile cache may leave, and what it may not.

use super::*;

const VBD: u32 = 51712;
const SHAPE: Shape = Shape { seed: 5, first: 16, sectors: 512, size: 64, align: 1 };

/// A disk in memory, and the writes that were put on it.
struct Disk {
    sectors: Vec<[u8; SECTOR_SIZE]>,
    steps: Vec<Step>,
}

impl Disk {
    fn new() -> Self {
        Self { sectors: vec![[0; SECTOR_SIZE]; 1024], steps: Sequence::new(SHAPE).take(200).collect() }
    }
    fn put(&mut self, write: &Write, sectors: core::ops::Range<u64>) {
        for sector in sectors {
            let stamp = Stamp { vbd: VBD, generation: write.generation, sector, seed: SHAPE.seed };
            stamp.write(&mut self.sectors[sector as usize]);
        }
    }
    fn writes(&self) -> Vec<Write> {
        self.steps.iter().filter_map(|s| if let Step::Write(w) = s { Some(*w) } else { None }).collect()
    }
    fn put_up_to(&mut self, generation: u32) {
        for write in self.writes().iter().filter(|w| w.generation <= generation) {
            self.put(write, write.first..write.end());
        }
    }
    /// The generation of the `n`-th flush.
    fn flush(&self, n: usize) -> u32 {
        self.steps.iter().filter_map(|s| if let Step::Flush(g) = s { Some(*g) } else { None }).nth(n).unwrap()
    }
    fn judge(&self, ledger: &mut Ledger, flushed: u32, fua: &[u32]) -> Findings {
        let run = Run { shape: SHAPE, flushed, fua: fua.to_vec() };
        let read = |sector: u64, to: &mut [u8; SECTOR_SIZE]| {
            *to = self.sectors[sector as usize];
            Ok::<(), ()>(())
        };
        ledger.check(&run, read).unwrap()
    }
}

fn ledger() -> Ledger {
    Ledger::new(VBD, SHAPE.first, SHAPE.sectors as usize)
}

/// A write that no later one up to `upto` overlaps.
fn uncovered(disk: &Disk, upto: u32) -> Write {
    let writes = disk.writes();
    let later = |w: &Write| writes.iter().any(|o| o.generation > w.generation && o.generation <= upto && o.overlaps(w));
    *writes.iter().filter(|w| w.generation <= upto && w.sectors > 4).rfind(|w| !later(w)).unwrap()
}

#[test]
fn what_flushes_covered_is_there_and_later_writes_may_be() {
    let mut disk = Disk::new();
    let (flushed, more) = (disk.flush(5), disk.flush(6));
    disk.put_up_to(flushed);
    let mut ledger = ledger();
    assert!(disk.judge(&mut ledger, flushed, &[]).clean());
    // Half of a later write.
    let later = disk.writes()[flushed as usize];
    disk.put(&later, later.first..later.first + u64::from(later.sectors / 2));
    assert!(disk.judge(&mut self::ledger(), flushed, &[]).clean());
    disk.put_up_to(more);
    assert!(disk.judge(&mut self::ledger(), flushed, &[]).clean());
}

#[test]
fn a_missing_write_is_lost_and_a_part_of_it_torn() {
    let mut disk = Disk::new();
    let flushed = disk.flush(5);
    disk.put_up_to(flushed);
    let gone = uncovered(&disk, flushed);
    let before = disk.sectors.clone();
    for sector in gone.first..gone.end() {
        disk.sectors[sector as usize] = [0; SECTOR_SIZE];
    }
    let found = disk.judge(&mut ledger(), flushed, &[]);
    assert_eq!((found.lost, found.torn), (u64::from(gone.sectors), 0));
    disk.sectors[gone.first as usize] = before[gone.first as usize];
    let found = disk.judge(&mut ledger(), flushed, &[]);
    assert_eq!((found.lost, found.torn), (0, u64::from(gone.sectors) - 1));
    // Without the flush it need not be there.
    let mut before_it = disk.steps.iter().filter_map(|s| if let Step::Flush(g) = s { Some(*g) } else { None });
    let before_it = before_it.rfind(|&g| g < gone.generation).unwrap_or(0);
    let found = disk.judge(&mut ledger(), before_it, &[]);
    assert_eq!((found.lost, found.torn), (0, 0), "{found:?}");
}

#[test]
fn a_forced_write_has_to_be_there_without_a_flush() {
    let mut disk = Disk::new();
    let flushed = disk.flush(3);
    disk.put_up_to(flushed);
    let fua = *disk.writes().iter().find(|w| w.fua && w.generation > flushed).unwrap();
    let found = disk.judge(&mut ledger(), flushed, &[fua.generation]);
    assert_eq!(found.lost + found.torn, u64::from(fua.sectors));
    disk.put(&fua, fua.first..fua.end());
    assert!(disk.judge(&mut ledger(), flushed, &[fua.generation]).clean());
}

#[test]
fn wrong_addresses_damage_and_other_seeds_are_told_apart() {
    let mut disk = Disk::new();
    let flushed = disk.flush(5);
    disk.put_up_to(flushed);
    let place = uncovered(&disk, flushed);
    let at = place.first as usize;
    let good = disk.sectors[at];
    disk.sectors[at] = disk.sectors[at + 1];
    assert_eq!(disk.judge(&mut ledger(), flushed, &[]).misplaced, 1);
    disk.sectors[at] = good;
    disk.sectors[at][300] ^= 1;
    assert_eq!(disk.judge(&mut ledger(), flushed, &[]).corrupt, 1);
    Stamp { vbd: VBD, generation: 1, sector: place.first, seed: 77 }.write(&mut disk.sectors[at]);
    assert_eq!(disk.judge(&mut ledger(), flushed, &[]).stale, 1);
}

#[test]
fn a_second_run_begins_with_what_the_first_left() {
    let mut disk = Disk::new();
    let flushed = disk.flush(5);
    disk.put_up_to(flushed);
    let mut ledger = ledger();
    assert!(disk.judge(&mut ledger, flushed, &[]).clean());
    let next = Run { shape: Shape { seed: 6, ..SHAPE }, flushed: 0, fua: Vec::new() };
    let read = |sector: u64, to: &mut [u8; SECTOR_SIZE]| {
        *to = disk.sectors[sector as usize];
        Ok::<(), ()>(())
    };
    assert!(ledger.check(&next, read).unwrap().clean());
}

#[test]
fn tables_agree_only_where_every_generation_does() {
    let mut sectors = vec![[0; SECTOR_SIZE]; 64];
    let mut told = Table::new();
    for (sector, bytes) in (0u64..).zip(sectors.iter_mut()) {
        let generation = sector as u32 / 8 + 1;
        Stamp { vbd: VBD, generation, sector, seed: 5 }.write(bytes);
        told.add(sector, generation);
    }
    let taken = |sectors: &[[u8; SECTOR_SIZE]]| {
        let mut table = Table::new();
        for (sector, bytes) in (0u64..).zip(sectors) {
            table.add_read(VBD, 5, sector, bytes);
        }
        table
    };
    assert_eq!((taken(&sectors).digest(), taken(&sectors).findings.clean()), (told.digest(), true));
    Stamp { vbd: VBD, generation: 3, sector: 40, seed: 5 }.write(&mut sectors[40]);
    assert_ne!(taken(&sectors).digest(), told.digest());
    sectors[40] = [0; SECTOR_SIZE];
    assert_eq!(taken(&sectors).findings.lost, 1);
}
