//! Little-endian fields of a byte slice; `None` past its end.

pub(super) trait Bytes {
    fn u8(&self, at: usize) -> Option<u8>;
    fn u16(&self, at: usize) -> Option<u16>;
    fn u32(&self, at: usize) -> Option<u32>;
    fn u64(&self, at: usize) -> Option<u64>;
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

impl Bytes for [u8] {
    fn u8(&self, at: usize) -> Option<u8> {
        self.get(at).copied()
    }
    fn u16(&self, at: usize) -> Option<u16> {
        field(self, at).map(u16::from_le_bytes)
    }
    fn u32(&self, at: usize) -> Option<u32> {
        field(self, at).map(u32::from_le_bytes)
    }
    fn u64(&self, at: usize) -> Option<u64> {
        field(self, at).map(u64::from_le_bytes)
    }
}
