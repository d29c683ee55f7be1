//! The ELF inside a bzImage: where it lies (Linux, `Documentation/arch/x86/boot.rst`) and how it is compressed.

use super::super::elf::{u16_at, u32_at};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::io::Read;

/// Offsets in the setup header.
mod setup {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const HEADER: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
}
/// First protocol version that says where the payload is.
const OLDEST: u16 = 0x0208;
/// Largest kernel that is unpacked; a damaged length must not take all memory of the host.
const LARGEST: u64 = 1 << 30;

/// Whether a file is a bzImage, whole or not.
pub fn is_bzimage(file: &[u8]) -> bool {
    u16_at(file, setup::BOOT_FLAG) == Some(0xaa55)
        && file.get(setup::HEADER..).is_some_and(|rest| rest.starts_with(b"HdrS"))
}

/// The kernel's ELF file.
///
/// # Errors
/// The image is too old, truncated, or compressed by something unknown.
pub fn extract(file: &[u8]) -> Result<Vec<u8>> {
    let field = || anyhow!("it is truncated within its setup header");
    let version = u16_at(file, setup::VERSION).ok_or_else(field)?;
    ensure!(
        version >= OLDEST,
        "its boot protocol {}.{:02} is older than 2.08, so that its kernel cannot be found",
        version >> 8,
        version & 0xff
    );
    let sectors = u64::from(*file.get(setup::SETUP_SECTS).ok_or_else(field)?);
    let offset = u64::from(u32_at(file, setup::PAYLOAD_OFFSET).ok_or_else(field)?);
    let len = u64::from(u32_at(file, setup::PAYLOAD_LENGTH).ok_or_else(field)?);
    // No sectors stand for four (boot.rst, `setup_sects`).
    let start = (if sectors == 0 { 4 } else { sectors } + 1) * 512 + offset;
    let end = start + len;
    let payload = file.get(start as usize..end as usize);
    let payload =
        payload.ok_or_else(|| anyhow!("it is truncated: {} bytes, its kernel ends at byte {end}", file.len()))?;
    unpack(payload)
}

/// Unpacks what kernels and initrds are compressed by, told by its first bytes.
///
/// # Errors
/// Damaged, or compressed by something that cannot be read.
pub fn unpack(payload: &[u8]) -> Result<Vec<u8>> {
    match *payload {
        [0x7f, b'E', b'L', b'F', ..] => Ok(payload.to_vec()),
        [0x1f, 0x8b, ..] => read("gzip", flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read("xz", lzma_rust2::XzReader::new(payload, false)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(payload, LARGEST);
            read("zstd", decoder.map_err(|error| anyhow!("its zstd stream is damaged: {error}"))?)
        }
        [0x02, 0x21, 0x4c, 0x18, ref blocks @ ..] => lz4(blocks),
        _ => {
            let (name, magic) = (unsupported(payload), payload.get(..6).unwrap_or(payload));
            bail!("it is compressed by {name} (it begins with {magic:02x?}); gzip, xz, zstd and lz4 can be read")
        }
    }
}

fn unsupported(payload: &[u8]) -> &'static str {
    match *payload {
        [b'B', b'Z', b'h', ..] => "bzip2",
        [0x5d, 0, 0, ..] => "lzma",
        [0x89, b'L', b'Z', b'O', ..] => "lzo",
        _ => "something unknown",
    }
}

fn read(name: &str, from: impl Read) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    from.take(LARGEST).read_to_end(&mut out).with_context(|| format!("its {name} stream is damaged"))?;
    Ok(out)
}

/// LZ4's legacy frame, as `lz4 -l` and Linux write it: blocks of 8 MiB, each after its compressed length. Behind the last one
/// stands the length of the whole, which is no block.
fn lz4(mut rest: &[u8]) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut out = Vec::new();
    while let Some(len) = u32_at(rest, 0) {
        let Some(block) = rest.get(4..4usize.saturating_add(len as usize)) else {
            ensure!(
                rest.len() == 4,
                "its lz4 stream is truncated: a block of {len} bytes, {} are there",
                rest.len() - 4
            );
            break;
        };
        let plain =
            lz4_flex::block::decompress(block, BLOCK).map_err(|error| anyhow!("its lz4 stream is damaged: {error}"))?;
        out.extend_from_slice(&plain);
        ensure!(out.len() as u64 <= LARGEST, "its lz4 stream is longer than {LARGEST} bytes");
        rest = rest.get(4 + len as usize..).unwrap_or_default();
    }
    Ok(out)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Write;

    /// A bzImage around a payload.
    pub fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 3 * 512 + 0x40];
        file[setup::SETUP_SECTS] = 2;
        file[setup::BOOT_FLAG..setup::BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        file[setup::HEADER..setup::HEADER + 4].copy_from_slice(b"HdrS");
        file[setup::VERSION..setup::VERSION + 2].copy_from_slice(&0x20fu16.to_le_bytes());
        file[setup::PAYLOAD_OFFSET..setup::PAYLOAD_OFFSET + 4].copy_from_slice(&0x40u32.to_le_bytes());
        file[setup::PAYLOAD_LENGTH..setup::PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file.extend_from_slice(payload);
        file.extend_from_slice(b"what the boot loader signs");
        file
    }

    /// As the kernel's build does: the length of the whole behind the stream.
    fn sized(mut stream: Vec<u8>, plain: &[u8]) -> Vec<u8> {
        stream.extend((plain.len() as u32).to_le_bytes());
        stream
    }

    fn plain() -> Vec<u8> {
        b"\x7fELF".iter().copied().chain((0..40_000u32).flat_map(|n| (n / 7).to_le_bytes())).collect()
    }

    pub fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(plain).unwrap();
        gzip.finish().unwrap()
    }

    /// With the filter for x86 code, as `scripts/xz_wrap.sh` asks for.
    pub fn xz(plain: &[u8]) -> Vec<u8> {
        let mut options = lzma_rust2::XzOptions::with_preset(1);
        options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        xz.write_all(plain).unwrap();
        xz.finish().unwrap()
    }

    pub fn lz4(plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        for block in plain.chunks(100_000) {
            let packed = lz4_flex::block::compress(block);
            out.extend((packed.len() as u32).to_le_bytes());
            out.extend(packed);
        }
        out
    }

    pub fn zstd(plain: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn every_compression_gives_the_kernel_back() {
        let plain = plain();
        let streams =
            [gzip(&plain), sized(xz(&plain), &plain), sized(zstd(&plain), &plain), sized(lz4(&plain), &plain)];
        for stream in streams.into_iter().chain([plain.clone()]) {
            let file = bzimage(&stream);
            assert!(is_bzimage(&file));
            assert!(extract(&file).unwrap() == plain, "{:02x?}", &stream[..4]);
        }
    }

    #[test]
    fn truncation_is_told_with_both_lengths() {
        let file = bzimage(&gzip(&plain()));
        for len in 0..file.len() - 26 {
            let error = extract(&file[..len]).unwrap_err().to_string();
            assert!(error.contains("truncated"), "{len} bytes: {error}");
        }
    }

    #[test]
    fn a_damaged_stream_names_its_kind() {
        let plain = plain();
        for (name, mut stream) in [("gzip", gzip(&plain)), ("xz", xz(&plain)), ("lz4", lz4(&plain))] {
            let middle = stream.len() / 2;
            stream[middle..].fill(0xff);
            let error = format!("{:#}", extract(&bzimage(&stream)).unwrap_err());
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (magic, name) in [(&b"BZh91AY"[..], "bzip2"), (b"\x5d\0\0\0\x04\0", "lzma"), (b"whatever", "unknown")] {
            let error = extract(&bzimage(magic)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("gzip, xz, zstd and lz4"), "{error}");
        }
        let mut old = bzimage(b"");
        old[setup::VERSION] = 7;
        old[setup::VERSION + 1] = 2;
        assert!(extract(&old).unwrap_err().to_string().contains("2.07"));
    }
}
