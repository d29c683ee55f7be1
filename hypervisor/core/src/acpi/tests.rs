//! Tables built by hand, as QEMU's firmware lays them out, and broken ones.

use super::*;
use proptest::prelude::*;

fn finish(mut table: Vec<u8>) -> Vec<u8> {
    let len = (table.len() as u32).to_le_bytes();
    table[4..8].copy_from_slice(&len);
    table[9] = 0;
    table[9] = 0u8.wrapping_sub(sum(&table));
    table
}

fn header(name: &[u8; 4]) -> Vec<u8> {
    let mut t = vec![0; HEADER];
    t[..4].copy_from_slice(name);
    t
}

fn madt() -> Vec<u8> {
    let mut t = header(b"APIC");
    t.extend(0xFEE0_0000u32.to_le_bytes());
    t.extend([1, 0, 0, 0]);
    t.extend([0, 8, 0, 0, 1, 0, 0, 0]);
    t.extend([0, 8, 1, 1, 1, 0, 0, 0]);
    t.extend([0, 8, 2, 2, 0, 0, 0, 0]); // disabled
    t.extend([1, 12, 7, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]);
    t.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    t.extend([2, 10, 0, 9, 9, 0, 0, 0, 0xD, 0]); // active high, level
    finish(t)
}

fn mcfg() -> Vec<u8> {
    let mut t = header(b"MCFG");
    t.extend([0; 8]);
    t.extend(0xB000_0000u64.to_le_bytes());
    t.extend([0, 0, 0, 255, 0, 0, 0, 0]);
    finish(t)
}

fn dsdt() -> Vec<u8> {
    let mut t = header(b"DSDT");
    t.extend(b"\x08_S5_\x12\x06\x04\x0A\x05\x00\x00\x00");
    finish(t)
}

fn fadt(dsdt: u32) -> Vec<u8> {
    let mut t = header(b"FACP");
    t.resize(244, 0);
    t[40..44].copy_from_slice(&dsdt.to_le_bytes());
    t[64..68].copy_from_slice(&0x604u32.to_le_bytes());
    t[76..80].copy_from_slice(&0x608u32.to_le_bytes());
    t[113] = 1;
    finish(t)
}

fn ivhd(kind: u8, entries: &[u8]) -> Vec<u8> {
    let head: usize = if kind == 0x10 { 24 } else { 40 };
    let mut b = vec![0; head];
    b[0] = kind;
    b[2..4].copy_from_slice(&((head + entries.len()) as u16).to_le_bytes());
    b[4] = 0x10; // 00:02.0
    b[6] = 0x40;
    b[8..16].copy_from_slice(&0xFED8_0000u64.to_le_bytes());
    b.extend(entries);
    b
}

fn ivrs(blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut t = header(b"IVRS");
    t.extend([0; 12]);
    blocks.iter().for_each(|b| t.extend(b));
    finish(t)
}

/// Select 00:03.0; alias range 05:00.0-05:1f.7 as 04:00.0; IO-APIC 7 as 00:14.0; HPET 0 as 00:14.0.
const ENTRIES: &[u8] = &[
    2, 0x18, 0, 0, 0x43, 0, 5, 0, 0, 0, 4, 0, 4, 0xFF, 5, 0, 0x48, 0, 0, 0, 7, 0xA0, 0, 1, 0x48, 0, 0, 0, 0, 0xA0, 0, 2,
];

struct Memory(Vec<(u64, Vec<u8>)>);
impl Memory {
    fn read(&self, addr: u64, len: usize) -> Option<&[u8]> {
        let (base, bytes) = self.0.iter().find(|(b, v)| (*b..*b + v.len() as u64).contains(&addr))?;
        let at = (addr - base) as usize;
        bytes.get(at..at.checked_add(len)?)
    }
    fn parse(&self) -> Result<Platform, AcpiError> {
        Platform::parse(&|addr, len| self.read(addr, len), 0x1000)
    }
}

fn machine(tables: &[Vec<u8>]) -> Memory {
    let mut memory = vec![];
    let mut rsdt = header(b"RSDT");
    for (i, t) in tables.iter().enumerate() {
        let at = 0x10000 + i as u32 * 0x1000;
        rsdt.extend(at.to_le_bytes());
        memory.push((u64::from(at), t.clone()));
    }
    memory.push((0x2000, finish(rsdt)));
    memory.push((0x3000, dsdt()));
    let mut rsdp = b"RSD PTR \0QEMU  \0\0\x20\0\0".to_vec();
    rsdp[8] = 0u8.wrapping_sub(sum(&rsdp));
    memory.push((0x1000, rsdp));
    Memory(memory)
}

#[test]
fn a_pc_is_understood() {
    let p = machine(&[fadt(0x3000), madt(), mcfg(), ivrs(&[ivhd(0x10, ENTRIES)])]).parse().unwrap();
    assert_eq!(p.lapic_addr, 0xFEE0_0000);
    assert_eq!(p.lapics, [0, 1]);
    assert_eq!(p.ioapics, [IoApic { id: 7, addr: 0xFEC0_0000, gsi_base: 0 }]);
    assert_eq!(p.isa_irq(0).gsi, 2);
    assert_eq!(p.isa_irq(9), Override { irq: 9, gsi: 9, low: false, level: true });
    assert_eq!(p.isa_irq(3), Override { irq: 3, gsi: 3, low: false, level: false });
    assert_eq!(p.pm_timer, Some(0x608));
    assert_eq!(p.soft_off, Some(SoftOff { pm1a: (0x604, 5), pm1b: None }));
    let ivrs = p.ivrs.unwrap();
    assert_eq!((ivrs.iommus[0].bdf, ivrs.iommus[0].capability, ivrs.iommus[0].base), (0x10, 0x40, 0xFED8_0000));
    assert_eq!(ivrs.ioapic(7), Some(0xA0));
    assert_eq!(ivrs.ioapic(0), None, "the HPET's entry");
    assert_eq!((ivrs.requester(0x18), ivrs.requester(0x520), ivrs.requester(0x600)), (0x18, 0x400, 0x600));
}

#[test]
fn the_newest_description_of_an_iommu_counts() {
    let blocks = [ivhd(0x11, ENTRIES), ivhd(0x10, &[1, 0, 0, 0])];
    let p = machine(&[madt(), ivrs(&blocks)]).parse().unwrap();
    let iommus = p.ivrs.unwrap().iommus;
    assert_eq!((iommus.len(), iommus[0].block_type, iommus[0].devices.len()), (1, 0x11, 2));
}

#[test]
fn defects_are_named() {
    let mut broken = madt();
    broken[50] ^= 1;
    assert_eq!(machine(&[broken]).parse(), Err(AcpiError::Checksum(*b"APIC")));
    assert_eq!(machine(&[mcfg()]).parse(), Err(AcpiError::Missing(*b"APIC")));
    let mut endless = madt();
    endless[45] = 0; // an entry of length 0 would never be passed
    assert_eq!(machine(&[finish(endless)]).parse(), Err(AcpiError::BadEntry { table: *b"APIC", offset: 44 }));
    let open = ivrs(&[ivhd(0x10, &[4, 0, 0, 0])]);
    assert_eq!(machine(&[madt(), open]).parse(), Err(AcpiError::BadEntry { table: *b"IVRS", offset: 72 }));
    let mut memory = machine(&[madt()]);
    memory.0.pop();
    assert_eq!(memory.parse(), Err(AcpiError::BadRsdp(0x1000)));
    let text = std::format!("{}", AcpiError::Truncated { table: *b"MCFG", addr: 0x10 });
    assert_eq!(text, "ACPI table MCFG at 0x10 is cut short");
}

proptest! {
    #[test]
    fn no_damage_makes_it_panic(
        which in 0usize..4,
        changes in proptest::collection::vec((0usize..400, any::<u8>()), 1..8),
        cut in 0usize..300,
    ) {
        let mut tables = [fadt(0x3000), madt(), mcfg(), ivrs(&[ivhd(0x11, ENTRIES)])];
        for (at, value) in changes {
            let len = tables[which].len();
            tables[which][at % len] = value;
        }
        let keep = tables[which].len().saturating_sub(cut).max(HEADER);
        tables[which].truncate(keep);
        tables[which] = finish(tables[which].clone());
        let _ = machine(&tables).parse();
    }
    #[test]
    fn sleep_types_of_any_bytes(aml in proptest::collection::vec(any::<u8>(), 0..12)) {
        let mut with_name = b"_S5_\x12".to_vec();
        with_name.extend(aml);
        if let Some((a, b)) = sleep_types(&with_name) {
            prop_assert!(a < 8 && b < 8);
        }
    }
}
