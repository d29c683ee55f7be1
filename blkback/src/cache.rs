//! What a restart must know of the connected vbds; how it is kept is every backend's ([`::backend::cache`]). Every field must be one that
//! xenstore could have said; what they name is then checked by who gives it: grants and ports by the hypervisor, indices by the
//! ring, sectors by the drive.
//!
//! ```text
//! drive | read-only << 8 | persistent << 9 | log2 of ring pages << 16, first low, high, sectors low, high,
//! identity of the drive, port, ring pages…, source
//! ```

use crate::disk::DriveId;
use crate::negotiate::{Keys, MAX_ORDER, Nodes};
use crate::source::Extent;
use ::backend::cache::{Kept, put_text, take_text};
use abi::{EvtchnPort, GrantRef};
use alloc::vec::Vec;

impl Kept for Nodes {
    /// "vbd2".
    const MAGIC: u32 = 0x3264_6276;

    fn encode(&self, body: &mut Vec<u32>) -> Option<()> {
        let keys = self.keys.as_ref().ok()?;
        let extent = self.extent?;
        let flags = u32::from(self.read_only) << 8 | u32::from(keys.persistent) << 9;
        body.extend([
            u32::from(extent.drive.0) | flags | keys.rings.len().checked_ilog2()? << 16,
            extent.first as u32,
            (extent.first >> 32) as u32,
            extent.sectors as u32,
            (extent.sectors >> 32) as u32,
            extent.identity,
            keys.port.0,
        ]);
        body.extend(keys.rings.iter().map(|gref| gref.0));
        put_text(body, Some(&self.source));
        Some(())
    }

    fn decode(rest: &mut &[u32]) -> Option<Self> {
        let ([flags, first, first_high, sectors, sectors_high, identity, port], tail) = rest.split_first_chunk()?;
        let order = Some(flags >> 16).filter(|&order| order <= MAX_ORDER)?;
        let (rings, tail) = tail.split_at_checked(1 << order)?;
        *rest = tail;
        let source = take_text(rest)??;
        let wide = |low: &u32, high: &u32| u64::from(*low) | u64::from(*high) << 32;
        let extent = Extent {
            drive: DriveId(*flags as u8),
            identity: *identity,
            first: wide(first, first_high),
            sectors: wide(sectors, sectors_high),
        };
        extent.first.checked_add(extent.sectors).filter(|_| extent.sectors > 0)?;
        let port = Some(*port).filter(|&n| n != 0 && n < abi::evtchn::NR_CHANNELS_2L).map(EvtchnPort)?;
        Some(Self {
            source,
            read_only: flags >> 8 & 1 != 0,
            extent: Some(extent),
            keys: Ok(Keys {
                rings: rings.iter().map(|&gref| GrantRef(gref)).collect(),
                port,
                persistent: flags >> 9 & 1 != 0,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vbd(source: String, order: u32, seed: u64) -> Nodes {
        Nodes {
            source,
            read_only: seed & 1 != 0,
            extent: Some(Extent {
                drive: DriveId(seed as u8),
                identity: !seed as u32,
                first: seed >> 8,
                sectors: (seed >> 4) + 1,
            }),
            keys: Ok(Keys {
                rings: (0..1 << order).map(|n| GrantRef(n ^ seed as u32)).collect(),
                port: EvtchnPort(seed as u32 % 4095 + 1),
                persistent: seed & 2 != 0,
            }),
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_comes_back(
            vbds in proptest::collection::vec(("[ -~]{0,30}", 0u32..4, 0u64..1 << 62), 0..10)
        ) {
            let mut body = Vec::new();
            let kept: Vec<Nodes> = vbds.into_iter().map(|(s, o, n)| vbd(s, o, n)).collect();
            for vbd in &kept {
                prop_assert_eq!(vbd.encode(&mut body), Some(()));
            }
            let mut rest = body.as_slice();
            for vbd in kept {
                prop_assert_eq!(Nodes::decode(&mut rest), Some(vbd));
            }
            prop_assert!(rest.is_empty());
        }
    }
}
