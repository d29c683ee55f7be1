//! `memory_op`: shared pages into a domain's physical map, holes in its RAM. Its memory map is in the start info.
//!
//! RAM is given to a domain once and for all: a frame taken out of the map by `decrease_reservation` stays the domain's and
//! is put back by `populate_physmap`, wherever it wants one. So ballooning makes room for mappings, and a restart always has
//! the memory it needs.

use super::Caller;
use crate::domain::Domain;
use crate::shared_frame::SharedFrame;
use crate::{grants, iommu, mem, run};
use abi::Errno;
use abi::memory::{AddToPhysmap, MAPSPACE_GRANT_TABLE, MAPSPACE_SHARED_INFO, MemoryReservation};
use core::sync::atomic::Ordering::Relaxed;
use hv_core::args::{BATCH_MAX, Batch, MemoryOp as Op};
use hv_core::frames::Owner;
use hv_core::{Dfn, Gfn, Mfn};
use hv_npt::{MapError, Rights};

pub fn call(caller: &Caller<'_>, cmd: u64, arg: u64) -> Result<i64, Errno> {
    let domain = caller.domain;
    match Op::decode(cmd, arg, 1, &caller.mem)? {
        Op::AddToPhysmap(op) => {
            caller.only_self(op.domid)?;
            add_to_physmap(domain, &op).map(|()| 0)
        }
        Op::Decrease(op) => each_extent(caller, &op, |gfns| decrease(domain, gfns)),
        Op::Populate(op) => each_extent(caller, &op, |gfns| populate(domain, gfns)),
    }
}

fn add_to_physmap(domain: &Domain, op: &AddToPhysmap) -> Result<(), Errno> {
    let frame = match op.space {
        MAPSPACE_SHARED_INFO if op.idx == 0 => domain.shared_info,
        MAPSPACE_GRANT_TABLE => {
            let index = u32::try_from(op.idx).map_err(|_| Errno::EINVAL)?;
            grants::grow(domain, index.checked_add(1).ok_or(Errno::EINVAL)?)?;
            *domain.grant_frames.lock().get(index as usize).ok_or(Errno::EINVAL)?
        }
        _ => return Err(Errno::EINVAL),
    };
    // RAM gives way, as in Xen: Linux puts the page where it has some.
    let _replaced = decrease(domain, &[Gfn(op.gpfn)]);
    let mut p2m = domain.p2m.lock();
    match p2m.translate(Gfn(op.gpfn)) {
        Some(leaf) if leaf.mfn == frame.mfn() => return Ok(()),
        Some(_) => return Err(Errno::EEXIST),
        None if !domain.may_grow(&p2m) => return Err(Errno::ENOMEM),
        None => {}
    }
    // The place was empty: there is nothing to flush.
    p2m.map(Gfn(op.gpfn), frame.mfn(), 1, Rights::READ | Rights::WRITE).map(|_| ()).map_err(errno)
}

const fn errno(e: MapError) -> Errno {
    match e {
        MapError::NoMemory => Errno::ENOMEM,
        MapError::Range { .. } => Errno::EINVAL,
    }
}

/// Calls `f` with the guest frames of a reservation, some at a time, until it does fewer; gives how many it did. Only
/// extents of one page.
fn each_extent(
    caller: &Caller<'_>,
    op: &MemoryReservation,
    mut f: impl FnMut(&[Gfn]) -> usize,
) -> Result<i64, Errno> {
    caller.only_self(op.domid)?;
    if op.extent_order != 0 {
        return Err(Errno::EINVAL);
    }
    let count = u32::try_from(op.nr_extents).ok().filter(|&n| n <= BATCH_MAX).ok_or(Errno::E2BIG)?;
    let mut gfns = heapless::Vec::<Gfn, { BATCH_MAX as usize }>::new();
    for at in (Batch { addr: op.extent_start, count }).entries(size_of::<u64>())? {
        // Never full: the count was checked.
        let _fits = gfns.push(Gfn(caller.mem.read(at)?));
    }
    Ok(f(&gfns) as i64)
}

/// The end of the list of frames taken out.
const NO_FRAME: u64 = u64::MAX;

/// A frame that was taken out holds itself the number of the one before it: a guest may take out all it has, and our heap is small.
fn before(frame: &SharedFrame) -> u64 {
    frame.u64_at(0).map_or(NO_FRAME, |word| word.load(Relaxed))
}

fn set_before(frame: &SharedFrame, before: u64) {
    if let Some(word) = frame.u64_at(0) {
        word.store(before, Relaxed);
    }
}

/// Takes frames of RAM out of the map, up to the first that is none or is in use by another domain.
fn decrease(domain: &Domain, gfns: &[Gfn]) -> usize {
    let mut p2m = domain.p2m.lock();
    let mut out = heapless::Vec::<Mfn, { BATCH_MAX as usize }>::new();
    for &gfn in gfns {
        let Some(leaf) = p2m.translate(gfn) else { break };
        let mine = {
            let frames = mem::frames();
            frames.owner(leaf.mfn) == Some(Owner::Domain(domain.id)) && frames.pins(leaf.mfn) == 0
        };
        if !mine || iommu::unmap(domain.id, Dfn(gfn.0), 1).is_err() {
            break;
        }
        if p2m.unmap(gfn, 1).is_err() {
            // The tables for it are there, so it can be put back.
            let _mapped = iommu::map(domain.id, Dfn(gfn.0), leaf.mfn, 1, Rights::READ | Rights::WRITE);
            break;
        }
        // Never full: there are no more guest frames than that.
        let _fits = out.push(leaf.mfn);
    }
    run::flush_tlb(domain);
    iommu::flush(domain.id);
    p2m.reclaim();
    drop(p2m);
    let mut last = domain.ballooned.lock();
    for &mfn in &out {
        // SAFETY: a frame of the domain that is in no page table; a guest's frame holds no Rust values.
        let frame = unsafe { SharedFrame::from_mfn(mfn) };
        set_before(&frame, last.replace(mfn).map_or(NO_FRAME, |before| before.0));
    }
    out.len()
}

/// Puts frames that were taken out into holes of the map, cleared, up to the first place that is none.
fn populate(domain: &Domain, gfns: &[Gfn]) -> usize {
    let mut p2m = domain.p2m.lock();
    let mut last = domain.ballooned.lock();
    let mut done = 0;
    for &gfn in gfns {
        let Some(mfn) = *last else { break };
        // SAFETY: as above.
        let frame = unsafe { SharedFrame::from_mfn(mfn) };
        let before = before(&frame);
        frame.zero();
        let room = p2m.translate(gfn).is_none() && domain.may_grow(&p2m);
        if !room || p2m.map(gfn, mfn, 1, Rights::RWX).is_err() {
            set_before(&frame, before);
            break;
        }
        // Nobody reaches the frame while it is out; if somebody did, it is his own that he gets.
        *last = Some(Mfn(before)).filter(|&mfn| mem::frames().owner(mfn) == Some(Owner::Domain(domain.id)));
        done += 1;
        if iommu::map(domain.id, Dfn(gfn.0), mfn, 1, Rights::RWX).is_err() {
            log::warn!("{}: no memory to let its devices reach frame {gfn}", domain.name);
            break;
        }
    }
    iommu::flush(domain.id);
    done
}
