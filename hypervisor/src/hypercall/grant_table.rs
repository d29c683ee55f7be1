//! `grant_table_op` but for the copies ([`super::grant_copy`]): mapping, unmapping, and the table itself.
//!
//! A list is done entry by entry with a status each; the unmapped ones of a list share one flush. An address to map at must
//! be empty in the caller's physical map: nothing is replaced, so nothing is lost.

use super::{Caller, grant_copy};
use crate::{domain, grants, iommu};
use abi::grant::{GNTMAP_DEVICE_MAP, GNTMAP_HOST_MAP, GNTMAP_READONLY, MapGrantRef, UnmapGrantRef, status};
use abi::{Errno, PAGE_SIZE};
use alloc::vec::Vec;
use core::mem::offset_of;
use hv_core::{Dfn, Gfn};
use hv_core::args::{Batch, GrantTableOp as Op};
use hv_core::grants::{Access, Place, Want};
use hv_npt::{MapError, Rights};

pub fn call(caller: &Caller<'_>, [cmd, arg, count, ..]: [u64; 5]) -> Result<i64, Errno> {
    match Op::decode(cmd, arg, count, &caller.mem)? {
        Op::Map(list) => map_all(caller, list),
        Op::Unmap(list) => unmap_all(caller, list),
        Op::Copy(list) => grant_copy::copy_all(caller, list),
        Op::QuerySize(mut op) => {
            op.status = if caller.only_self(op.dom).is_ok() { status::OKAY } else { status::BAD_DOMAIN };
            if op.status == status::OKAY {
                op.nr_frames = caller.domain.grant_frames.lock().len() as u32;
                op.max_nr_frames = caller.domain.record.max_grant_frames;
            }
            caller.mem.write(arg, &op).map(|()| 0)
        }
        Op::SetVersion(op) => if op.version == 1 { Ok(0) } else { Err(Errno::EINVAL) },
        Op::GetVersion(mut op) => {
            caller.only_self(op.dom)?;
            op.version = 1;
            caller.mem.write(arg, &op).map(|()| 0)
        }
    }
}

fn map_all(caller: &Caller<'_>, list: Batch) -> Result<i64, Errno> {
    for at in list.entries(size_of::<MapGrantRef>())? {
        let mut op: MapGrantRef = caller.mem.read(at)?;
        op.status = match map(caller, &op) {
            Ok(handle) => {
                op.handle = handle;
                op.dev_bus_addr = if op.flags & GNTMAP_DEVICE_MAP != 0 { op.host_addr } else { 0 };
                status::OKAY
            }
            Err(status) => status,
        };
        caller.mem.write(at, &op)?;
    }
    Ok(0)
}

/// Maps one grant and gives its handle.
fn map(caller: &Caller<'_>, op: &MapGrantRef) -> Result<u32, i16> {
    let user = caller.domain;
    if op.flags & GNTMAP_HOST_MAP == 0 || op.flags & !(GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP | GNTMAP_READONLY) != 0 {
        return Err(status::GENERAL_ERROR);
    }
    if !op.host_addr.is_multiple_of(PAGE_SIZE as u64) {
        return Err(status::BAD_VIRT_ADDR);
    }
    let readonly = op.flags & GNTMAP_READONLY != 0;
    let place =
        Place { gfn: Gfn::containing(op.host_addr), host: true, device: op.flags & GNTMAP_DEVICE_MAP != 0 };
    let grantor = domain::find(caller.resolve(op.dom)).ok_or(status::BAD_DOMAIN)?;
    if !grants::table().has_room(user.id) {
        return Err(status::NO_DEVICE_SPACE);
    }
    let want = Want { user: user.id, grantor: grantor.id, gref: op.gref, readonly };
    let access = grants::acquire(&grantor, want).map_err(|e| e.status())?;
    enter(caller, place, access).map_err(|(access, status)| {
        grants::release([access]);
        status
    })
}

/// Puts an access into the caller's page tables and gives its handle.
fn enter(caller: &Caller<'_>, place: Place, access: Access) -> Result<u32, (Access, i16)> {
    let user = caller.domain;
    let rights = if access.readonly() { Rights::READ } else { Rights::READ | Rights::WRITE };
    let mut p2m = user.p2m.lock();
    if p2m.translate(place.gfn).is_some() {
        return Err((access, status::BAD_VIRT_ADDR));
    }
    if !user.may_grow(&p2m) {
        return Err((access, status::NO_DEVICE_SPACE));
    }
    match p2m.map(place.gfn, access.mfn(), 1, rights) {
        // The place was empty, so no CPU can have kept anything of it.
        Ok(_nothing_to_flush) => {}
        Err(MapError::Range { .. }) => return Err((access, status::ADDRESS_TOO_BIG)),
        Err(MapError::NoMemory) => return Err((access, status::GENERAL_ERROR)),
    }
    if place.device && iommu::map(user.id, Dfn(place.gfn.0), access.mfn(), 1, rights).is_err() {
        drop(p2m);
        grants::take_out(user, &[Place { device: false, ..place }]);
        return Err((access, status::NO_DEVICE_SPACE));
    }
    // Held while the lock is: who unmaps by this handle finds the page in place.
    let held = grants::table().hold(place, access);
    drop(p2m);
    iommu::flush(user.id);
    held.map_err(|access| {
        grants::take_out(user, &[place]);
        (access, status::NO_DEVICE_SPACE)
    })
}

fn unmap_all(caller: &Caller<'_>, list: Batch) -> Result<i64, Errno> {
    let mut mappings = Vec::with_capacity(list.count as usize);
    let mut result = Ok(0);
    for at in list.entries(size_of::<UnmapGrantRef>())? {
        let entry = caller.mem.read(at).and_then(|op: UnmapGrantRef| {
            let gfn = Gfn::containing(op.host_addr);
            let taken = if op.host_addr.is_multiple_of(PAGE_SIZE as u64) {
                grants::table().unmap(caller.domain.id, op.handle, gfn).map_err(|e| e.status())
            } else {
                Err(status::BAD_VIRT_ADDR)
            };
            let status = taken.map_or_else(|status| status, |mapping| {
                mappings.push(mapping);
                status::OKAY
            });
            caller.mem.write(at + offset_of!(UnmapGrantRef, status) as u64, &status)
        });
        if entry.is_err() {
            result = Err(Errno::EFAULT);
            break;
        }
    }
    // What was taken out of the table of handles must leave the page tables, whatever came after.
    if !mappings.is_empty() {
        grants::remove(caller.domain, mappings);
    }
    result
}
