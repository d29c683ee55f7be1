//! PCI functions as far as the hypervisor must know them: finding them, their BARs, capabilities and resets, and
//! which writes an owner may make.
//!
//! All over a [`Config`] trait, so that it runs on a fake configuration space; `hypervisor/src/pci.rs` gives the real one.
//! Every access is an aligned 32-bit word: registers with write-1-to-clear neighbours (STATUS, device status) are written with
//! zeroes there. Source: PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification 4.0, chapter 7.

#[cfg(test)]
mod tests;

use abi::Errno;

/// A function's address: bus << 8 | device << 3 | function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf(pub u16);

impl Bdf {
    /// Bus.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }
    /// Device.
    pub const fn device(self) -> u8 {
        (self.0 >> 3 & 31) as u8
    }
    /// Function.
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }
}
impl core::fmt::Display for Bdf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

/// Configuration space. `offset` is a multiple of 4 below 256; what is not there reads as all ones.
pub trait Config {
    /// Reads a word.
    fn read(&self, bdf: Bdf, offset: u16) -> u32;
    /// Writes a word.
    fn write(&self, bdf: Bdf, offset: u16, value: u32);
}

/// Header registers.
pub mod reg {
    /// Device << 16 | vendor.
    pub const ID: u16 = 0x00;
    /// STATUS << 16 | COMMAND.
    pub const COMMAND: u16 = 0x04;
    /// Class << 8 | revision.
    pub const CLASS: u16 = 0x08;
    /// Header type in bits 23:16.
    pub const HEADER: u16 = 0x0C;
    /// First BAR.
    pub const BAR0: u16 = 0x10;
    /// Offset of the first capability.
    pub const CAPABILITIES: u16 = 0x34;
}
/// Bits of COMMAND.
pub mod command {
    /// Answers to I/O ports.
    pub const IO: u32 = 1 << 0;
    /// Answers to memory.
    pub const MEMORY: u32 = 1 << 1;
    /// May read and write memory itself.
    pub const BUS_MASTER: u32 = 1 << 2;
    /// Keeps its INTx pin quiet.
    pub const INTX_DISABLE: u32 = 1 << 10;
}
/// Capability IDs.
pub mod cap {
    /// Power management.
    pub const PM: u8 = 0x01;
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Memory.
    Memory {
        /// Bus address, as firmware placed it.
        addr: u64,
        /// Bytes.
        len: u64,
        /// Takes two registers.
        wide: bool,
    },
    /// I/O ports.
    Io {
        /// First port.
        port: u16,
        /// Ports.
        len: u16,
    },
}

/// How a function can be brought back to its power-on state without touching its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Function level reset: this bit of the word at this offset.
    Function {
        /// Offset of the word.
        offset: u16,
        /// The bit to set.
        bit: u32,
    },
    /// A trip to D3hot and back, which resets functions without `No_Soft_Reset`; offset of PMCSR.
    Power {
        /// Offset of PMCSR.
        offset: u16,
    },
    /// Only the driver can, with the IOMMU holding the device until it has.
    Driver,
}

/// Whether a function is there.
pub fn present(config: &impl Config, bdf: Bdf) -> bool {
    config.read(bdf, reg::ID) & 0xFFFF != 0xFFFF
}

/// Offsets of all capabilities with their first words: type-specific << 16 | next << 8 | ID.
fn capabilities(config: &impl Config, bdf: Bdf) -> impl Iterator<Item = (u16, u32)> {
    const LIST: u32 = 1 << 20;
    let listed = config.read(bdf, reg::COMMAND) & LIST != 0;
    let mut next = if listed { config.read(bdf, reg::CAPABILITIES) as u16 & 0xFC } else { 0 };
    let list = core::iter::from_fn(move || {
        let head = (next >= 0x40).then(|| config.read(bdf, next))?;
        Some((core::mem::replace(&mut next, (head >> 8) as u16 & 0xFC), head))
    });
    // 48 capabilities fit; a list that is longer goes in circles.
    list.take(48)
}

/// Offset of a capability.
pub fn capability(config: &impl Config, bdf: Bdf, id: u8) -> Option<u16> {
    capabilities(config, bdf).find(|&(_, head)| head as u8 == id).map(|(at, _)| at)
}

/// Whether a function is a virtio device that does not offer `VIRTIO_F_ACCESS_PLATFORM`: it takes addresses for physical ones, and an
/// emulator lets it pass the IOMMU by. One whose features cannot be read counts as such. They are read through the window that a
/// virtio device has in configuration space, so nothing has to be mapped (Virtual I/O Device 1.2, 4.1.4).
pub fn passes_iommu(config: &impl Config, bdf: Bdf) -> bool {
    const VENDOR: u32 = 0x1AF4;
    const DEVICES: core::ops::Range<u32> = 0x1000..0x1080;
    /// `cfg_type` of the common configuration, and of the window.
    const COMMON: u32 = 1;
    const WINDOW: u32 = 5;
    /// Bit 33, in the second word.
    const ACCESS_PLATFORM: u32 = 1 << 1;
    let id = config.read(bdf, reg::ID);
    if id & 0xFFFF != VENDOR || !DEVICES.contains(&(id >> 16)) {
        return false;
    }
    let find = |kind| capabilities(config, bdf).find(|&(_, head)| head as u8 == cap::VENDOR && head >> 24 == kind);
    let (Some((common, _)), Some((window, _))) = (find(COMMON), find(WINDOW)) else { return true };
    // BAR, offset and length at 4, 8 and 12 of both; the window's data at 16.
    let word = |at: u16, n: u16| at.saturating_add(n) & 0xFC;
    let open = |register| {
        config.write(bdf, word(window, 4), config.read(bdf, word(common, 4)));
        config.write(bdf, word(window, 8), config.read(bdf, word(common, 8)).saturating_add(register));
        config.write(bdf, word(window, 12), 4);
    };
    open(0); // device_feature_select
    config.write(bdf, word(window, 16), 1);
    open(4); // device_feature
    config.read(bdf, word(window, 16)) & ACCESS_PLATFORM == 0
}

/// Sizes the BARs of a function whose decoding this switches off meanwhile. By number; the second half of a 64-bit BAR is
/// `None`.
pub fn size_bars(config: &impl Config, bdf: Bdf) -> [Option<Bar>; 6] {
    let command = config.read(bdf, reg::COMMAND) & 0xFFFF;
    config.write(bdf, reg::COMMAND, command & !(command::IO | command::MEMORY | command::BUS_MASTER));
    let mut bars = [None; 6];
    let mut skip = false;
    for (number, slot) in (0u16..).zip(&mut bars) {
        if core::mem::take(&mut skip) {
            continue;
        }
        *slot = size_bar(config, bdf, reg::BAR0.saturating_add(number.saturating_mul(4)), number == 5);
        skip = matches!(slot, Some(Bar::Memory { wide: true, .. }));
    }
    config.write(bdf, reg::COMMAND, command);
    bars
}

fn size_bar(config: &impl Config, bdf: Bdf, at: u16, last: bool) -> Option<Bar> {
    let probe = |at: u16| {
        let old = config.read(bdf, at);
        config.write(bdf, at, u32::MAX);
        let mask = config.read(bdf, at);
        config.write(bdf, at, old);
        (old, mask)
    };
    let (low, mask) = probe(at);
    if mask == 0 || mask == u32::MAX && low == u32::MAX {
        return None;
    }
    if low & 1 != 0 {
        let mask = mask as u16 & 0xFFFC;
        return (mask != 0).then(|| Bar::Io { port: low as u16 & 0xFFFC, len: (!mask).wrapping_add(1) });
    }
    let wide = low & 6 == 4 && !last;
    let (high, high_mask) = if wide { probe(at.saturating_add(4)) } else { (0, u32::MAX) };
    if mask & !0xF == 0 && !(wide && high_mask != 0) {
        return None;
    }
    let mask = u64::from(high_mask) << 32 | u64::from(mask & !0xF);
    let addr = u64::from(high) << 32 | u64::from(low & !0xF);
    Some(Bar::Memory { addr, len: (!mask).wrapping_add(1), wide })
}

/// How a function can be reset.
pub fn reset_method(config: &impl Config, bdf: Bdf) -> Reset {
    if let Some(express) = capability(config, bdf, cap::EXPRESS)
        && config.read(bdf, express.saturating_add(4)) & 1 << 28 != 0
    {
        // Device control, bit 15.
        return Reset::Function { offset: express.saturating_add(8), bit: 1 << 15 };
    }
    if let Some(pm) = capability(config, bdf, cap::PM) {
        let offset = pm.saturating_add(4);
        if config.read(bdf, offset) & 1 << 3 == 0 {
            return Reset::Power { offset };
        }
    }
    Reset::Driver
}

/// What a write of `width` bytes at `offset` by a function's owner comes to: the COMMAND to write. Only bus mastering and
/// INTx disable may change, the former only while `may_master` (the IOMMU holds the function's attachment).
///
/// # Errors
/// EINVAL for an access that is not naturally aligned; EPERM for every other change.
pub fn owner_write(current: u32, offset: u16, width: u16, value: u32, may_master: bool) -> Result<u32, Errno> {
    check_access(offset, width)?;
    let current = current & 0xFFFF;
    // The upper half of a 32-bit write is STATUS: ones there would clear it, zeroes change nothing.
    let whole = width == 2 || width == 4 && value >> 16 == 0;
    let changed = (current ^ value) & 0xFFFF;
    if offset != reg::COMMAND || !whole || changed & !(command::BUS_MASTER | command::INTX_DISABLE) != 0 {
        return Err(Errno::EPERM);
    }
    if changed & value & command::BUS_MASTER != 0 && !may_master {
        return Err(Errno::EPERM);
    }
    Ok(value & 0xFFFF)
}

/// Whether an access is naturally aligned and inside configuration space.
///
/// # Errors
/// EINVAL if not.
pub fn check_access(offset: u16, width: u16) -> Result<(), Errno> {
    let ok = matches!(width, 1 | 2 | 4) && offset.is_multiple_of(width) && offset < 256;
    if ok { Ok(()) } else { Err(Errno::EINVAL) }
}

/// The bytes of an aligned word that an access of `width` at `offset` means.
pub const fn part(word: u32, offset: u16, width: u16) -> u32 {
    let shifted = word.wrapping_shr((offset as u32 & 3) << 3);
    match width {
        1 => shifted & 0xFF,
        2 => shifted & 0xFFFF,
        _ => shifted,
    }
}
