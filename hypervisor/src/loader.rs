//! From the system bundle to domains that are ready to run. Everything is checked before the first domain is made, so that a bad
//! bundle starts nothing.

use crate::boot::info::Region;
use crate::context::Context;
use crate::console::Log;
use crate::domain::{self, Counters, Domain, P2m, Segment, pause};
use crate::mem::{self, ANYWHERE, BELOW_4G, LARGE_FRAMES, Tables};
use crate::percpu;
use crate::shared_frame::SharedFrame;
use crate::vcpu::Vcpu;
use crate::{device, events, grants, lifecycle, permissions, run, smp};
use abi::bundle::{self, Bundle, flags};
use abi::{hvm, xenolith};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use hv_core::frames::Owner;
use hv_core::watchdog::Watchdogs;
use hv_core::{Gfn, Mfn};
use hv_npt::Rights;
use spin::Mutex;

/// Domains for which the heap has room, console logs being most of it.
const DOMAINS_MAX: usize = 64;
/// log2 of [`LARGE_FRAMES`].
const LARGE_ORDER: u32 = 9;

/// The module's bytes.
pub fn bytes(module: Region) -> &'static [u8] {
    let start: *const u8 = mem::direct(module.start);
    // SAFETY: the loader put the module there; its frames are never given to the frame table, so the bytes stay for ever.
    unsafe { core::slice::from_raw_parts(start, module.len() as usize) }
}

/// Reads the bundle.
///
/// # Errors
/// What is wrong, for people.
pub fn parse(module: Option<Region>) -> Result<Bundle<'static>, String> {
    let module = module.ok_or("no system bundle: pass it as the only module (QEMU: -initrd)")?;
    if module.end > 1 << 32 || module.len() < size_of::<bundle::Header>() as u64 {
        return Err(alloc::format!("bad system bundle: {} bytes at {:#x}", module.len(), module.start));
    }
    let bundle = Bundle::parse(bytes(module)).map_err(|e| alloc::format!("bad system bundle: {e}"))?;
    match bundle.domains().first() {
        Some(d) if d.domid == abi::DomId::CONTROL => {}
        _ => return Err("bad system bundle: there is no control domain (domain 0)".into()),
    }
    if bundle.domains().len() > DOMAINS_MAX {
        return Err(alloc::format!("{} domains, {DOMAINS_MAX} is the limit", bundle.domains().len()));
    }
    let at_boot = bundle.domains().iter().filter(|d| d.flags & flags::ON_DEMAND == 0);
    let wanted: u64 = at_boot.map(|d| u64::from(d.mem_pages)).sum();
    let free = mem::frames().free_count();
    // Page tables, state areas, grant tables: a sixteenth covers them many times.
    if wanted + wanted / 16 + 64 * bundle.domains().len() as u64 > free {
        return Err(alloc::format!("too little memory: the domains want {} KiB, {} KiB are free", wanted * 4, free * 4));
    }
    if let Some(d) = bundle.domains().iter().find(|d| smp::for_guests(d.cpu_mask) == 0) {
        let (name, has) = (bundle.name(d).unwrap_or("?"), smp::for_guests(0).count_ones());
        return Err(alloc::format!("domain {name} may run on CPUs {:#x} only, the machine has {has}", d.cpu_mask));
    }
    // Before the first domain is made: a device that cannot be had starts nothing.
    for d in bundle.domains() {
        let name = bundle.name(d).unwrap_or("?");
        device::claim(d.domid, bundle.devices(d), bundle.ports(d)).map_err(|e| alloc::format!("domain {name}: {e}"))?;
    }
    Ok(bundle)
}

/// A domain's segments, by address (`Bundle::parse` checked the order).
fn segments(bundle: &Bundle<'static>, d: &bundle::Domain) -> Box<[Segment]> {
    bundle.segments(d).iter().filter_map(|s| Some(Segment { gpa: s.gpa, bytes: bundle.data(s)? })).collect()
}

/// Gives a domain that has none its RAM: 2 MiB runs below 4 GiB, then anywhere, then single frames. False, and it has none, where
/// there is too little.
#[must_use]
pub fn give_memory(domain: &Domain) -> bool {
    let (owner, end) = (Owner::Domain(domain.id), domain.mem_frames());
    let (mut p2m, mut runs) = (domain.p2m.lock(), domain.ram.lock());
    let (mut at, mut large_left) = (0, true);
    while at < end {
        let mut frames = mem::frames();
        let mut allocate = |order| {
            let low = frames.allocate_contiguous(owner, order, BELOW_4G);
            low.or_else(|_| frames.allocate_contiguous(owner, order, ANYWHERE)).ok()
        };
        // Looked for until there is none: a look is at all frames.
        let large = if large_left && end - at >= LARGE_FRAMES { allocate(LARGE_ORDER) } else { None };
        large_left = large.is_some();
        let Some((mfn, pages)) = large.map(|mfn| (mfn, LARGE_FRAMES)).or_else(|| Some((allocate(0)?, 1))) else { break };
        match runs.last_mut() {
            Some((_, first, count)) if first.0 + *count == mfn.0 => *count += pages,
            _ => runs.push((Gfn(at), mfn, pages)),
        }
        at += pages;
    }
    let whole = at == end && runs.iter().all(|&(gfn, mfn, pages)| p2m.map(gfn, mfn, pages, Rights::RWX).is_ok());
    drop((p2m, runs));
    if !whole {
        take_memory(domain);
    }
    whole
}

/// Takes a domain's memory: what nobody else maps or copies is free, the rest when they let go. None of its vCPUs and devices runs.
pub fn take_memory(domain: &Domain) {
    let mut p2m = domain.p2m.lock();
    // Whole pages go, so none has to be split and nothing can fail.
    let _flushed_below = p2m.unmap(Gfn(0), lifecycle::GUEST_FRAMES);
    run::flush_tlb(domain);
    p2m.reclaim();
    drop(p2m);
    *domain.ballooned.lock() = None;
    domain.filled.store(0, SeqCst);
    let mut frames = mem::frames();
    for (_, first, pages) in domain.ram.lock().drain(..) {
        for mfn in (first.0..first.0 + pages).map(Mfn) {
            if let Err(e) = frames.release(mfn, Owner::Domain(domain.id)) {
                panic!("RAM of {} is not its own: {e:?}", domain.name);
            }
        }
    }
}

/// CPU for the n-th vCPU of all: the driver domains first, then round about, as the mask allows.
fn place(n: u32, mask: u32) -> u32 {
    (0..smp::count()).filter(|cpu| mask >> cpu & 1 != 0).cycle().nth(n as usize).unwrap_or(0)
}

/// Makes the record of one domain, which has no memory yet.
fn build(bundle: &Bundle<'static>, d: &'static bundle::Domain, placed: &mut u32) -> Option<Arc<Domain>> {
    // SAFETY: a frame of the hypervisor that is only ever shared with this domain.
    let shared_info = unsafe { SharedFrame::from_mfn(mem::alloc_zeroed()?) };
    let p2m = P2m::new(Tables)?;
    let mut contexts = Vec::new();
    for _ in 0..d.vcpus {
        contexts.push(Context::new()?);
    }
    let mut name = heapless::String::new();
    let _ = name.push_str(bundle.name(d)?);
    let iopm = permissions::iopm(bundle.ports(d), &device::io_ports(d.domid))?;
    Some(Arc::new_cyclic(|weak| Domain {
        id: d.domid,
        name,
        record: *d,
        image: segments(bundle, d),
        vcpus: (0..)
            .zip(contexts)
            .map(|(id, context)| {
                let cpu = place(*placed, smp::for_guests(d.cpu_mask));
                *placed += 1;
                Arc::new(Vcpu::new(id, weak.clone(), d, cpu, context))
            })
            .collect(),
        p2m: Mutex::new(p2m),
        shared_info,
        grant_frames: Mutex::new(Vec::new()),
        watchdogs: Mutex::new(Watchdogs::default()),
        iopm,
        ram: Mutex::new(Vec::new()),
        ballooned: Mutex::new(None),
        filled: AtomicU64::new(0),
        hvm_params: Mutex::new([0; hvm::NR_PARAMS as usize]),
        state: AtomicU32::new(xenolith::state::DESTROYED),
        paused: AtomicU32::new(pause::BUILDING),
        generation: AtomicU32::new(0),
        last_cause: AtomicU32::new(xenolith::cause::NONE),
        counters: Counters::default(),
        refused: AtomicU64::new(0),
        console: Mutex::new(Log::new()),
    }))
}

/// Makes all domains of a checked bundle, those on demand without memory; none runs yet.
///
/// # Errors
/// What is missing, for people.
pub fn load(bundle: &Bundle<'static>) -> Result<(), String> {
    let vcpus: usize = bundle.domains().iter().map(|d| d.vcpus as usize).sum();
    for cpu in percpu::all() {
        cpu.queue.lock().reserve(vcpus);
        cpu.deadlines.lock().reserve(vcpus);
    }
    let mut placed = 0;
    for d in bundle.domains() {
        let name = bundle.name(d).unwrap_or("?");
        let domain = build(bundle, d, &mut placed).ok_or_else(|| alloc::format!("no memory for domain {name}"))?;
        domain::add(domain.clone());
        events::add_domain(&domain);
        grants::add_domain(&domain);
        if d.flags & flags::ON_DEMAND == 0 {
            lifecycle::make(&domain).map_err(|e| alloc::format!("domain {name} cannot be made: {e}"))?;
        }
        log::info!(
            "domain {}: {name}, {} KiB, {} vCPU, image {} KiB",
            d.domid,
            d.mem_pages * 4,
            d.vcpus,
            domain.image.iter().map(|s| s.bytes.len()).sum::<usize>() / 1024
        );
    }
    Ok(())
}
