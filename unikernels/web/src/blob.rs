//! The bytes of `GET /blob?bytes=N&seed=S`: the little-endian words of SplitMix64 (Steele, Lea, Flood 2014), addressable by
//! position, so that either end can produce or check any part without the rest.

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Word `index` (eight bytes, little-endian) of the stream of `seed`.
#[must_use]
pub const fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Fills `out` with the stream's bytes from byte `position` on.
pub fn fill(seed: u64, position: u64, out: &mut [u8]) {
    let mut index = position / 8;
    let lead = (position % 8) as usize;
    let mut rest = out;
    if lead != 0 {
        let bytes = word(seed, index).to_le_bytes();
        let part = bytes.get(lead..).unwrap_or_default();
        let n = part.len().min(rest.len());
        let (head, tail) = rest.split_at_mut(n);
        head.copy_from_slice(part.get(..n).unwrap_or_default());
        rest = tail;
        index = index.wrapping_add(1);
    }
    let mut words = rest.chunks_exact_mut(8);
    for chunk in &mut words {
        chunk.copy_from_slice(&word(seed, index).to_le_bytes());
        index = index.wrapping_add(1);
    }
    let tail = words.into_remainder();
    let bytes = word(seed, index).to_le_bytes();
    tail.copy_from_slice(bytes.get(..tail.len()).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_words_are_splitmix64s() {
        // Reference output of SplitMix64 seeded with 0 (Vigna's splitmix64.c).
        assert_eq!(word(0, 0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(word(0, 1), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn any_part_equals_the_same_part_of_the_whole() {
        let mut whole = [0u8; 100];
        fill(7, 0, &mut whole);
        for start in 0..40 {
            for len in 0..60 {
                let mut part = vec![0u8; len];
                fill(7, start as u64, &mut part);
                assert_eq!(part, whole[start..start + len], "start {start} len {len}");
            }
        }
    }
}
