//! The time of day in a PC's CMOS clock (MC146818A, registers 0 to 9 and B). Neighbour: `hypervisor/src/time.rs` reads it, once.

/// Register B: binary, else BCD.
const BINARY: u8 = 1 << 2;

/// Seconds since 1970 of the registers seconds, minutes, hours, day, month and year of this century; `mode` is register B. Hours are
/// taken to count to 24, as every PC's do.
pub fn unix_seconds(registers: [u8; 6], mode: u8) -> u64 {
    let plain = |r: u8| u64::from(if mode & BINARY != 0 { r } else { (r >> 4).wrapping_mul(10).wrapping_add(r & 15) });
    let [second, minute, hour, day, month, year] = registers.map(plain);
    // Years that begin in March, so that the leap day is the last: days before the year, the month, the day.
    let (y, m) = if month > 2 {
        (2000u64.wrapping_add(year), month)
    } else {
        (1999u64.wrapping_add(year), month.wrapping_add(12))
    };
    let leap_days = (y / 4).wrapping_sub(y / 100).wrapping_add(y / 400);
    let month_days = m.wrapping_sub(3).wrapping_mul(153).wrapping_add(2) / 5;
    let days =
        y.wrapping_mul(365).wrapping_add(leap_days).wrapping_add(month_days).wrapping_add(day).wrapping_sub(719_469);
    [(days, 86_400), (hour, 3_600), (minute, 60), (second, 1)]
        .iter()
        .fold(0, |sum, (n, s)| n.wrapping_mul(*s).wrapping_add(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_by_hand() {
        assert_eq!(unix_seconds([0, 0, 0, 1, 1, 0], 0), 946_684_800, "2000-01-01");
        assert_eq!(unix_seconds([0x59, 0x59, 0x23, 0x29, 0x02, 0x24], 0), 1_709_251_199, "2024-02-29 23:59:59, BCD");
        assert_eq!(unix_seconds([0, 0, 0, 1, 3, 24], BINARY), 1_709_251_200, "a second later, binary");
        assert_eq!(unix_seconds([0x37, 0x26, 0x09, 0x23, 0x11, 0x26], 0), 1_795_425_997, "2026-11-23 09:26:37");
    }
}
