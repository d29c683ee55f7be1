//! The write cache of a served drive. What is written is kept here, by sector, until a flush takes it to the image; at a power cut a
//! seed chooses which sectors made it to the image by themselves, as a real drive's cache has written some of its own accord.
//!
//! A sector is written whole or not at all; several sectors of one command may be torn apart. Of a sector written twice either of both
//! versions may be the one on the medium, as a drive may have written the older one before.

use blkcheck::random::Random;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// An image with what was not yet taken to it.
pub struct Cache {
    file: Arc<File>,
    len: u64,
    sector: u64,
    volatile: bool,
    /// Versions of each dirty sector, the oldest first, the newest is what a read gets. Empty where the drive is not volatile.
    dirty: BTreeMap<u64, Vec<Box<[u8]>>>,
}

/// Versions of one sector that are told apart.
const VERSIONS: usize = 4;

/// What a power cut did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cut {
    /// Sectors that no flush had covered.
    pub uncovered: u64,
    /// Of them those whose newest version is lost.
    pub lost: u64,
}

impl Cache {
    /// Over an image of `len` bytes.
    pub fn new(file: Arc<File>, len: u64, sector: u32, volatile: bool) -> Self {
        Self { file, len, sector: u64::from(sector.max(1)), volatile, dirty: BTreeMap::new() }
    }

    /// Whether `len` bytes at `at` are whole sectors of the drive.
    pub fn holds(&self, at: u64, len: u64) -> bool {
        let sound = at.is_multiple_of(self.sector) && len.is_multiple_of(self.sector);
        sound && len > 0 && at.checked_add(len).is_some_and(|end| end <= self.len)
    }

    fn sectors(&self, at: u64, len: u64) -> std::ops::Range<u64> {
        at / self.sector..(at + len) / self.sector
    }

    /// Reads bytes that the drive holds.
    ///
    /// # Errors
    /// Of the image.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)?;
        let range = self.sectors(at, bytes.len() as u64);
        for (sector, versions) in self.dirty.range(range.clone()) {
            let from = ((sector - range.start) * self.sector) as usize;
            let place = bytes.get_mut(from..).and_then(|b| b.get_mut(..self.sector as usize));
            if let (Some(place), Some(newest)) = (place, versions.last()) {
                place.copy_from_slice(newest);
            }
        }
        Ok(())
    }

    /// Writes bytes that the drive holds; `stable` = past the cache (FUA).
    ///
    /// # Errors
    /// Of the image.
    pub fn write(&mut self, at: u64, bytes: &[u8], stable: bool) -> io::Result<()> {
        let range = self.sectors(at, bytes.len() as u64);
        if stable || !self.volatile {
            self.file.write_all_at(bytes, at)?;
            range.for_each(|sector| drop(self.dirty.remove(&sector)));
            return Ok(());
        }
        for (sector, data) in range.zip(bytes.chunks(self.sector as usize)) {
            let versions = self.dirty.entry(sector).or_default();
            if versions.len() == VERSIONS {
                versions.remove(0);
            }
            versions.push(data.into());
        }
        Ok(())
    }

    /// Makes everything stable.
    ///
    /// # Errors
    /// Of the image; what was not written stays in the cache.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some((&sector, versions)) = self.dirty.first_key_value() {
            if let Some(newest) = versions.last() {
                self.file.write_all_at(newest, sector * self.sector)?;
            }
            self.dirty.remove(&sector);
        }
        Ok(())
    }

    /// Forgets content: reads of it give zeros.
    ///
    /// # Errors
    /// Of the image.
    pub fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        let zeros = vec![0; self.sector as usize];
        for sector in self.sectors(at, len) {
            self.write(sector * self.sector, &zeros, false)?;
        }
        Ok(())
    }

    /// The power is gone: each sector that no flush covered keeps what the image has, or one of its versions.
    ///
    /// # Errors
    /// Of the image.
    pub fn cut(&mut self, random: &mut Random) -> io::Result<Cut> {
        let mut cut = Cut::default();
        // Some cuts lose nearly all, some nearly nothing.
        let kept = random.below(5);
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            cut.uncovered += 1;
            let newest = versions.len() as u64;
            let choice = if random.below(4) < kept { newest } else { random.below(newest + 1) };
            cut.lost += u64::from(choice < newest);
            if let Some(version) = choice.checked_sub(1).and_then(|v| versions.get(v as usize)) {
                self.file.write_all_at(version, sector * self.sector)?;
            }
        }
        Ok(cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(volatile: bool) -> (Cache, Arc<File>) {
        let path = std::env::temp_dir().join(format!(
            "xenolith-cache-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(64 * 512).unwrap();
        let file = Arc::new(file);
        (Cache::new(Arc::clone(&file), 64 * 512, 512, volatile), file)
    }

    fn byte(file: &File, sector: u64) -> u8 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, sector * 512).unwrap();
        byte[0]
    }

    #[test]
    fn a_write_is_read_back_and_reaches_the_image_by_a_flush_or_by_fua_only() {
        let (mut cache, file) = cache(true);
        cache.write(512, &[1; 1024], false).unwrap();
        let mut back = [0; 2048];
        cache.read(0, &mut back).unwrap();
        assert_eq!((back[511], back[512], back[1535], back[1536]), (0, 1, 1, 0));
        assert_eq!(byte(&file, 1), 0, "the image has it before a flush");
        cache.write(1024, &[2; 512], true).unwrap();
        assert_eq!((byte(&file, 1), byte(&file, 2)), (0, 2));
        cache.flush().unwrap();
        assert_eq!((byte(&file, 1), byte(&file, 2)), (1, 2), "a flush does not bring back what FUA replaced");
    }

    #[test]
    fn a_cut_loses_what_no_flush_covered_and_nothing_else() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..40 {
            let (mut cache, file) = cache(true);
            cache.write(0, &[1; 4 * 512], false).unwrap();
            cache.flush().unwrap();
            cache.write(512, &[2; 2 * 512], false).unwrap();
            cache.write(512, &[3; 512], false).unwrap();
            let cut = cache.cut(&mut Random::new(seed)).unwrap();
            assert_eq!(cut.uncovered, 2);
            assert_eq!((byte(&file, 0), byte(&file, 3)), (1, 1), "covered sectors are as they were");
            assert!((1..=3).contains(&byte(&file, 1)) && (1..=2).contains(&byte(&file, 2)));
            lost += cut.lost;
            kept += cut.uncovered - cut.lost;
            let mut back = [0; 512];
            cache.read(512, &mut back).unwrap();
            assert_eq!(back[0], byte(&file, 1), "afterwards the image is what is read");
        }
        assert!(lost > 10 && kept > 10, "{lost} lost, {kept} kept: both have to happen");
    }

    #[test]
    fn without_a_volatile_cache_every_write_is_stable() {
        let (mut cache, file) = cache(false);
        cache.write(0, &[7; 512], false).unwrap();
        assert_eq!(byte(&file, 0), 7);
        assert_eq!(cache.cut(&mut Random::new(1)).unwrap(), Cut::default());
    }

    #[test]
    fn only_whole_sectors_within_the_drive_are_held() {
        let (cache, _) = cache(true);
        assert!(cache.holds(0, 64 * 512));
        for (at, len) in [(0, 0), (1, 512), (0, 513), (512, 64 * 512), (u64::MAX - 511, 512)] {
            assert!(!cache.holds(at, len), "{at} {len}");
        }
    }
}
