//! Filling a domain's memory: segments from the pristine copy, zero everywhere else, by string instructions over whole runs of
//! frames. The same code makes a domain and restores it.

use crate::domain::{Domain, Segment};
use crate::mem;
use abi::{PAGE_SIZE, bundle};
use hv_core::{Gfn, Mfn};

const PAGE: u64 = PAGE_SIZE as u64;

/// What part of memory is wanted: guest-physical bytes.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

/// Restores memory; the survivor page is left alone if `keep_survivor`. No vCPU and no device of the domain runs.
pub fn restore(domain: &Domain, keep_survivor: bool) {
    let end = domain.mem_frames() * PAGE;
    let survivor = domain.special_gfn(bundle::special::SURVIVOR).addr();
    let mut at = 0;
    for segment in sorted(&domain.image) {
        zero(domain, Span { start: at, end: segment.gpa });
        copy(domain, segment);
        at = segment.gpa + segment.bytes.len() as u64;
    }
    zero(domain, Span { start: at, end: if keep_survivor { survivor } else { end } });
    if keep_survivor {
        zero(domain, Span { start: survivor + PAGE, end });
    }
}

/// Segments by address; they were put in order, and found not to overlap, when the domain was made.
fn sorted(image: &[Segment]) -> impl Iterator<Item = &Segment> {
    image.iter()
}

/// Runs of machine memory behind a span of guest memory, each with its guest-physical start.
fn runs(domain: &Domain, span: Span) -> impl Iterator<Item = (u64, *mut u8, usize)> {
    domain.ram.iter().filter_map(move |&(gfn, mfn, pages): &(Gfn, Mfn, u64)| {
        let start = span.start.max(gfn.addr());
        let end = span.end.min(gfn.addr() + pages * PAGE);
        (start < end).then(|| (start, mem::direct(mfn.addr() + (start - gfn.addr())), (end - start) as usize))
    })
}

fn zero(domain: &Domain, span: Span) {
    for (_, at, len) in runs(domain, span) {
        // SAFETY: RAM of the domain (`Domain::ram`, owned by it for ever), which holds no Rust value; nothing else uses it now.
        unsafe { mem::zero_bytes(at, len) };
    }
}

fn copy(domain: &Domain, segment: &Segment) {
    let span = Span { start: segment.gpa, end: segment.gpa + segment.bytes.len() as u64 };
    for (gpa, at, len) in runs(domain, span) {
        let offset = (gpa - segment.gpa) as usize;
        if let Some(from) = segment.bytes.get(offset..offset + len) {
            // SAFETY: as in `zero`; the bundle's memory belongs to nobody else.
            unsafe { mem::copy_bytes(at, from.as_ptr(), len) };
        }
    }
}
