//! The ACPI tables of a PVH guest: RSDP → XSDT → FADT (→ DSDT) and MADT, as little as Linux needs to find its CPUs and to
//! switch itself off.
//!
//! The platform is "hardware-reduced" (ACPI 6.5, 4.1): no PIC, PIT, CMOS clock, fixed events or SCI, so Linux looks for none.
//! Its sleep control register is an I/O port that the hypervisor serves ([`abi::bundle::pvh`]). Reboot needs none: Linux asks
//! Xen (`SCHEDOP_shutdown`).

use abi::bundle::pvh::{SLEEP_CONTROL, SLEEP_STATUS, SLEEP_TYPE_S5};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

const OEM: [u8; 6] = *b"XENOLI";
const TABLE: [u8; 8] = *b"PVHGUEST";
const REVISION: u32 = 1;
/// Where the architecture puts a local APIC; guests use theirs by MSRs (x2APIC).
const LOCAL_APIC: u32 = 0xfee0_0000;
/// `IAPC_BOOT_ARCH` (ACPI 6.5, table 5.11): neither VGA nor CMOS clock may be probed for.
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;
/// Tables start at multiples of this.
const ALIGN: usize = 16;

/// The tables for `vcpus` CPUs, to stand at guest-physical `base`; the RSDP comes first.
pub fn tables(base: u64, vcpus: u32) -> Vec<u8> {
    let mut out = vec![0; Rsdp::len().next_multiple_of(ALIGN)];
    let mut put = |table: &dyn Aml| {
        let address = base + out.len() as u64;
        table.to_aml_bytes(&mut out);
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        address
    };
    let dsdt = put(&dsdt());
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    fadt.sleep_control_reg = port(SLEEP_CONTROL);
    fadt.sleep_status_reg = port(SLEEP_STATUS);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    let fadt = put(&fadt.finalize());
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for vcpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(vcpu as u8, (vcpu * 2) as u8, EnabledStatus::Enabled));
    }
    let madt = put(&madt);
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    out[..rsdp.len()].copy_from_slice(&rsdp);
    out
}

/// `Name (\_S5, Package { type, 0, 0, 0 })`: what to write to the sleep control register to be switched off.
fn dsdt() -> Sdt {
    let s5 = aml::Package::new(vec![&SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    let mut code = Vec::new();
    aml::Name::new("_S5_".into(), &s5).to_aml_bytes(&mut code);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    table.append_slice(&code);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::elf::{u32_at, u64_at};

    const BASE: u64 = 0xe_2000;

    fn at(tables: &[u8], address: u64) -> &[u8] {
        &tables[(address - BASE) as usize..]
    }
    /// A table by its address: signature, length and checksum are right.
    fn table<'a>(tables: &'a [u8], address: u64, signature: &[u8]) -> &'a [u8] {
        let from = at(tables, address);
        assert_eq!(&from[..4], signature);
        let bytes = &from[..u32_at(from, 4).unwrap() as usize];
        assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "checksum of {signature:?}");
        bytes
    }

    #[test]
    fn the_tables_are_chained_and_their_checksums_hold() {
        let all = tables(BASE, 3);
        assert_eq!(&all[..8], b"RSD PTR ");
        assert_eq!((all[15], u32_at(&all, 20)), (2, Some(36)));
        for len in [20, 36] {
            assert_eq!(all[..len].iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "RSDP, {len} bytes");
        }
        let xsdt = table(&all, u64_at(&all, 24).unwrap(), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let fadt = table(&all, u64_at(xsdt, 36).unwrap(), b"FACP");
        assert_eq!(u32_at(fadt, 112).unwrap() & 1 << 20, 1 << 20, "hardware-reduced");
        // Sleep control: generic address of a byte in I/O space.
        assert_eq!(fadt[244..248], [1, 8, 0, 1]);
        assert_eq!(u64_at(fadt, 248), Some(SLEEP_CONTROL.into()));
        let dsdt = table(&all, u64_at(fadt, 140).unwrap(), b"DSDT");
        // NameOp "_S5_" PackageOp length 4 elements: BytePrefix type, three zeros.
        assert_eq!(dsdt[36..], [8, b'_', b'S', b'5', b'_', 0x12, 7, 4, 0x0a, SLEEP_TYPE_S5, 0, 0, 0]);
        let madt = table(&all, u64_at(xsdt, 44).unwrap(), b"APIC");
        assert_eq!(u32_at(madt, 36), Some(LOCAL_APIC));
        let cpus: Vec<&[u8]> = madt[44..].chunks(8).collect();
        assert_eq!(cpus, [[0, 8, 0, 0, 1, 0, 0, 0], [0, 8, 1, 2, 1, 0, 0, 0], [0, 8, 2, 4, 1, 0, 0, 0]]);
    }
}
