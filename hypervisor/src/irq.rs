//! Interrupts of devices: each line has one owner, one vector, and reaches that owner as an event of its PIRQ.
//!
//! A level-triggered line is masked when it fires and unmasked when its owner says `PHYSDEVOP_eoi`, so a domain that does not
//! serve it loses it and nobody else. Storms are throttled, then stop the owner (`hv_core::storm`). Every vector goes through
//! the IOMMU's remapping table of the line's source; there, a line that nobody has bound is blocked.
//! Neighbours: `device.rs` says which lines there are, `traps` calls [`handle`], the hypercalls call [`bind`] and [`eoi`].

use crate::domain::{self, Domain, pause};
use crate::lifecycle::{self, Cause};
use crate::{device, events, ioapic, iommu, percpu, time};
use abi::xenolith::cause;
use abi::{DomId, Errno};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use hv_core::pci::Bdf;
use hv_core::storm::{Storm, Verdict};
use spin::{Mutex, RwLock};

/// Vectors of device lines: from here up, one each.
const FIRST_VECTOR: u8 = 0x40;
/// The IOMMU's event log; the lines end before it.
pub const IOMMU_VECTOR: u8 = 0xE0;
/// PIRQs of message-signalled interrupts start here, above every global system interrupt.
const FIRST_MSI_PIRQ: u32 = 256;

/// Where interrupts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An IO-APIC pin.
    Gsi {
        /// Global system interrupt.
        gsi: u32,
        /// Level-triggered.
        level: bool,
        /// Active low.
        low: bool,
    },
    /// A function's MSI or MSI-X.
    Message(Bdf),
}

#[derive(Debug, Default)]
struct State {
    bound: bool,
    /// Level: fired and not yet ended by its owner.
    in_service: bool,
    storm: Storm,
    /// Masked until then, ns; 0 = not throttled.
    throttled_ns: u64,
}

#[derive(Debug)]
struct Line {
    pirq: u32,
    vector: u8,
    owner: DomId,
    source: Source,
    state: Mutex<State>,
}

static LINES: RwLock<Vec<Arc<Line>>> = RwLock::new(Vec::new());
/// When a throttled line is to be looked at next, ns; `u64::MAX` = none is.
static NEXT_NS: AtomicU64 = AtomicU64::new(u64::MAX);

/// Makes a line known: `pirq` is its number for the owner, by default its GSI or a number above all GSIs.
///
/// # Errors
/// For people: no IO-APIC has the pin, another domain's device shares it (neither could be kept from the other), no vector is left.
pub fn claim(owner: DomId, source: Source, pirq: Option<u32>) -> Result<u32, String> {
    let mut lines = LINES.write();
    if let Source::Gsi { gsi, .. } = source {
        let same = |l: &&Arc<Line>| matches!(l.source, Source::Gsi { gsi: other, .. } if other == gsi);
        match lines.iter().find(same) {
            Some(line) if line.owner != owner => {
                return Err(format!("its interrupt, GSI {gsi}, is shared with domain {}", line.owner));
            }
            Some(line) => return Ok(line.pirq),
            None => {}
        }
        ioapic::id(gsi)
            .and_then(iommu::ioapic_requester)
            .ok_or_else(|| format!("no IO-APIC behind an IOMMU has GSI {gsi}"))?;
    }
    let count = lines.len();
    let vector = u8::try_from(count).ok().and_then(|n| FIRST_VECTOR.checked_add(n)).filter(|&v| v < IOMMU_VECTOR);
    let vector = vector.ok_or("no interrupt vector is left")?;
    let pirq = pirq.unwrap_or(match source {
        Source::Gsi { gsi, .. } => gsi,
        Source::Message(_) => FIRST_MSI_PIRQ + count as u32,
    });
    lines.push(Arc::new(Line { pirq, vector, owner, source, state: Mutex::default() }));
    Ok(pirq)
}

impl Line {
    fn is_level(&self) -> bool {
        matches!(self.source, Source::Gsi { level: true, .. })
    }
    /// Lets the line through to `cpu`'s local APIC, or blocks it in the IOMMU.
    fn remap(&self, target: Option<u32>) {
        let requester = match self.source {
            Source::Gsi { gsi, .. } => ioapic::id(gsi).and_then(iommu::ioapic_requester),
            Source::Message(bdf) => Some(iommu::requester(bdf)),
        };
        if let Some(id) = requester {
            iommu::set_interrupt(id, self.vector, target);
        }
    }
    fn mask(&self, masked: bool) {
        match self.source {
            Source::Gsi { gsi, .. } => ioapic::mask(gsi, masked),
            Source::Message(_) => self.remap((!masked).then(|| target(self.owner))),
        }
    }
    /// What the owner's end of interrupt comes to, and the end of a throttle.
    fn resume(&self, state: &mut State) {
        if state.bound && !state.in_service && state.throttled_ns == 0 {
            if let Source::Gsi { gsi, level: true, .. } = self.source {
                ioapic::end(gsi);
            }
            self.mask(false);
        }
    }
    fn unbind(&self) {
        let mut state = self.state.lock();
        match self.source {
            Source::Gsi { gsi, .. } => ioapic::mask(gsi, true),
            Source::Message(bdf) => device::message_interrupts(bdf, None),
        }
        self.remap(None);
        *state = State::default();
    }
}

/// APIC ID of the CPU that a domain's first vCPU runs on.
fn target(owner: DomId) -> u32 {
    let cpu = domain::find(owner).and_then(|d| d.vcpu(0).map(|v| v.cpu.load(SeqCst))).and_then(percpu::get);
    cpu.map_or_else(|| percpu::this().apic_id, |cpu| cpu.apic_id)
}

fn find(dom: DomId, pirq: u32) -> Result<Arc<Line>, Errno> {
    let line = LINES.read().iter().find(|l| l.pirq == pirq).cloned().ok_or(Errno::EINVAL)?;
    if line.owner == dom { Ok(line) } else { Err(Errno::EPERM) }
}

/// Whether a domain's PIRQ is level-triggered, so that it wants `PHYSDEVOP_eoi`.
///
/// # Errors
/// EINVAL: no such line; EPERM: another domain's.
pub fn needs_eoi(dom: DomId, pirq: u32) -> Result<bool, Errno> {
    Ok(find(dom, pirq)?.is_level())
}

/// Lets a domain's line through, as an event of its port for `pirq`.
///
/// # Errors
/// EINVAL: no such line; EPERM: another domain's; EBUSY: its owner is stopped.
pub fn bind(dom: DomId, pirq: u32) -> Result<(), Errno> {
    let line = find(dom, pirq)?;
    let stopped = |d: Arc<Domain>| d.paused.load(SeqCst) & pause::STOPPED != 0;
    if domain::find(dom).is_none_or(stopped) {
        return Err(Errno::EBUSY);
    }
    let mut state = line.state.lock();
    *state = State { bound: true, ..State::default() };
    line.remap(Some(target(dom)));
    match line.source {
        Source::Gsi { gsi, level, low } => {
            ioapic::program(gsi, line.vector, level, low);
            if level {
                ioapic::end(gsi);
            }
            ioapic::mask(gsi, false);
        }
        Source::Message(bdf) => device::message_interrupts(bdf, Some(line.vector)),
    }
    Ok(())
}

/// Blocks all lines of a domain: it stopped, or closed its ports.
pub fn unbind_all(dom: DomId) {
    for line in LINES.read().iter().filter(|l| l.owner == dom) {
        line.unbind();
    }
}

/// Blocks one line: its port was closed.
pub fn unbind(dom: DomId, pirq: u32) {
    if let Ok(line) = find(dom, pirq) {
        line.unbind();
    }
}

/// `PHYSDEVOP_eoi`: the owner has served the device.
///
/// # Errors
/// EINVAL: no such line; EPERM: another domain's.
pub fn eoi(dom: DomId, pirq: u32) -> Result<(), Errno> {
    let line = find(dom, pirq)?;
    let mut state = line.state.lock();
    if core::mem::take(&mut state.in_service) {
        line.resume(&mut state);
    }
    Ok(())
}

/// An interrupt of a device or of the IOMMU has arrived. The caller ends it at the local APIC afterwards.
pub fn handle(vector: u8) {
    if vector == IOMMU_VECTOR {
        return iommu::poll();
    }
    let line = vector.checked_sub(FIRST_VECTOR).and_then(|i| LINES.read().get(usize::from(i)).cloned());
    let Some(line) = line else {
        log::warn!("interrupt {vector:#x} belongs to nobody");
        return;
    };
    iommu::poll_silent();
    let verdict = {
        let mut state = line.state.lock();
        if !state.bound {
            return;
        }
        let verdict = state.storm.count(time::now_ns());
        if line.is_level() || verdict != Verdict::Serve {
            line.mask(true);
        }
        state.in_service = line.is_level();
        if let Verdict::Throttle { until_ns } = verdict {
            state.throttled_ns = until_ns;
            NEXT_NS.fetch_min(until_ns, SeqCst);
        }
        verdict
    };
    if verdict == Verdict::Stop {
        if let Some(owner) = domain::find(line.owner) {
            lifecycle::stop(&owner, Cause { cause: cause::IRQ_STORM, info: [u64::from(line.pirq), 0, 0, 0] });
        }
    } else {
        events::pirq(line.owner, line.pirq);
    }
}

/// When [`tick`] has something to do on this CPU, ns of system time; `u64::MAX` = never. One CPU looks after the IOMMU.
pub fn deadline_ns(cpu: u32) -> u64 {
    let throttled = NEXT_NS.load(SeqCst);
    if cpu == 0 { throttled.min(iommu::deadline_ns()) } else { throttled }
}

/// Lets throttled lines through again whose time has come, and looks for faults nobody announces. From the run loop, when
/// [`deadline_ns`] has passed.
pub fn tick(now_ns: u64) {
    if now_ns >= iommu::deadline_ns() {
        iommu::poll_silent();
    }
    if now_ns < NEXT_NS.load(SeqCst) {
        return;
    }
    NEXT_NS.store(u64::MAX, SeqCst);
    for line in LINES.read().iter() {
        let mut state = line.state.lock();
        match state.throttled_ns {
            0 => {}
            until if until <= now_ns => {
                state.throttled_ns = 0;
                line.resume(&mut state);
                drop(state);
                // An edge may have been dropped meanwhile: the owner looks.
                if !line.is_level() {
                    events::pirq(line.owner, line.pirq);
                }
            }
            until => drop(NEXT_NS.fetch_min(until, SeqCst)),
        }
    }
}
