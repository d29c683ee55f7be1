//! An initrd as it is read: whole cpio archives, the last one perhaps compressed. Linux says of a truncated one only that it
//! found no init, so it is looked through before anything starts.

use super::payload;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::path::Path;
use std::sync::Arc;

/// Header of a "newc" record: magic and 13 numbers of 8 hexadecimal digits (Linux, `buffer-format.rst`).
const HEADER: usize = 110;
/// Name of the last record.
const TRAILER: &[u8] = b"TRAILER!!!";

/// An initrd.
#[derive(Clone, Debug)]
pub struct Initrd {
    /// As it is read.
    pub bytes: Arc<[u8]>,
    /// Bytes of its archives once unpacked. Linux makes files of them while it still has `bytes`.
    pub unpacked: u64,
}

/// Reads and checks an initrd.
///
/// # Errors
/// What is wrong with the file, with its name.
pub fn load(path: &Path) -> Result<Initrd> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the initrd {}", path.display()))?;
    let unpacked = check(&bytes).with_context(|| format!("initrd {}", path.display()))?;
    Ok(Initrd { bytes: bytes.into(), unpacked })
}

/// Looks an initrd through; returns the bytes of its archives once unpacked.
///
/// # Errors
/// What is wrong with it.
pub fn check(bytes: &[u8]) -> Result<u64> {
    let (mut rest, mut unpacked) = (bytes, 0);
    ensure!(!rest.is_empty(), "it is empty");
    loop {
        // Archives are separated by any number of zeros.
        rest = rest.get(rest.iter().position(|&b| b != 0).unwrap_or(rest.len())..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(unpacked);
        }
        if rest.starts_with(b"07070") {
            let behind = archive(rest)?;
            unpacked += (rest.len() - behind.len()) as u64;
            rest = behind;
        } else {
            let plain = payload::unpack(rest)?;
            ensure!(plain.starts_with(b"07070"), "what is compressed in it is no cpio archive");
            return Ok(unpacked + check(&plain)?);
        }
    }
}

/// Walks one archive; returns what is behind it.
fn archive(mut rest: &[u8]) -> Result<&[u8]> {
    for record in 0.. {
        let truncated = || anyhow!("it is truncated in record {record} of its cpio archive");
        let header = rest.get(..HEADER).ok_or_else(truncated)?;
        let number = |index: usize| {
            let digits = header.get(6 + index * 8..14 + index * 8)?;
            usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let magic = matches!(header.get(..6), Some(b"070701" | b"070702"));
        let (Some(len), Some(name_len), true) = (number(6), number(11), magic) else {
            bail!("record {record} of its cpio archive is damaged")
        };
        let name_end = HEADER.saturating_add(name_len);
        let name = rest.get(HEADER..name_end).ok_or_else(truncated)?;
        let end = name_end.next_multiple_of(4).saturating_add(len);
        ensure!(end <= rest.len(), truncated());
        if name.strip_suffix(b"\0") == Some(TRAILER) {
            return Ok(rest.get(end..).unwrap_or_default());
        }
        rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::kernel::payload::tests::{gzip, lz4, xz, zstd};

    fn cpio() -> Vec<u8> {
        let mut out = Vec::new();
        for (name, data) in [("init", &b"#!/bin/sh\n"[..]), ("TRAILER!!!", b"")] {
            let numbers = [1, 0o100_755, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
            out.extend(b"070701");
            out.extend(numbers.iter().flat_map(|n| format!("{n:08x}").into_bytes()));
            out.extend(name.bytes().chain([0]));
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend(data);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    #[test]
    fn archives_compressed_or_not_or_both_are_taken() {
        let len = cpio().len() as u64;
        assert_eq!(check(&cpio()).unwrap(), len);
        for packed in [gzip(&cpio()), xz(&cpio()), zstd(&cpio()), lz4(&cpio())] {
            assert_eq!(check(&packed).unwrap(), len);
        }
        let both = [cpio(), vec![0; 300], gzip(&cpio())].concat();
        assert_eq!(check(&both).unwrap(), 2 * len, "the zeros between are none of it");
    }

    #[test]
    fn a_truncated_one_is_refused_wherever_it_ends() {
        let plain = cpio();
        // The padding behind the last name is not missed.
        let end = plain.len() - 2;
        for len in 1..end {
            assert!(check(&plain[..len]).is_err(), "{len} bytes of {end}");
        }
        for packed in [gzip(&plain), xz(&plain), zstd(&plain), lz4(&plain)] {
            for len in 0..packed.len() {
                assert!(
                    check(&packed[..len]).is_err(),
                    "{len} bytes of {} packed by {:02x?}",
                    packed.len(),
                    &packed[..4]
                );
            }
            let mut damaged = packed.clone();
            let middle = packed.len() / 2;
            damaged[middle..].fill(0xff);
            assert!(check(&damaged).is_err(), "damage in {:02x?}", &packed[..4]);
        }
        assert!(format!("{:#}", check(&plain[..200]).unwrap_err()).contains("truncated in record 1"));
    }

    #[test]
    fn what_is_no_archive_is_told() {
        assert!(check(b"").unwrap_err().to_string().contains("empty"));
        assert!(format!("{:#}", check(&gzip(b"hello")).unwrap_err()).contains("no cpio"));
        assert!(check(b"BZh9").unwrap_err().to_string().contains("bzip2"));
        let mut bad = cpio();
        bad[60] = b'z';
        assert!(check(&bad).unwrap_err().to_string().contains("record 0"));
    }
}
