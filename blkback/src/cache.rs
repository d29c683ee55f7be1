//! What a restart must know of the connected vbds; how it is kept is every backend's ([`::backend::cache`]). Every field must be one that
//! xenstore could have said; what they name is then checked by who gives it: grants and ports by the hypervisor, indices by the
//! ring, sectors by the drive.
//!
//! ```text
//! frontend | device << 16, drive | read-only << 8 | persistent << 9 | log2 of ring pages << 16, first low, high, sectors low, high,
//! port, ring pages…, source
//! ```

use crate::disk::DriveId;
use crate::negotiate::{Directory, KIND, Keys, MAX_ORDER};
use crate::source::Extent;
use ::backend::cache;
use ::backend::xenbus::Place;
use abi::io::xenbus::XenbusState;
use abi::{DomId, EvtchnPort, GrantRef};
use alloc::vec::Vec;
use ring::SharedMem;

/// "vbds".
const MAGIC: u32 = 0x7364_6276;
/// Words of a vbd before its ring pages.
const FIXED: usize = 7;

/// Keeps the connected vbds, or nothing where they do not fit or one is not known.
pub(crate) fn save<'a, S: SharedMem>(page: &S, me: DomId, vbds: impl Iterator<Item = Option<&'a Directory>>) {
    cache::save(page, MAGIC, vbds, |body, vbd| encode(body, me, vbd?));
}

/// What was kept; `None` where nothing was, or it is damaged.
pub(crate) fn load<S: SharedMem>(page: &S, me: DomId) -> Option<Vec<Directory>> {
    cache::load(page, MAGIC, |rest| decode(rest, me))
}

fn encode(body: &mut Vec<u32>, me: DomId, vbd: &Directory) -> Option<()> {
    let keys = vbd.keys.as_ref().ok()?;
    let extent = vbd.extent?;
    // Paths are not kept; a vbd with others than the usual ones has no place here.
    let Place { frontend, device, .. } = vbd.place;
    if vbd.place != Place::usual(me, KIND, frontend, device) {
        return None;
    }
    let flags = u32::from(vbd.read_only) << 8 | u32::from(keys.persistent) << 9;
    body.extend([
        u32::from(frontend.0) | u32::from(device) << 16,
        u32::from(extent.drive.0) | flags | keys.rings.len().checked_ilog2()? << 16,
        extent.first as u32,
        (extent.first >> 32) as u32,
        extent.sectors as u32,
        (extent.sectors >> 32) as u32,
        keys.port.0,
    ]);
    body.extend(keys.rings.iter().map(|gref| gref.0));
    cache::put_text(body, Some(&vbd.source));
    Some(())
}

fn decode(rest: &mut &[u32], me: DomId) -> Option<Directory> {
    let ([id, flags, first, first_high, sectors, sectors_high, port], tail) = rest.split_first_chunk::<FIXED>()?;
    let order = Some(flags >> 16).filter(|&order| order <= MAX_ORDER)?;
    let (rings, tail) = tail.split_at_checked(1 << order)?;
    *rest = tail;
    let source = cache::take_text(rest)??;
    let wide = |low: &u32, high: &u32| u64::from(*low) | u64::from(*high) << 32;
    let extent =
        Extent { drive: DriveId(*flags as u8), first: wide(first, first_high), sectors: wide(sectors, sectors_high) };
    extent.first.checked_add(extent.sectors).filter(|_| extent.sectors > 0)?;
    let port = Some(*port).filter(|&n| n != 0 && n < abi::evtchn::NR_CHANNELS_2L).map(EvtchnPort)?;
    Some(Directory {
        place: Place::usual(me, KIND, DomId(*id as u16), (*id >> 16) as u16),
        source,
        read_only: flags >> 8 & 1 != 0,
        extent: Some(extent),
        back_state: XenbusState::Connected,
        front_state: XenbusState::Connected,
        keys: Ok(Keys {
            rings: rings.iter().map(|&gref| GrantRef(gref)).collect(),
            port,
            persistent: flags >> 9 & 1 != 0,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::TestPage;

    const ME: DomId = DomId(1);

    fn vbd(frontend: u16, device: u16, source: String, order: u32, seed: u64) -> Directory {
        Directory {
            place: Place::usual(ME, KIND, DomId(frontend), device),
            source,
            read_only: seed & 1 != 0,
            extent: Some(Extent { drive: DriveId(seed as u8), first: seed >> 8, sectors: (seed >> 4) + 1 }),
            back_state: XenbusState::Connected,
            front_state: XenbusState::Connected,
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
            vbds in proptest::collection::vec((0u16..0x7ff0, any::<u16>(), "[ -~]{0,30}", 0u32..4, 0u64..1 << 62), 0..10)
        ) {
            let page = TestPage::default();
            let kept: Vec<Directory> = vbds.into_iter().map(|(f, v, s, o, n)| vbd(f, v, s, o, n)).collect();
            save(&page, ME, kept.iter().map(Some));
            prop_assert_eq!(load(&page, ME), Some(kept));
        }
    }

    #[test]
    fn a_vbd_with_other_paths_is_not_kept() {
        let page = TestPage::default();
        let mut odd = vbd(3, 0, "drive=0".into(), 0, 7);
        odd.place.front = "/local/domain/3/device/other/0".into();
        save(&page, ME, [vbd(2, 0, "drive=0".into(), 0, 7), odd].iter().map(Some));
        assert_eq!(load(&page, ME), None);
    }
}
