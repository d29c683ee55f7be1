//! A tree of files such as a kernel's source has: many small ones, some large, in nested folders, as one archive with their digests.

use crate::linux::cpio::Archive;
use blkcheck::random::Random;
use sha2::{Digest, Sha256};

/// The file of digests, as `sha256sum -c` reads it.
const SUMS: &str = "SUMS";
/// Files in a folder.
const WIDTH: u32 = 24;
/// Bytes of most files are below this; one in 16 has up to 16 times as much. With it a file has 15 KiB on average, as in Linux's tree.
const SMALL: u64 = 15 << 10;

/// An archive.
pub struct Tree {
    /// cpio.
    pub archive: Vec<u8>,
    /// In its files.
    pub bytes: u64,
}

/// Makes a tree of so many files; the same seed gives the same.
pub fn make(files: u32, seed: u64) -> Tree {
    let mut random = Random::new(seed);
    let (mut archive, mut sums, mut bytes) = (Archive::default(), String::new(), 0);
    let mut data = Vec::new();
    for number in 0..files {
        let path = format!("tree/{}/{}/file{number}.c", number / WIDTH / WIDTH, number / WIDTH % WIDTH);
        let most = if random.below(16) == 0 { SMALL * 16 } else { SMALL };
        data.resize(usize::try_from(random.below(most)).unwrap_or(0), 0);
        for word in data.chunks_mut(8) {
            word.copy_from_slice(&random.below(u64::MAX).to_le_bytes()[..word.len()]);
        }
        let digest: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
        sums.push_str(&format!("{digest}  {path}\n"));
        bytes += data.len() as u64;
        archive.file(&path, &data);
    }
    archive.file(SUMS, sums.as_bytes());
    Tree { archive: archive.finish(), bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_the_same_for_a_seed_and_has_sizes_like_a_kernels() {
        let tree = make(2000, 3);
        assert_eq!(tree.archive, make(2000, 3).archive);
        assert_ne!(tree.archive, make(2000, 4).archive);
        let mean = tree.bytes / 2000;
        assert!((8 << 10..24 << 10).contains(&mean), "{mean} bytes a file");
        crate::image::kernel::initrd::check(&tree.archive).unwrap();
    }
}
