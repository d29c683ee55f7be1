//! The system bundle: the one module the hypervisor receives. xtask writes it from the system manifest; the hypervisor only
//! copies. Little-endian, all offsets from the start of the bundle, page-aligned segment data, one CRC-32 (IEEE) per segment
//! and one over header and tables. Nothing in it is trusted before it has been checked by [`Bundle::parse`].
//!
//! ```text
//! Header | Domain[nr_domains] | Segment[nr_segments] | Device[nr_devices] | Ports[nr_ports] | … | segment data
//! ```
//!
//! A domain's start is a copy: for each of its segments, `file_len` bytes to `gpa`, the rest of its memory zero, then vCPU 0
//! with the registers of [`Domain`] as [`entry`] says. xtask has loaded and relocated the ELF and laid page tables and boot information.

use crate::ids::DomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// "XENOLITH".
pub const MAGIC: [u8; 8] = *b"XENOLITH";
/// Version of this format.
pub const VERSION: u32 = 1;

/// Flags of a domain.
pub mod flags {
    /// May call the *control* commands.
    pub const CONTROL: u32 = 1 << 0;
    /// A driver domain: woken before others.
    pub const DRIVER: u32 = 1 << 1;
    /// A stock kernel in a PVH domain ([`super::pvh`]): it has a local APIC in x2APIC mode, started vCPUs, and may look for a PC's
    /// ports and registers, of which it finds none. Entered by [`super::entry::PVH32`].
    pub const PVH: u32 = 1 << 2;
    /// Not made at boot: it exists, without memory, until [`crate::xenolith::DOM_CREATE`].
    pub const ON_DEMAND: u32 = 1 << 3;
}
/// What a PVH domain's ACPI tables may name. They are part of its image: the hypervisor does not write or read them.
///
/// - FADT: hardware-reduced; no CMOS clock, no 8042, no VGA, no legacy devices; sleep control and status register as below;
///   `\_S5` with `SLP_TYP` [`SLEEP_TYPE_S5`](pvh::SLEEP_TYPE_S5).
/// - MADT: a local APIC (or x2APIC) per vCPU, ACPI ID = its number (Linux takes it for Xen's), APIC ID = twice that; no IO-APIC, no 8259 (flags 0).
pub mod pvh {
    /// Port of the sleep control register, one byte (ACPI 6.5, 4.8.3.7).
    pub const SLEEP_CONTROL: u16 = 0x604;
    /// Port of the sleep status register, which reads as 0.
    pub const SLEEP_STATUS: u16 = 0x605;
    /// `SLP_EN` of the sleep control register.
    pub const SLP_EN: u8 = 1 << 5;
    /// `SLP_TYPx`, bits 4:2 of it, that switches the domain off.
    pub const SLEEP_TYPE_S5: u8 = 5;
}
/// Flags of the bundle.
pub mod bundle_flags {
    /// [`crate::xenolith::POWEROFF`] writes its code to QEMU's `isa-debug-exit` at port 0xf4.
    pub const DEBUG_EXIT: u32 = 1 << 0;
}
/// How vCPU 0 starts ([`Domain::entry_kind`]).
pub mod entry {
    /// Long mode: CR3, RSP, RIP, RDI as given, interrupts off, flat segments (Hermit's entry ABI).
    pub const LONG64: u32 = 0;
    /// 32-bit protected mode, paging off, EIP = `rip`, EBX = `rdi` (PVH).
    pub const PVH32: u32 = 1;
}

/// First structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// [`bundle_flags`].
    pub flags: u32,
    /// Bytes of the whole bundle.
    pub total_len: u64,
    /// Records in each table.
    pub nr_domains: u32,
    /// Records.
    pub nr_segments: u32,
    /// Records.
    pub nr_devices: u32,
    /// Records.
    pub nr_ports: u32,
    /// CRC-32 of the header (with this field zero) and the four tables.
    pub tables_crc: u32,
    /// Zero.
    pub reserved: u32,
}
crate::assert_layout!(Header, 48, total_len @ 16, nr_domains @ 24, tables_crc @ 40);

/// One domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Domain {
    /// NUL-padded UTF-8.
    pub name: [u8; 32],
    /// Its number; the control domain has 0, domains are listed in ascending order.
    pub domid: DomId,
    /// Zero.
    pub pad: u16,
    /// [`flags`].
    pub flags: u32,
    /// RAM in pages, from guest-physical 0 up. The last three are the console, store and survivor page, in this order.
    pub mem_pages: u32,
    /// vCPUs.
    pub vcpus: u32,
    /// [`entry`].
    pub entry_kind: u32,
    /// CPUs its vCPUs may run on, bit n for the n-th of those that run guests; 0 = any.
    pub cpu_mask: u32,
    /// Entry registers.
    pub rip: u64,
    /// RSP of LONG64.
    pub rsp: u64,
    /// CR3 of LONG64.
    pub cr3: u64,
    /// RDI of LONG64, EBX of PVH32.
    pub rdi: u64,
    /// Its records in the segment table: first and count.
    pub first_segment: u32,
    /// Count.
    pub nr_segments: u32,
    /// Devices.
    pub first_device: u32,
    /// Count.
    pub nr_devices: u32,
    /// Port ranges.
    pub first_port: u32,
    /// Count.
    pub nr_ports: u32,
    /// Event ports it may own.
    pub max_ports: u32,
    /// Grant-table frames it may have.
    pub max_grant_frames: u32,
}
crate::assert_layout!(Domain, 120, domid @ 32, rip @ 56, first_segment @ 88, max_ports @ 112);

/// Part of a domain's initial memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Segment {
    /// Guest-physical address, page-aligned.
    pub gpa: u64,
    /// Offset of its bytes in the bundle, page-aligned.
    pub offset: u64,
    /// Bytes.
    pub file_len: u64,
    /// CRC-32 of them.
    pub crc: u32,
    /// Zero.
    pub pad: u32,
}
crate::assert_layout!(Segment, 32);

/// An assigned PCI function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Device {
    /// Global system interrupt that its INTx pin arrives at, level-triggered and active low; 0 = unknown: it must have MSI. No table
    /// without AML says this, so the system's manifest does.
    pub gsi: u16,
    /// bus << 8 | device << 3 | function.
    pub bdf: u16,
    /// Expected vendor (low half) and device; 0 = any.
    pub id: u32,
}
crate::assert_layout!(Device, 8);

/// I/O ports (and an ISA interrupt) given to a domain, for the control domain's serial line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// Count.
    pub count: u16,
    /// ISA interrupt that comes with them, as a PIRQ of this number; 0 = none.
    pub irq: u32,
}
crate::assert_layout!(Ports, 8);

/// Why a bundle was refused; each names the offending record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// Shorter than its header, tables or `total_len`.
    Truncated {
        /// Bytes there.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// Not a bundle.
    BadMagic,
    /// A version we do not read.
    BadVersion(u32),
    /// Header or tables damaged.
    TablesCrc {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// A segment's bytes are damaged.
    SegmentCrc {
        /// Index in the table.
        segment: u32,
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// A segment lies outside of the bundle, is misaligned, does not fit its domain's memory, or is not past the one before.
    BadSegment(u32),
    /// A domain's record is contradictory (order, counts, entry, name, memory).
    BadDomain(DomId),
    /// A device is given to two domains.
    DeviceTwice(u16),
}

impl core::fmt::Display for BundleError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Truncated { have, need } => write!(f, "it is truncated: {have} bytes of {need}"),
            Self::BadMagic => f.write_str("it is no Xenolith bundle"),
            Self::BadVersion(v) => write!(f, "its format version {v} is not {VERSION}"),
            Self::TablesCrc { stored, computed } => {
                write!(f, "its tables are damaged: checksum {computed:#010x}, {stored:#010x} expected")
            }
            Self::SegmentCrc { segment, stored, computed } => {
                write!(f, "image segment {segment} is damaged: checksum {computed:#010x}, {stored:#010x} expected")
            }
            Self::BadSegment(n) => {
                write!(f, "image segment {n} lies outside of the bundle or of its domain's memory, or overlaps another")
            }
            Self::BadDomain(id) => write!(f, "the record of domain {id} is contradictory"),
            Self::DeviceTwice(bdf) => {
                write!(f, "device {:02x}:{:02x}.{} is given to two domains", bdf >> 8, bdf >> 3 & 31, bdf & 7)
            }
        }
    }
}

/// A checked bundle. All records lie inside `bytes`, all checksums hold.
#[derive(Clone, Copy, Debug)]
pub struct Bundle<'a> {
    bytes: &'a [u8],
    header: Header,
    domains: &'a [Domain],
    segments: &'a [Segment],
    devices: &'a [Device],
    ports: &'a [Ports],
}

/// Least pages of a domain: one of RAM and the three special ones.
pub const MIN_PAGES: u32 = 4;
/// Special pages at the end of a domain's RAM, counted back from its end.
pub mod special {
    /// Console ring.
    pub const CONSOLE: u32 = 3;
    /// Store ring.
    pub const STORE: u32 = 2;
    /// Survivor page.
    pub const SURVIVOR: u32 = 1;
}

fn table<'a, T: FromBytes + Immutable + KnownLayout>(
    bytes: &'a [u8],
    at: &mut usize,
    count: u32,
) -> Result<&'a [T], BundleError> {
    let have = bytes.len() as u64;
    let len = (count as usize).checked_mul(size_of::<T>());
    let end = len.and_then(|len| at.checked_add(len));
    let part = end.and_then(|end| bytes.get(*at..end));
    let (Some(end), Some(part)) = (end, part) else {
        return Err(BundleError::Truncated { have, need: end.map_or(u64::MAX, |e| e as u64) });
    };
    *at = end;
    <[T]>::ref_from_bytes(part).map_err(|_| BundleError::Truncated { have, need: end as u64 })
}

fn range_ok(first: u32, count: u32, len: usize) -> bool {
    first.checked_add(count).is_some_and(|end| end as usize <= len)
}

impl<'a> Bundle<'a> {
    /// Checks everything that can be checked without the machine. `bytes` must be 8-byte aligned.
    ///
    /// # Errors
    /// The first defect found, see [`BundleError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        let have = bytes.len() as u64;
        let mut at = size_of::<Header>();
        let head = bytes.get(..at).ok_or(BundleError::Truncated { have, need: at as u64 })?;
        let header = Header::read_from_bytes(head).map_err(|_| BundleError::BadMagic)?;
        if header.magic != MAGIC {
            return Err(BundleError::BadMagic);
        }
        if header.version != VERSION {
            return Err(BundleError::BadVersion(header.version));
        }
        if header.total_len > have {
            return Err(BundleError::Truncated { have, need: header.total_len });
        }
        let domains: &[Domain] = table(bytes, &mut at, header.nr_domains)?;
        let segments: &[Segment] = table(bytes, &mut at, header.nr_segments)?;
        let devices: &[Device] = table(bytes, &mut at, header.nr_devices)?;
        let ports: &[Ports] = table(bytes, &mut at, header.nr_ports)?;
        let computed = Self::tables_crc(&header, bytes.get(size_of::<Header>()..at).unwrap_or_default());
        if computed != header.tables_crc {
            return Err(BundleError::TablesCrc { stored: header.tables_crc, computed });
        }
        let this = Self { bytes, header, domains, segments, devices, ports };
        this.check_domains()?;
        this.check_segments()?;
        Ok(this)
    }

    /// CRC-32 over the header with `tables_crc` zero, then the tables.
    #[must_use]
    pub fn tables_crc(header: &Header, tables: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(Header { tables_crc: 0, ..*header }.as_bytes());
        crc.update(tables);
        crc.finalize()
    }

    fn check_domains(&self) -> Result<(), BundleError> {
        let mut last: Option<DomId> = None;
        for d in self.domains {
            let bad = BundleError::BadDomain(d.domid);
            let ok = last.is_none_or(|l| d.domid > l)
                && d.domid < DomId::FIRST_RESERVED
                && d.mem_pages >= MIN_PAGES
                && (1..=crate::shared::shared_info::LEGACY_MAX_VCPUS).contains(&d.vcpus)
                && d.entry_kind <= entry::PVH32
                && self.name(d).is_some_and(|n| !n.is_empty())
                && range_ok(d.first_segment, d.nr_segments, self.segments.len())
                && range_ok(d.first_device, d.nr_devices, self.devices.len())
                && range_ok(d.first_port, d.nr_ports, self.ports.len());
            if !ok {
                return Err(bad);
            }
            let ram = u64::from(d.mem_pages.saturating_sub(special::CONSOLE)).saturating_mul(crate::PAGE_SIZE as u64);
            let mut last_end = 0;
            for (i, s) in (d.first_segment..).zip(self.segments(d)) {
                let end = s.gpa.checked_add(s.file_len).filter(|&end| end <= ram && s.gpa >= last_end);
                last_end = end.ok_or(BundleError::BadSegment(i))?;
            }
            last = Some(d.domid);
        }
        for (i, dev) in self.devices.iter().enumerate() {
            if self.devices.iter().skip(i).skip(1).any(|other| other.bdf == dev.bdf) {
                return Err(BundleError::DeviceTwice(dev.bdf));
            }
        }
        Ok(())
    }

    fn check_segments(&self) -> Result<(), BundleError> {
        let page = crate::PAGE_SIZE as u64;
        for (i, s) in (0u32..).zip(self.segments) {
            let aligned = s.gpa.is_multiple_of(page) && s.offset.is_multiple_of(page);
            let Some(data) = self.data(s).filter(|_| aligned) else {
                return Err(BundleError::BadSegment(i));
            };
            let computed = crc32fast::hash(data);
            if computed != s.crc {
                return Err(BundleError::SegmentCrc { segment: i, stored: s.crc, computed });
            }
        }
        Ok(())
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }
    /// All domains, ascending by number.
    #[must_use]
    pub const fn domains(&self) -> &'a [Domain] {
        self.domains
    }
    /// A domain's name.
    #[must_use]
    pub fn name(&self, d: &'a Domain) -> Option<&'a str> {
        let len = d.name.iter().position(|&b| b == 0).unwrap_or(d.name.len());
        core::str::from_utf8(d.name.get(..len)?).ok()
    }
    /// A domain's segments.
    #[must_use]
    pub fn segments(&self, d: &Domain) -> &'a [Segment] {
        part(self.segments, d.first_segment, d.nr_segments)
    }
    /// A domain's devices.
    #[must_use]
    pub fn devices(&self, d: &Domain) -> &'a [Device] {
        part(self.devices, d.first_device, d.nr_devices)
    }
    /// A domain's port ranges.
    #[must_use]
    pub fn ports(&self, d: &Domain) -> &'a [Ports] {
        part(self.ports, d.first_port, d.nr_ports)
    }
    /// A segment's bytes.
    #[must_use]
    pub fn data(&self, s: &Segment) -> Option<&'a [u8]> {
        let start = usize::try_from(s.offset).ok()?;
        let end = start.checked_add(usize::try_from(s.file_len).ok()?)?;
        self.bytes.get(start..end)
    }
}

fn part<T>(all: &[T], first: u32, count: u32) -> &[T] {
    let first = first as usize;
    first.checked_add(count as usize).and_then(|end| all.get(first..end)).unwrap_or_default()
}
