//! `GNTTABOP_copy`: bytes between a frame of the caller and a granted one, or between two granted ones.
//!
//! Both sides are pinned first, copied without any lock, and let go: a side that is revoked meanwhile stays in place until
//! the copy is done.

use super::Caller;
use crate::domain::{self, Domain};
use crate::shared_frame::SharedFrame;
use crate::{grants, mem};
use abi::grant::{CopyPtr, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GrantCopy, status};
use abi::{DomId, Errno, GrantRef, PAGE_SIZE};
use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;
use hv_core::args::Batch;
use hv_core::frames::Owner;
use hv_core::grants::{Access, Want};
use hv_core::{Gfn, Mfn};
use hv_npt::Rights;
use zerocopy::IntoBytes;

/// Entries read, done and answered together.
const PART: usize = 32;

/// A pinned side of a copy.
enum Side {
    /// A frame of the caller.
    Own(Mfn),
    /// A granted one.
    Granted(Access),
}

/// Copies a list and remembers the granting domain from one entry to the next, as it is mostly the same.
struct Copier<'a> {
    caller: &'a Caller<'a>,
    grantor: Option<Arc<Domain>>,
}

pub fn copy_all(caller: &Caller<'_>, list: Batch) -> Result<i64, Errno> {
    let mut copier = Copier { caller, grantor: None };
    let (mut done, mut bytes) = (0, 0);
    let mut left = list.count as usize;
    let mut part = [GrantCopy::default(); PART];
    let result = list.parts(size_of::<GrantCopy>(), PART)?.try_for_each(|at| {
        let ops = part.get_mut(..left.min(PART)).unwrap_or_default();
        left -= ops.len();
        // One walk of the caller's page tables for many entries.
        caller.mem.read_bytes(at, ops.as_mut_bytes())?;
        for op in &mut *ops {
            op.status = match copier.copy(op) {
                Ok(()) => {
                    done += 1;
                    bytes += u64::from(op.len);
                    status::OKAY
                }
                Err(status) => status,
            };
        }
        caller.mem.write_bytes(at, ops.as_bytes())
    });
    caller.domain.counters.grant_copies.fetch_add(done, Relaxed);
    caller.domain.counters.grant_copy_bytes.fetch_add(bytes, Relaxed);
    result.map(|()| 0)
}

impl Copier<'_> {
    fn copy(&mut self, op: &GrantCopy) -> Result<(), i16> {
        let fits = |side: &CopyPtr| usize::from(side.offset) + usize::from(op.len) <= PAGE_SIZE;
        if !fits(&op.source) || !fits(&op.dest) || op.flags & !(GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF) != 0 {
            return Err(status::BAD_COPY_ARG);
        }
        let source = self.pin(&op.source, op.flags & GNTCOPY_SOURCE_GREF != 0, true)?;
        let dest = self.pin(&op.dest, op.flags & GNTCOPY_DEST_GREF != 0, false);
        let result = dest.as_ref().map_err(|&status| status).map(|dest| {
            let (from, to) = (source.frame(), dest.frame());
            to.copy_from(op.dest.offset.into(), &from, op.source.offset.into(), op.len.into())
        });
        source.unpin();
        if let Ok(dest) = dest {
            dest.unpin();
        }
        if result? { Ok(()) } else { Err(status::BAD_COPY_ARG) }
    }

    fn pin(&mut self, side: &CopyPtr, granted: bool, readonly: bool) -> Result<Side, i16> {
        let user = self.caller.domain;
        if granted {
            let gref = GrantRef(u32::try_from(side.u).map_err(|_| status::BAD_GNTREF)?);
            let dom = self.caller.resolve(side.domid);
            if self.grantor.as_ref().is_none_or(|d| d.id != dom) {
                self.grantor = domain::find(dom);
            }
            let grantor = self.grantor.as_ref().ok_or(status::BAD_DOMAIN)?;
            let want = Want { user: user.id, grantor: grantor.id, gref, readonly };
            return grants::acquire(grantor, want).map(Side::Granted).map_err(|e| e.status());
        }
        if side.domid != DomId::SELF && side.domid != user.id {
            return Err(status::PERMISSION_DENIED);
        }
        let p2m = user.p2m.lock();
        let leaf = p2m.translate(Gfn(side.u)).ok_or(status::BAD_PAGE)?;
        if !readonly && !leaf.rights.contains(Rights::WRITE) {
            return Err(status::BAD_PAGE);
        }
        mem::frames().pin(leaf.mfn, Owner::Domain(user.id)).map_err(|_| status::BAD_PAGE)?;
        Ok(Side::Own(leaf.mfn))
    }
}

impl Side {
    fn frame(&self) -> SharedFrame {
        let mfn = match self {
            Self::Own(mfn) => *mfn,
            Self::Granted(access) => access.mfn(),
        };
        // SAFETY: a frame that belonged to a domain when it was pinned, and is pinned until `unpin`.
        unsafe { SharedFrame::from_mfn(mfn) }
    }

    fn unpin(self) {
        match self {
            Self::Own(mfn) => mem::unpin(mfn),
            Self::Granted(access) => grants::release([access]),
        }
    }
}
