//! Filling a domain's memory: segments from the pristine copy, zero everywhere else, over whole runs of frames. The same code
//! makes a domain and restores it.

use crate::domain::{Domain, Segment};
use crate::{deadlines, lifecycle, mem, percpu, run};
use abi::{Errno, PAGE_SIZE, bundle, bundle::flags::DRIVER};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;
use hv_core::frames::Owner;
use hv_core::{Gfn, Mfn};

const PAGE: u64 = PAGE_SIZE as u64;
/// Bytes filled between two looks at interrupts and deadlines, whose vCPUs another CPU may take: about a millisecond.
const PART: usize = 2 << 20;

/// What part of memory is wanted: guest-physical bytes.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

/// Restores memory; the survivor page is left alone if `keep_survivor`. No vCPU and no device of the domain runs.
///
/// # Errors
/// `EAGAIN` after each part of a guest: to be called again, and goes on where it was. So who waits for the caller, or for its CPU,
/// waits for a part only.
pub fn restore(domain: &Domain, keep_survivor: bool) -> Result<(), Errno> {
    let end = domain.mem_frames() * PAGE;
    let survivor = domain.special_gfn(bundle::special::SURVIVOR).addr();
    let mut at = 0;
    // By address, and found not to overlap, when the domain was made.
    for segment in &domain.image {
        zero(domain, Span { start: at, end: segment.gpa })?;
        copy(domain, segment)?;
        at = segment.gpa + segment.bytes.len() as u64;
    }
    zero(domain, Span { start: at, end: if keep_survivor { survivor } else { end } })?;
    zero(domain, Span { start: if keep_survivor { survivor + PAGE } else { end }, end })?;
    domain.filled.store(0, SeqCst);
    Ok(())
}

/// Parts of machine memory behind what is not filled yet of a span of guest memory, each with its guest-physical start; none is larger
/// than [`PART`].
fn parts(domain: &Domain, span: Span) -> impl Iterator<Item = (u64, *mut u8, usize)> {
    domain.ram.lock().clone().into_iter().flat_map(move |(gfn, mfn, pages): Run| {
        let start = span.start.max(gfn.addr()).max(domain.filled.load(SeqCst));
        let end = span.end.min(gfn.addr() + pages * PAGE);
        let part = move |at| (at, mem::direct(mfn.addr() + (at - gfn.addr())), PART.min((end - at) as usize));
        (start..end).step_by(PART).map(part)
    })
}

/// After a part of `len` bytes that ends at `end`. A driver domain is filled in one go, as others wait for it, and so is what is made
/// before any domain runs.
fn breathe(domain: &Domain, end: u64, len: usize) -> Result<(), Errno> {
    run::interrupt_window();
    deadlines::expire(percpu::this());
    if len < PART || domain.record.flags & DRIVER != 0 || lifecycle::boot_ns() == 0 {
        return Ok(());
    }
    domain.filled.store(end, SeqCst);
    Err(Errno::EAGAIN)
}

fn zero(domain: &Domain, span: Span) -> Result<(), Errno> {
    for (gpa, at, len) in parts(domain, span) {
        // SAFETY: RAM of the domain (`Domain::ram`, owned by it), which holds no Rust value; nothing else uses it now.
        unsafe { mem::zero_bytes(at, len) };
        breathe(domain, gpa + len as u64, len)?;
    }
    Ok(())
}

fn copy(domain: &Domain, segment: &Segment) -> Result<(), Errno> {
    let span = Span { start: segment.gpa, end: segment.gpa + segment.bytes.len() as u64 };
    for (gpa, at, len) in parts(domain, span) {
        if let Some(from) = segment.bytes.get((gpa - segment.gpa) as usize..).and_then(|rest| rest.get(..len)) {
            let whole = len / mem::BLOCK * mem::BLOCK;
            // SAFETY: as in `zero`; the bundle's memory belongs to nobody else.
            unsafe { mem::refresh_bytes(at, from.as_ptr(), whole) };
            let rest = from.as_ptr().wrapping_add(whole);
            // SAFETY: the rest of the same ranges.
            unsafe { mem::copy_bytes(at.wrapping_add(whole), rest, len - whole) };
        }
        breathe(domain, gpa + len as u64, len)?;
    }
    Ok(())
}

/// A run of RAM: first guest frame, first machine frame, count.
type Run = (Gfn, Mfn, u64);

/// Before a restart: puts a fresh frame in the place of each that another domain still maps or copies. So what a peer does by
/// a grant of the old instance never reaches the new one; the old frame is free when the peer lets go. Nobody can pin what is put in
/// before the new instance grants it, so a restart in several calls finds none the second time.
///
/// # Errors
/// `ENOMEM`; the RAM is whole all the same.
pub fn renew_pinned(domain: &Domain) -> Result<(), Errno> {
    let owner = Owner::Domain(domain.id);
    let mut ram = domain.ram.lock();
    let mut frames = mem::frames();
    let pinned = |&(_, mfn, pages): &Run| (0..pages).any(|n| frames.pins(Mfn(mfn.0 + n)) != 0);
    if !ram.iter().any(pinned) {
        return Ok(());
    }
    let mut renewed: Vec<Run> = Vec::with_capacity(ram.len() + 4);
    let mut result = Ok(());
    for &(gfn, mfn, pages) in ram.iter() {
        for n in 0..pages {
            let (at, mut frame) = (Gfn(gfn.0 + n), Mfn(mfn.0 + n));
            if frames.pins(frame) != 0 {
                match frames.allocate(owner, mem::ANYWHERE) {
                    Ok(fresh) => {
                        // SAFETY: a fresh frame of the domain's, which nobody has seen yet.
                        unsafe { mem::zero_bytes(mem::direct(fresh.addr()), PAGE_SIZE) };
                        if let Err(e) = frames.release(frame, owner) {
                            panic!("RAM of {} is not its own: {e:?}", domain.name);
                        }
                        frame = fresh;
                    }
                    Err(_) => result = Err(Errno::ENOMEM),
                }
            }
            match renewed.last_mut() {
                Some((first, to, count)) if first.0 + *count == at.0 && to.0 + *count == frame.0 => *count += 1,
                _ => renewed.push((at, frame, 1)),
            }
        }
    }
    *ram = renewed;
    result
}
