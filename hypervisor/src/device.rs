//! Assigned PCI functions: found and claimed at boot, opened to their owner before it is entered, closed when it stops.
//!
//! The order of closing is bus mastering off, IOMMU entry denied, interrupts masked, reset begun; the wait for
//! the reset is left to the opening. A function that has no reset of its own stays denied until its next owner's driver has
//! nothing mapped but what it mapped itself, and bus mastering stays off until that driver asks for it, after its own reset.
//! Authority over configuration space ends here: owners read their function, and write two bits of it (`hv_core::pci`).

use crate::domain::Domain;
use crate::irq::{self, Source};
use crate::{acpi, iommu, mem, pci, time};
use abi::bundle::special;
use abi::xenolith::{self, DeviceInfo, PciAccess};
use abi::{DomId, Errno, bundle};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use hv_core::frames::Owner;
use hv_core::pci as core_pci;
use hv_core::pci::{Bar, Bdf, Config, Reset, cap, capability, command, reg};
use hv_core::{Dfn, Gfn, Mfn};
use hv_npt::{Leaf, MapError, Rights};
use spin::RwLock;

/// An assigned function.
#[derive(Debug)]
pub struct Device {
    bdf: Bdf,
    owner: DomId,
    id: u32,
    class: u32,
    bars: [Option<Bar>; 6],
    pirq: u32,
    reset: Reset,
    /// Opened to its owner: DMA may be switched on.
    attached: AtomicBool,
    /// Not to be touched before this time, ns: a reset is under way.
    ready_ns: AtomicU64,
}

static DEVICES: RwLock<Vec<Arc<Device>>> = RwLock::new(Vec::new());

/// After a function level reset (PCI Express 4.0, 6.6.2).
const FLR_NS: u64 = 100 * time::MS;
/// Between D3hot and D0 and after it (PCI Power Management 1.2, 5.6.1).
const D3_NS: u64 = 10 * time::MS;
const PAGE: u64 = abi::PAGE_SIZE as u64;

/// Finds, checks and quietens what the bundle gives to a domain. Once per domain at boot, on the boot CPU.
///
/// # Errors
/// What is wrong with which device, for people; the domain must not be started then.
pub fn claim(owner: DomId, devices: &[bundle::Device], ports: &[bundle::Ports]) -> Result<(), String> {
    for port in ports.iter().filter(|p| p.irq != 0) {
        let o = u8::try_from(port.irq).ok().zip(acpi::platform()).map(|(irq, p)| p.isa_irq(irq));
        let o = o.ok_or_else(|| format!("there is no ISA interrupt {}", port.irq))?;
        let source = Source::Gsi { gsi: o.gsi, level: o.level, low: o.low };
        irq::claim(owner, source, Some(port.irq)).map_err(|e| format!("ISA interrupt {}: {e}", port.irq))?;
    }
    for record in devices {
        let device = find_device(owner, record)?;
        log::info!(
            "PCI {}: {:04x}:{:04x} for domain {owner}, PIRQ {}, {:?}",
            device.bdf,
            device.id & 0xFFFF,
            device.id >> 16,
            device.pirq,
            device.reset
        );
        DEVICES.write().push(Arc::new(device));
    }
    Ok(())
}

fn find_device(owner: DomId, record: &bundle::Device) -> Result<Device, String> {
    let (space, bdf) = (&pci::Space, Bdf(record.bdf));
    if !core_pci::present(space, bdf) {
        return Err(format!("there is no PCI device {bdf}"));
    }
    let id = space.read(bdf, reg::ID);
    if record.id != 0 && record.id != id {
        let name = |id: u32| format!("{:04x}:{:04x}", id & 0xFFFF, id >> 16);
        return Err(format!("PCI device {bdf} is {}, not {}", name(id), name(record.id)));
    }
    let class = space.read(bdf, reg::CLASS);
    let iommu = acpi::platform().and_then(|p| p.ivrs.as_ref()).is_some_and(|i| i.iommus.iter().any(|u| u.bdf == bdf.0));
    if iommu || class >> 24 == 6 || space.read(bdf, reg::HEADER) >> 16 & 0x7F != 0 {
        return Err(format!("PCI device {bdf} is a bridge or an IOMMU and cannot be assigned"));
    }
    if core_pci::passes_iommu(space, bdf) {
        return Err(format!("PCI device {bdf} passes the IOMMU by: give it disable-legacy=on,iommu_platform=on"));
    }
    // Behind a bridge to conventional PCI functions share an ID: the IOMMU could not tell their owners apart.
    let shares = |d: &Arc<Device>| d.owner != owner && iommu::requester(d.bdf) == iommu::requester(bdf);
    if let Some(other) = DEVICES.read().iter().find(|d| shares(d)) {
        return Err(format!("PCI device {bdf} and {} of domain {} are one to the IOMMU", other.bdf, other.owner));
    }
    set_command(bdf, 0, command::BUS_MASTER);
    let bars = core_pci::size_bars(space, bdf);
    for (number, bar) in bars.iter().enumerate() {
        if let Some(Bar::Memory { addr, len, .. }) = *bar
            && (!addr.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE))
        {
            return Err(format!("BAR {number} of PCI device {bdf} has {len} bytes: it shares its page with others"));
        }
    }
    let message = [cap::MSI, cap::MSIX].into_iter().any(|id| capability(space, bdf, id).is_some());
    let source = match record.gsi {
        _ if message => Source::Message(bdf),
        0 => return Err(format!("PCI device {bdf} has no MSI, and the manifest does not say where its INTx arrives")),
        gsi => Source::Gsi { gsi: gsi.into(), level: true, low: true },
    };
    let pirq = irq::claim(owner, source, None).map_err(|e| format!("PCI device {bdf}: {e}"))?;
    Ok(Device {
        bdf,
        owner,
        id,
        class,
        bars,
        pirq,
        reset: core_pci::reset_method(space, bdf),
        attached: AtomicBool::new(false),
        ready_ns: AtomicU64::new(0),
    })
}

/// Sets and clears bits of a function's COMMAND.
pub fn set_command(bdf: Bdf, on: u32, off: u32) {
    let old = pci::Space.read(bdf, reg::COMMAND) & 0xFFFF;
    pci::Space.write(bdf, reg::COMMAND, old & !off | on);
}

fn of(dom: DomId) -> Vec<Arc<Device>> {
    DEVICES.read().iter().filter(|d| d.owner == dom).cloned().collect()
}

fn owned(dom: DomId, bdf: u32) -> Result<Arc<Device>, Errno> {
    let found = DEVICES.read().iter().find(|d| u32::from(d.bdf.0) == bdf).cloned().ok_or(Errno::ENODEV)?;
    if found.owner == dom { Ok(found) } else { Err(Errno::EPERM) }
}

impl Device {
    /// Waits for a reset that was begun when the device was closed, and restores what it cleared.
    fn restore(&self) {
        let now = time::now_ns();
        time::spin_ns(self.ready_ns.load(SeqCst).saturating_sub(now).min(FLR_NS));
        let space = &pci::Space;
        if let Reset::Power { offset } = self.reset {
            let state = space.read(self.bdf, offset);
            if state & 3 != 0 {
                space.write(self.bdf, offset, state & !0x8003);
                time::spin_ns(D3_NS);
            }
        }
        let mut decode = 0;
        for (number, bar) in (0u16..).zip(&self.bars) {
            let at = reg::BAR0 + number * 4;
            match *bar {
                Some(Bar::Memory { addr, wide, .. }) => {
                    decode |= command::MEMORY;
                    space.write(self.bdf, at, addr as u32);
                    if wide {
                        space.write(self.bdf, at + 4, (addr >> 32) as u32);
                    }
                }
                Some(Bar::Io { port, .. }) => {
                    decode |= command::IO;
                    space.write(self.bdf, at, u32::from(port));
                }
                None => {}
            }
        }
        set_command(self.bdf, decode, command::BUS_MASTER | command::INTX_DISABLE);
    }

    fn begin_reset(&self) {
        let space = &pci::Space;
        let wait = match self.reset {
            Reset::Function { offset, bit } => {
                space.write(self.bdf, offset, space.read(self.bdf, offset) & 0xFFFF | bit);
                FLR_NS
            }
            Reset::Power { offset } => {
                space.write(self.bdf, offset, space.read(self.bdf, offset) & 0x7FFC | 3);
                D3_NS
            }
            Reset::Driver => 0,
        };
        self.ready_ns.store(time::now_ns().saturating_add(wait), SeqCst);
    }

    fn memory_bars(&self) -> impl Iterator<Item = (u64, u64)> {
        self.bars.iter().filter_map(|bar| match *bar {
            Some(Bar::Memory { addr, len, .. }) if addr != 0 => Some((addr / PAGE, len / PAGE)),
            _ => None,
        })
    }
}

/// Closes a domain's devices: when this returns they neither read nor write memory nor interrupt. To be called with the domain's
/// vCPUs stopped or about to be; calling it again does no harm.
pub fn contain(dom: DomId) {
    let open: Vec<_> = of(dom).into_iter().filter(|d| d.attached.swap(false, SeqCst)).collect();
    for device in &open {
        set_command(device.bdf, 0, command::BUS_MASTER);
        iommu::block(device.bdf);
    }
    irq::unbind_all(dom);
    open.iter().for_each(|d| d.begin_reset());
    iommu::clear(dom);
}

/// Opens a domain's devices to it: the page table holds its RAM without the special pages, and nothing else. Before each entry of
/// an instance, with its memory in place. Bus mastering stays off until the driver asks for it.
///
/// # Errors
/// [`MapError::NoMemory`].
pub fn attach(domain: &Domain) -> Result<(), MapError> {
    for device in of(domain.id) {
        device.restore();
        iommu::attach(domain.id, device.bdf).ok_or(MapError::NoMemory)?;
        map_bars(domain, &device)?;
        map_ram(domain)?;
        iommu::flush(domain.id);
        device.attached.store(true, SeqCst);
    }
    audit(domain);
    Ok(())
}

/// Checks the table of `docs/isolation.md` as it must be before an instance is entered: the CPU reaches the domain's RAM and BARs,
/// its devices that RAM, and neither anything else.
///
/// # Panics
/// If not: then this hypervisor is broken, and it stops before anyone else's memory is.
fn audit(domain: &Domain) {
    let end = domain.special_gfn(special::CONSOLE).0;
    let bars: Vec<_> = of(domain.id).iter().flat_map(|d| d.memory_bars().collect::<Vec<_>>()).collect();
    let check = |who: &str, at: u64, leaf: Leaf, limit: u64| {
        let mmio = leaf.rights.contains(Rights::UNCACHED);
        let bar = bars.iter().any(|&(first, n)| at >= first && at + leaf.run <= first + n && leaf.mfn.0 == at);
        let ram = at + leaf.run <= limit && owned_run(domain.id, leaf.mfn, leaf.run) == leaf.run;
        assert!(if mmio { bar } else { ram }, "{who} of {} reaches {} at {at:#x}: not its own", domain.name, leaf.mfn);
    };
    domain.p2m.lock().each_leaf(&mut |at, leaf| check("the CPU", at, leaf, domain.mem_frames()));
    iommu::each_leaf(domain.id, &mut |at, leaf| check("a device", at, leaf, end));
}

/// The owner's RAM at its own guest-physical addresses.
fn map_ram(domain: &Domain) -> Result<(), MapError> {
    let end = domain.special_gfn(special::CONSOLE).0;
    let mut at = 0;
    while at < end {
        let leaf = domain.p2m.lock().translate(Gfn(at));
        let Some(leaf) = leaf else {
            at += 1;
            continue;
        };
        let pages = owned_run(domain.id, leaf.mfn, leaf.run.min(end - at));
        if pages > 0 {
            iommu::map(domain.id, Dfn(at), leaf.mfn, pages, Rights::RW)?;
        }
        at += pages.max(1);
    }
    Ok(())
}

/// How many of `pages` frames from `first` on are the domain's own.
fn owned_run(dom: DomId, first: Mfn, pages: u64) -> u64 {
    let frames = mem::frames();
    let own = |n: &u64| frames.owner(Mfn(first.0 + n)) == Some(Owner::Domain(dom));
    (0..pages).take_while(own).count() as u64
}

fn map_bars(domain: &Domain, device: &Device) -> Result<(), MapError> {
    for (first, pages) in device.memory_bars() {
        let _ = domain.p2m.lock().map(Gfn(first), Mfn(first), pages, Rights::MMIO)?;
    }
    Ok(())
}

/// I/O BARs of a domain's devices: first port and count.
pub fn io_ports(dom: DomId) -> Vec<(u16, u16)> {
    let bars = of(dom).into_iter().flat_map(|d| d.bars);
    bars.filter_map(|bar| if let Some(Bar::Io { port, len }) = bar { Some((port, len)) } else { None }).collect()
}

/// `DEVICE_INFO`.
///
/// # Errors
/// ENODEV past the caller's last device.
pub fn info(dom: DomId, index: u32) -> Result<DeviceInfo, Errno> {
    let devices = of(dom);
    let device = devices.get(index as usize).ok_or(Errno::ENODEV)?;
    let bars = device.bars.map(|bar| match bar {
        Some(Bar::Memory { addr, len, .. }) => xenolith::Bar { addr, len, kind: 1, pad: 0 },
        Some(Bar::Io { port, len }) => xenolith::Bar { addr: u64::from(port), len: u64::from(len), kind: 2, pad: 0 },
        None => xenolith::Bar::default(),
    });
    Ok(DeviceInfo {
        index,
        bdf: u32::from(device.bdf.0),
        id: device.id,
        pirq: device.pirq,
        class: device.class,
        needs_eoi: u32::from(irq::needs_eoi(dom, device.pirq)?),
        bars,
    })
}

/// `PCI_READ`.
///
/// # Errors
/// ENODEV, EPERM: not a function of the caller's; EINVAL: misaligned.
pub fn config_read(dom: DomId, access: &PciAccess) -> Result<u32, Errno> {
    let device = owned(dom, access.bdf)?;
    core_pci::check_access(access.offset, access.width)?;
    let word = pci::Space.read(device.bdf, access.offset & !3);
    Ok(core_pci::part(word, access.offset, access.width))
}

/// `PCI_WRITE`.
///
/// # Errors
/// As [`config_read`], and EPERM for everything that `hv_core::pci::owner_write` refuses.
pub fn config_write(dom: DomId, access: &PciAccess) -> Result<(), Errno> {
    let device = owned(dom, access.bdf)?;
    let current = pci::Space.read(device.bdf, reg::COMMAND);
    let attached = device.attached.load(SeqCst);
    let new = core_pci::owner_write(current, access.offset, access.width, access.value, attached)?;
    pci::Space.write(device.bdf, reg::COMMAND, new);
    if !device.attached.load(SeqCst) {
        // Closed meanwhile by another CPU, which must have the last word.
        set_command(device.bdf, 0, command::BUS_MASTER);
    }
    Ok(())
}

/// Programs a function's MSI and switches it on; nothing where it has none.
pub fn program_msi(bdf: Bdf, addr: u32, data: u16) {
    let space = &pci::Space;
    let Some(at) = capability(space, bdf, cap::MSI) else { return };
    let control = space.read(bdf, at);
    let data_at = if control & 1 << 23 != 0 { at + 12 } else { at + 8 };
    space.write(bdf, at + 4, addr);
    if data_at == at + 12 {
        space.write(bdf, at + 8, 0);
    }
    space.write(bdf, data_at, u32::from(data));
    if control & 1 << 24 != 0 {
        space.write(bdf, data_at + 4, 0); // per-vector masks
    }
    // One vector, enabled.
    space.write(bdf, at, control & !(7 << 20) | 1 << 16);
}

/// Switches a function's message-signalled interrupts on, as index `vector` of its remapping table, or off.
pub fn message_interrupts(bdf: Bdf, vector: Option<u8>) {
    let space = &pci::Space;
    if let Some(at) = capability(space, bdf, cap::MSI) {
        match vector {
            Some(vector) => program_msi(bdf, 0xFEE0_0000, u16::from(vector)),
            None => space.write(bdf, at, space.read(bdf, at) & !(1 << 16)),
        }
    } else if let Some(at) = capability(space, bdf, cap::MSIX) {
        let control = space.read(bdf, at);
        if let (Some(vector), Some(table)) = (vector, msix_table(bdf, at)) {
            for (n, word) in [0xFEE0_0000, 0, u32::from(vector), 0].into_iter().enumerate() {
                // SAFETY: the first entry of the function's MSI-X table, below 4 GiB in the direct map.
                unsafe { table.wrapping_add(n).write_volatile(word) };
            }
        }
        let on = if vector.is_some() { 1 << 31 } else { 0 };
        space.write(bdf, at, control & !(3 << 30) | on);
    }
}

fn msix_table(bdf: Bdf, at: u16) -> Option<*mut u32> {
    let word = pci::Space.read(bdf, at + 4);
    let device = DEVICES.read().iter().find(|d| d.bdf == bdf).cloned()?;
    let Some(Bar::Memory { addr, len, .. }) = device.bars.get((word & 7) as usize).copied().flatten() else {
        return None;
    };
    let offset = u64::from(word & !7);
    (offset + 16 <= len && addr + offset + 16 <= 1 << 32).then(|| mem::direct(addr + offset).cast())
}
