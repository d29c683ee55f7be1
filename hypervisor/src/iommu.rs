//! The IOMMUs of the machine: what each domain's devices reach, which interrupts get through, and who is to blame for a fault.
//!
//! One device table serves all units; it denies every device until [`attach`]. A domain with devices has one page table for all
//! of them ([`map`], [`unmap`]), which holds exactly what `device.rs` and the grant calls put there. One lock guards everything
//! here; it is a leaf but for the frame table's. An IOMMU that stops answering leaves nothing to rely on: the machine stops.

use crate::domain;
use crate::lifecycle::{self, Cause};
use crate::mem::{self, Tables};
use crate::{device, irq, paging, pci, percpu, time};
use abi::DomId;
use abi::xenolith::{self, cause};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use hv_amdvi::entry::{DEVICE_TABLE_BYTES, INTERRUPT_TABLE_BYTES};
use hv_amdvi::unit::{COMMAND_BYTES, LOG_BYTES, deny_all, set_interrupt as set_entry};
use hv_amdvi::{DeviceEntry, Event, Hardware, InterruptEntry, Layout, Timeout, Translation, Unit, event};
use hv_core::acpi::{Ivrs, Platform};
use hv_core::frames::Owner;
use hv_core::pci::{Bdf, Config, capability, command, reg};
use hv_core::{Dfn, Mfn};
use hv_npt::{DeviceTree, Leaf, MapError, Rights};
use spin::Mutex;

/// A unit's registers, and memory by its physical address.
#[derive(Debug)]
struct Machine {
    registers: *mut u8,
}
// SAFETY: the pointer is to registers mapped for ever, used under `IOMMU`'s lock.
unsafe impl Send for Machine {}

/// A word of memory that only the IOMMU and this file use.
fn word(addr: u64) -> &'static AtomicU64 {
    // SAFETY: `hv_amdvi` only passes aligned addresses inside the frames of its `Layout` and interrupt tables, which were
    // allocated for it, hold nothing else, and are never freed.
    unsafe { &*mem::direct(addr).cast::<AtomicU64>() }
}

impl Hardware for Machine {
    fn register(&self, offset: u64) -> u64 {
        // SAFETY: `init` mapped the 16 KiB of registers, and `hv_amdvi` names only existing ones.
        unsafe { self.registers.wrapping_add(offset as usize).cast::<u64>().read_volatile() }
    }
    fn set_register(&self, offset: u64, value: u64) {
        // SAFETY: as above; the tables given to the unit are the IOMMU's for ever.
        unsafe { self.registers.wrapping_add(offset as usize).cast::<u64>().write_volatile(value) };
    }
    fn load(&self, addr: u64) -> u64 {
        word(addr).load(SeqCst)
    }
    fn store(&self, addr: u64, value: u64) {
        word(addr).store(value, SeqCst);
    }
    fn store32(&self, addr: u64, value: u32) {
        // SAFETY: as for `word`, with 32-bit entries.
        unsafe { &*mem::direct(addr).cast::<AtomicU32>() }.store(value, SeqCst);
    }
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }
}

/// What the devices of one domain share.
#[derive(Debug)]
struct Space {
    tree: DeviceTree<Tables>,
    id: u8,
    /// Something cached may be out of date.
    dirty: bool,
    /// Devices attached: requester ID and function.
    devices: Vec<(u16, Bdf)>,
}

struct Iommu {
    units: Vec<Unit<Machine>>,
    ivrs: Ivrs,
    /// Root of a page table that maps nothing.
    empty: Mfn,
    /// A unit caches absent entries, so that even a new mapping must be flushed.
    caches_absent: bool,
    spaces: BTreeMap<DomId, Space>,
    interrupts: BTreeMap<u16, Mfn>,
    /// Units that may not log faults, see [`QEMU`].
    silent: Vec<Bdf>,
    events_dropped: u64,
}

static IOMMU: Mutex<Option<Iommu>> = Mutex::new(None);

/// Requests of unassigned devices.
const NOBODY: u8 = 0;
/// Faults handled per interrupt; the rest at the next.
const BATCH: usize = 64;
/// Subsystem of QEMU's unit. As Debian builds 7.2 and 10.0, it writes no event at all: the compiler drops the call behind an
/// undefined shift. What is left of a fault is Signaled Target Abort in the unit's PCI STATUS: that there was one, not whose
/// and where. All its suspects are stopped then: those whose devices may master the bus. A unit that has once
/// written an event is trusted to write them all.
const QEMU: u32 = 0x1100_1AF4;
const SUBSYSTEM: u16 = 0x2C;
/// Signaled Target Abort, in the word of COMMAND and STATUS; written 1 to clear.
const ABORTED: u32 = 1 << 27;
/// How often silent units are looked at besides at each interrupt of a device, ns.
const SILENT_POLL_NS: u64 = 2 * time::MS;

/// When silent units are to be looked at, ns; `u64::MAX` = never: there is none, or no device is attached.
static NEXT_POLL_NS: AtomicU64 = AtomicU64::new(u64::MAX);

const MISSING: &str = "IOMMU (AMD-Vi) not available: the firmware has no IVRS table with a unit (QEMU: -device amd-iommu,intremap=on)";
const NO_MEMORY: &str = "no memory for the IOMMU's tables";

fn contiguous(bytes: u64) -> Result<Mfn, &'static str> {
    let order = (bytes / 4096).next_power_of_two().trailing_zeros();
    let first = mem::frames().allocate_contiguous(Owner::Hypervisor, order, mem::ANYWHERE);
    let first = first.map_err(|_| NO_MEMORY)?;
    // SAFETY: fresh frames of the hypervisor, which nobody refers to.
    unsafe { mem::zero_bytes(mem::direct(first.addr()), 4096 << order) };
    Ok(first)
}

fn check(result: Result<(), Timeout>) {
    if result.is_err() {
        panic!("the IOMMU no longer carries out commands: no device can be contained");
    }
}

fn dead(base: u64) -> String {
    alloc::format!("the IOMMU at {base:#x} does not carry out commands")
}

/// Switches the IOMMUs on with every device denied. On the boot CPU, before the others run.
///
/// # Errors
/// What is missing, for people.
pub fn init(platform: &Platform) -> Result<(), String> {
    let ivrs = platform.ivrs.clone().filter(|i| !i.iommus.is_empty()).ok_or(MISSING)?;
    let empty = DeviceTree::new(Tables).ok_or(NO_MEMORY)?.root();
    let device_table = contiguous(DEVICE_TABLE_BYTES)?;
    let completions = contiguous(4096)?.addr();
    let mut this = Iommu {
        units: Vec::new(),
        ivrs,
        empty,
        caches_absent: false,
        spaces: BTreeMap::new(),
        interrupts: BTreeMap::new(),
        silent: Vec::new(),
        events_dropped: 0,
    };
    let denied = this.denied(false);
    for (n, unit) in (0u64..).zip(&this.ivrs.iommus) {
        let registers = paging::map_mmio(unit.base, 0x4000).map_err(|_| NO_MEMORY)?;
        let machine = Machine { registers };
        if n == 0 {
            deny_all(&machine, device_table, &denied);
        }
        let (commands, log) = (contiguous(COMMAND_BYTES)?, contiguous(LOG_BYTES)?);
        let layout = Layout { device_table, commands, log, completion: completions + n % 512 * 8 };
        this.units.push(Unit::enable(machine, layout).map_err(|Timeout| dead(unit.base))?);
        let bdf = Bdf(unit.bdf);
        // NpCache, bit 26 of the capability header.
        this.caches_absent |= pci::Space.read(bdf, unit.capability & 0xFC) & 1 << 26 != 0;
        announce_events(bdf);
        if pci::Space.read(bdf, SUBSYSTEM) == QEMU {
            this.silent.push(bdf);
        }
        log::info!("AMD-Vi unit {bdf} at {:#x}: every device denied", unit.base);
    }
    let ioapics: Vec<u16> = this.ivrs.iommus.iter().flat_map(|i| &i.ioapics).map(|&(_, id)| id).collect();
    for id in ioapics {
        let table = this.interrupt_table(id).ok_or(NO_MEMORY)?;
        let entry = DeviceEntry { interrupts: Some(table), ..denied };
        check(this.set(id, &entry, NOBODY));
    }
    *IOMMU.lock() = Some(this);
    Ok(())
}

/// The unit's own MSI, which nothing remaps.
fn announce_events(bdf: Bdf) {
    device::program_msi(bdf, 0xFEE0_0000 | percpu::this().apic_id << 12, u16::from(irq::IOMMU_VECTOR));
    // An interrupt is a write of its own.
    device::set_command(bdf, command::BUS_MASTER, 0);
    if capability(&pci::Space, bdf, hv_core::pci::cap::MSI).is_none() {
        log::warn!("AMD-Vi unit {bdf} has no MSI: faults are found by polling only");
    }
}

impl Iommu {
    const fn denied(&self, quiet: bool) -> DeviceEntry {
        let translation = Translation { root: self.empty, domain_id: NOBODY, allowed: false };
        DeviceEntry { translation, interrupts: None, quiet }
    }
    fn set(&mut self, id: u16, entry: &DeviceEntry, old_domain: u8) -> Result<(), Timeout> {
        self.units.iter_mut().try_for_each(|u| u.set_device(id, entry, old_domain))
    }
    /// A requester's interrupt remapping table, made when it is first asked for and then kept.
    fn interrupt_table(&mut self, id: u16) -> Option<Mfn> {
        if let Some(&table) = self.interrupts.get(&id) {
            return Some(table);
        }
        let table = contiguous(INTERRUPT_TABLE_BYTES).ok()?;
        self.interrupts.insert(id, table);
        Some(table)
    }
    fn space(&mut self, dom: DomId) -> Option<&mut Space> {
        if !self.spaces.contains_key(&dom) {
            let id = (1..=u8::MAX).find(|&id| self.spaces.values().all(|s| s.id != id))?;
            let tree = DeviceTree::new(Tables)?;
            self.spaces.insert(dom, Space { tree, id, dirty: false, devices: Vec::new() });
        }
        self.spaces.get_mut(&dom)
    }
    fn owner(&self, requester: u16) -> Option<DomId> {
        let has = |s: &Space| s.devices.iter().any(|&(id, _)| id == requester);
        self.spaces.iter().find(|(_, s)| has(s)).map(|(&dom, _)| dom)
    }
    /// Whether a silent unit has seen a fault since the last call.
    fn take_abort(&self) -> bool {
        let mut seen = false;
        for &unit in &self.silent {
            let word = pci::Space.read(unit, reg::COMMAND);
            if word & ABORTED != 0 {
                pci::Space.write(unit, reg::COMMAND, word & 0xFFFF | ABORTED);
                seen = true;
            }
        }
        seen
    }
    /// A device of each domain whose devices may have caused a fault that nobody logged.
    fn suspects(&self) -> impl Iterator<Item = (DomId, Event)> {
        let masters = |&&(_, bdf): &&(u16, Bdf)| pci::Space.read(bdf, reg::COMMAND) & command::BUS_MASTER != 0;
        let fault = |id| Event { code: event::PAGE_FAULT, device: id, address: cause::UNKNOWN_ADDRESS, flags: 0 };
        self.spaces.iter().filter_map(move |(&dom, s)| s.devices.iter().find(masters).map(|&(id, _)| (dom, fault(id))))
    }
}

fn with<R>(f: impl FnOnce(&mut Iommu) -> R) -> Option<R> {
    IOMMU.lock().as_mut().map(f)
}

/// The ID a function's requests carry.
pub fn requester(bdf: Bdf) -> u16 {
    with(|i| i.ivrs.requester(bdf.0)).unwrap_or(bdf.0)
}
/// The ID of an IO-APIC's interrupts.
pub fn ioapic_requester(id: u8) -> Option<u16> {
    with(|i| i.ivrs.ioapic(id)).flatten()
}

/// Points vector `vector` of a requester's remapping table at the local APIC `target`, or blocks it.
pub fn set_interrupt(requester: u16, vector: u8, target: Option<u32>) {
    with(|i| {
        let Some(&table) = i.interrupts.get(&requester) else { return };
        let entry = target.map(|apic| InterruptEntry { destination: apic as u8, vector });
        for unit in &mut i.units {
            set_entry(unit.hardware(), table, u16::from(vector), entry);
            check(unit.forget_device(requester));
        }
    });
}

/// Gives a domain's device what the domain's table maps. `None`: no memory, or more domains with devices than tags.
pub fn attach(dom: DomId, bdf: Bdf) -> Option<()> {
    with(|i| {
        let id = i.ivrs.requester(bdf.0);
        let interrupts = i.interrupt_table(id)?;
        let space = i.space(dom)?;
        if !space.devices.contains(&(id, bdf)) {
            space.devices.push((id, bdf));
        }
        let translation = Translation { root: space.tree.root(), domain_id: space.id, allowed: true };
        check(i.set(id, &DeviceEntry { translation, interrupts: Some(interrupts), quiet: false }, NOBODY));
        if !i.silent.is_empty() {
            i.take_abort();
            NEXT_POLL_NS.store(time::now_ns() + SILENT_POLL_NS, SeqCst);
        }
        Some(())
    })?
}

/// Denies a device memory and interrupts. After this returns it reaches nothing.
pub fn block(bdf: Bdf) {
    with(|i| {
        let id = i.ivrs.requester(bdf.0);
        let old = i.owner(id).and_then(|dom| i.spaces.get(&dom)).map_or(NOBODY, |s| s.id);
        let denied = i.denied(true);
        check(i.set(id, &denied, old));
        // What it did until now is dealt with; the next instance is not to answer for it.
        i.take_abort();
    });
}

/// Forgets what a domain's devices were given. One that is not blocked yet, as another CPU is about to or it was opened by half, is denied.
pub fn clear(dom: DomId) {
    with(|i| {
        if let Some(space) = i.spaces.remove(&dom) {
            let denied = i.denied(true);
            space.devices.iter().for_each(|&(id, _)| check(i.set(id, &denied, space.id)));
            i.units.iter_mut().for_each(|u| check(u.forget_pages(space.id)));
            space.tree.destroy();
        }
    });
}

/// Lets a domain's devices reach `pages` frames from `to`, at `at`. Nothing happens for a domain without a device.
/// [`flush`] before the domain is told.
///
/// # Errors
/// As `hv_npt::Tree::map`.
pub fn map(dom: DomId, at: Dfn, to: Mfn, pages: u64, rights: Rights) -> Result<(), MapError> {
    with(|i| {
        let Some(space) = i.spaces.get_mut(&dom) else { return Ok(()) };
        let flush = space.tree.map(at, to, pages, rights)?;
        space.dirty |= flush.replaced || i.caches_absent;
        Ok(())
    })
    .unwrap_or(Ok(()))
}

/// Takes `pages` frames at `at` away from a domain's devices. [`flush`] before the frames go to anyone else.
///
/// # Errors
/// As `hv_npt::Tree::unmap`.
pub fn unmap(dom: DomId, at: Dfn, pages: u64) -> Result<(), MapError> {
    with(|i| {
        let Some(space) = i.spaces.get_mut(&dom) else { return Ok(()) };
        space.dirty |= space.tree.unmap(at, pages)?.replaced;
        Ok(())
    })
    .unwrap_or(Ok(()))
}

/// After this a domain's devices use nothing that was changed before. Cheap where nothing was.
pub fn flush(dom: DomId) {
    with(|i| {
        let Some(space) = i.spaces.get_mut(&dom).filter(|s| s.dirty) else { return };
        i.units.iter_mut().for_each(|u| check(u.forget_pages(space.id)));
        space.tree.reclaim();
        space.dirty = false;
    });
}

/// Calls `f` with each place a domain's devices reach.
pub fn each_leaf(dom: DomId, f: &mut impl FnMut(u64, Leaf)) {
    with(|i| i.spaces.get(&dom).map(|s| s.tree.each_leaf(f)));
}

/// Frames of tables held for a domain's devices.
pub fn tables(dom: DomId) -> u64 {
    with(|i| i.spaces.get(&dom).map_or(0, |s| s.tree.tables())).unwrap_or(0)
}

/// Reads the event logs and stops the domains whose devices are in them. On the IOMMU's interrupt, and wherever a fault may have
/// gone unannounced.
pub fn poll() {
    let mut blame: heapless::Vec<(DomId, Event), BATCH> = heapless::Vec::new();
    with(|i| {
        for n in 0..i.units.len() {
            for _ in 0..BATCH {
                let Some(event) = i.units.get_mut(n).and_then(Unit::next_event) else { break };
                i.silent.clear();
                NEXT_POLL_NS.store(u64::MAX, SeqCst);
                match i.owner(event.device) {
                    Some(dom) if event.is_devices() => {
                        if blame.iter().all(|(known, _)| *known != dom) {
                            let _ = blame.push((dom, event));
                        }
                    }
                    _ => i.unattributed(event),
                }
            }
            if i.units.get_mut(n).is_some_and(Unit::overflowed) {
                log::warn!("the IOMMU's event log overflowed");
            }
        }
        if i.take_abort() && blame.is_empty() {
            blame.extend(i.suspects().take(BATCH));
        }
    });
    for (dom, event) in blame {
        if let Some(domain) = domain::find(dom) {
            let info = [u64::from(event.device), event.address, u64::from(event.flags), 0];
            lifecycle::stop(&domain, Cause { cause: cause::IOMMU_FAULT, info });
        }
    }
}

/// As [`poll`], where faults are not announced by an interrupt; free elsewhere.
pub fn poll_silent() {
    if deadline_ns() != u64::MAX {
        NEXT_POLL_NS.store(time::now_ns() + SILENT_POLL_NS, SeqCst);
        poll();
    }
}
/// When [`poll_silent`] is due, ns of system time; `u64::MAX` = never.
pub fn deadline_ns() -> u64 {
    NEXT_POLL_NS.load(SeqCst)
}

/// What to tell people of a fault, from the `info` of its cause.
pub fn explain(info: &[u64; 4]) -> heapless::String<{ xenolith::TEXT_LEN }> {
    let [device, address, flags, _] = *info;
    let (mut text, bdf) = (heapless::String::new(), Bdf(device as u16));
    // It fits: the longest has 80 bytes.
    let _ = if address == cause::UNKNOWN_ADDRESS {
        write!(text, "PCI {bdf} reached outside of its memory (this IOMMU tells no address)")
    } else {
        write!(text, "PCI {bdf} reached outside of its memory, at {address:#x} (flags {flags:#x})")
    };
    text
}

impl Iommu {
    /// An event of a device that nobody owns, or of our own doing: said, but not without end.
    fn unattributed(&mut self, event: Event) {
        self.events_dropped += 1;
        if self.events_dropped.is_power_of_two() {
            let (bdf, nth) = (Bdf(event.device), self.events_dropped);
            log::warn!("IOMMU: event {} of {bdf} at {:#x}, nobody's ({nth} so far)", event.code, event.address);
        }
    }
}
