//! The receive filter: what of [`RxFilter`] goes to which register (SDM 317453, 13.4 RCTL, 13.5 MTA, RAL, RAH).

use crate::regs::{MTA_WORDS, RA_COUNT, Rctl};
use heapless::Vec;
use netback::nic::{MacAddr, RxFilter, is_group};

/// A filter in the device's terms, kept to be restored after a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Bits of RCTL.
    pub rctl: Rctl,
    /// Exact addresses besides the station's; empty where RCTL takes all.
    pub exact: Vec<MacAddr, { RA_COUNT - 1 }>,
    /// The multicast table; `None` where RCTL takes all.
    pub table: Option<[u32; MTA_WORDS]>,
}

impl Filter {
    /// Translates; more addresses than fit become "all". With `open_groups` all multicast is taken whatever the filter
    /// says (filters may be coarse): the bits of RCTL then depend on nothing but promiscuity.
    #[must_use]
    pub fn new(filter: &RxFilter<'_>, open_groups: bool) -> Self {
        let mut rctl = Rctl::BAM;
        let exact = if filter.promiscuous { None } else { Vec::from_slice(filter.unicast).ok() };
        if exact.is_none() {
            rctl |= Rctl::UPE;
        }
        let mut table = None;
        if filter.all_multicast || open_groups {
            rctl |= Rctl::MPE;
        } else {
            let mut words = [0u32; MTA_WORDS];
            for group in filter.multicast.iter().filter(|m| is_group(m)) {
                let (word, bit) = hash(group);
                if let Some(w) = words.get_mut(word) {
                    *w |= 1 << bit;
                }
            }
            table = Some(words);
        }
        Self { rctl, exact: exact.unwrap_or_default(), table }
    }
}

/// Word and bit of a group in the table: with RCTL.MO = 0, bits 47:36 of the address in transmission order of its bytes.
#[must_use]
pub const fn hash(group: &MacAddr) -> (usize, u32) {
    let twelve = ((group[5] as u32) << 4 | (group[4] as u32) >> 4) & 0xfff;
    ((twelve >> 5) as usize, twelve & 0x1f)
}

/// An address as RAL and RAH (without AV) hold it.
#[must_use]
pub const fn station(mac: &MacAddr) -> (u32, u32) {
    (u32::from_le_bytes([mac[0], mac[1], mac[2], mac[3]]), u32::from_le_bytes([mac[4], mac[5], 0, 0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_takes_bits_47_to_36() {
        // Byte 5 is bits 47:40, the upper half of byte 4 bits 39:36: 0xbc9, word 0x5e, bit 9.
        assert_eq!(hash(&[0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc]), (0xbc9 >> 5, 9));
    }

    #[test]
    fn station_address_is_little_endian() {
        assert_eq!(station(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]), (0x1200_5452, 0x5634));
    }

    #[test]
    fn too_many_addresses_become_promiscuous() {
        let many = [[2, 0, 0, 0, 0, 1]; 16];
        let f = Filter::new(&RxFilter { unicast: &many, ..RxFilter::default() }, false);
        assert!(f.rctl.contains(Rctl::UPE) && f.exact.is_empty());
        let f = Filter::new(&RxFilter { unicast: &many[..15], ..RxFilter::default() }, false);
        assert!(!f.rctl.contains(Rctl::UPE) && f.exact.len() == 15);
        assert_eq!(f.table, Some([0; MTA_WORDS]));
    }
}
