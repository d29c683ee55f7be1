//! I/O and MSR permission maps: everything is denied but what stands here or in the domain's record.

use crate::mem::{self, ANYWHERE};
use abi::{PAGE_SIZE, bundle};
use core::ops::RangeInclusive;
use hv_core::Mfn;
use hv_core::frames::Owner;
use hv_svm::{IOPM_FRAMES, MSRPM_FRAMES, msr_bit, port_bit};
use spin::Once;

/// MSRs that the VMCB switches and that reach nothing else: guests use them directly. SYSENTER; SYSCALL; FS, GS, KernelGS base.
const PASS: [RangeInclusive<u32>; 3] = [0x174..=0x176, 0xc000_0081..=0xc000_0084, 0xc000_0100..=0xc000_0102];

static MSRPM: Once<Option<Mfn>> = Once::new();
static IOPM_NONE: Once<Option<Mfn>> = Once::new();

/// A run of frames full of ones.
fn all_denied(frames: usize) -> Option<Mfn> {
    let order = frames.next_power_of_two().trailing_zeros();
    let first = mem::frames().allocate_contiguous(Owner::Hypervisor, order, ANYWHERE).ok()?;
    // SAFETY: fresh frames of ours.
    unsafe { core::ptr::write_bytes(mem::direct(first.addr()), 0xff, PAGE_SIZE << order) };
    Some(first)
}

fn allow(map: Mfn, (byte, bits): (usize, u8)) {
    let at = mem::direct(map.addr()).wrapping_add(byte);
    // SAFETY: the map was made by `all_denied`, and `hv_svm` gives positions inside of it; nobody else writes it.
    let old = unsafe { at.read() };
    // SAFETY: as above.
    unsafe { at.write(old & !bits) };
}

/// The MSR permission map, one for all.
///
/// # Panics
/// Without memory for it, at boot.
pub fn msrpm() -> Mfn {
    let map = MSRPM.call_once(|| {
        let map = all_denied(MSRPM_FRAMES)?;
        PASS.into_iter().flatten().filter_map(msr_bit).for_each(|bit| allow(map, bit));
        Some(map)
    });
    match map {
        Some(map) => *map,
        None => panic!("no memory for the MSR permission map"),
    }
}

/// The I/O permission map for a domain with these ports (and those of its devices' BARs).
pub fn iopm(ports: &[bundle::Ports], bars: &[(u16, u16)]) -> Option<Mfn> {
    if ports.is_empty() && bars.is_empty() {
        return *IOPM_NONE.call_once(|| all_denied(IOPM_FRAMES));
    }
    let map = all_denied(IOPM_FRAMES)?;
    for (first, count) in ports.iter().map(|p| (p.first, p.count)).chain(bars.iter().copied()) {
        for port in (u32::from(first)..).take(usize::from(count)).filter_map(|p| u16::try_from(p).ok()) {
            allow(map, port_bit(port));
        }
    }
    Some(map)
}
