//! I/O and MSR permission maps (APM 2, 15.10 and 15.11): a set bit intercepts.

/// Frames of an I/O permission map: one bit per port, and 3 bits past the last port.
pub const IOPM_FRAMES: usize = 3;
/// Frames of an MSR permission map.
pub const MSRPM_FRAMES: usize = 2;

/// Byte and mask of a port in the I/O permission map.
pub const fn port_bit(port: u16) -> (usize, u8) {
    (port as usize / 8, 1 << (port % 8))
}

/// Byte and mask (read bit and write bit) of an MSR in the MSR permission map; `None`: not in the map, always intercepted.
pub const fn msr_bit(msr: u32) -> Option<(usize, u8)> {
    let (base, index) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (0x800, msr - 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, msr - 0xc001_0000),
        _ => return None,
    };
    Some((base + index as usize / 4, 3 << (index % 4 * 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_positions_by_hand() {
        assert_eq!(port_bit(0x3f8), (0x7f, 1));
        assert_eq!(port_bit(0xffff), (8191, 0x80));
        assert_eq!(msr_bit(0x277), Some((0x9d, 0xc0)));
        assert_eq!(msr_bit(0xc000_0080), Some((0x820, 3)), "EFER");
        assert_eq!(msr_bit(0xc001_0117), Some((0x1045, 0xc0)), "VM_HSAVE_PA");
        assert_eq!(msr_bit(0x4000_0000), None);
        assert_eq!(msr_bit(0x2000), None);
    }
}
