//! A fake configuration space with one of everything.

use super::*;
use std::cell::RefCell;
use std::collections::BTreeMap;

#[derive(Default)]
struct Fake {
    words: RefCell<BTreeMap<(Bdf, u16), u32>>,
    /// Writable bits; 0 where none.
    masks: BTreeMap<(Bdf, u16), u32>,
    decoded_while_sizing: RefCell<bool>,
    /// Features of a virtio device, by their second word; its common configuration is at 0x3000 of BAR 4.
    features: Option<u32>,
}

/// Where [`Fake`]'s virtio window is.
const WINDOW: u16 = 0x84;

impl Fake {
    fn function(&mut self, bdf: Bdf, id: u32, header: u32) {
        let words = self.words.get_mut();
        words.insert((bdf, reg::ID), id);
        words.insert((bdf, reg::HEADER), header << 16);
        words.insert((bdf, reg::COMMAND), 1 << 20 | 7);
        self.masks.insert((bdf, reg::COMMAND), 0xFFFF);
        words.extend((reg::BAR0..0x40).step_by(4).map(|offset| ((bdf, offset), 0)));
    }
    fn set(&mut self, bdf: Bdf, at: u16, value: u32) {
        self.words.get_mut().insert((bdf, at), value);
    }
    fn bar(&mut self, bdf: Bdf, number: u16, value: u32, writable: u32) {
        self.set(bdf, reg::BAR0 + 4 * number, value);
        self.masks.insert((bdf, reg::BAR0 + 4 * number), writable);
    }
}

impl Config for Fake {
    fn read(&self, bdf: Bdf, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 256);
        if let Some(features) = self.features.filter(|_| offset == WINDOW + 16) {
            let word = |at| self.words.borrow()[&(bdf, at)];
            assert_eq!((word(WINDOW + 4), word(WINDOW + 8), word(WINDOW + 12)), (4, 0x3004, 4), "BAR, offset, length");
            return if word(offset) == 1 { features } else { u32::MAX };
        }
        self.words.borrow().get(&(bdf, offset)).copied().unwrap_or(u32::MAX)
    }
    fn write(&self, bdf: Bdf, offset: u16, value: u32) {
        let mask = self.masks.get(&(bdf, offset)).copied().unwrap_or(0);
        if offset == WINDOW + 16 {
            assert_eq!(self.words.borrow()[&(bdf, WINDOW + 8)], 0x3000);
            self.words.borrow_mut().insert((bdf, offset), value);
            return;
        }
        let old = self.read(bdf, offset);
        if (reg::BAR0..0x28).contains(&offset) && self.read(bdf, reg::COMMAND) & 7 != 0 {
            *self.decoded_while_sizing.borrow_mut() = true;
        }
        self.words.borrow_mut().insert((bdf, offset), old & !mask | value & mask);
    }
}

/// QEMU's e1000: 128 KiB of memory, 64 ports, INTA, no capability of use.
fn e1000(fake: &mut Fake, bdf: Bdf) {
    fake.function(bdf, 0x100E_8086, 0);
    fake.bar(bdf, 0, 0xFEB8_0000, 0xFFFE_0000);
    fake.bar(bdf, 1, 0xC001, 0xFFC0);
}

#[test]
fn bars_are_sized_with_decoding_off_and_left_as_they_were() {
    let mut fake = Fake::default();
    let bdf = Bdf(3 << 3);
    e1000(&mut fake, bdf);
    fake.bar(bdf, 2, 0xE000_000C, 0xFF00_0000); // 64-bit, prefetchable, 16 MiB at 0x8_E000_0000
    fake.bar(bdf, 3, 8, u32::MAX);
    let bars = size_bars(&fake, bdf);
    assert_eq!(bars[0], Some(Bar::Memory { addr: 0xFEB8_0000, len: 0x2_0000, wide: false }));
    assert_eq!(bars[1], Some(Bar::Io { port: 0xC000, len: 64 }));
    assert_eq!(bars[2], Some(Bar::Memory { addr: 0x8_E000_0000, len: 0x100_0000, wide: true }));
    assert_eq!(bars[3..], [None; 3]);
    assert!(!*fake.decoded_while_sizing.borrow());
    assert_eq!(fake.read(bdf, reg::BAR0), 0xFEB8_0000);
    assert_eq!(fake.read(bdf, reg::COMMAND) & 0xFFFF, 7);
}

#[test]
fn capabilities_and_resets() {
    let mut fake = Fake::default();
    let bdf = Bdf(3 << 3);
    e1000(&mut fake, bdf);
    assert_eq!(reset_method(&fake, bdf), Reset::Driver);
    fake.set(bdf, reg::CAPABILITIES, 0xC8);
    fake.set(bdf, 0xC8, 0x0022_D001);
    fake.set(bdf, 0xCC, 0);
    fake.set(bdf, 0xD0, 0x0080_E005);
    assert_eq!(capability(&fake, bdf, cap::MSI), Some(0xD0));
    assert_eq!(reset_method(&fake, bdf), Reset::Power { offset: 0xCC });
    fake.set(bdf, 0xCC, 1 << 3);
    assert_eq!(reset_method(&fake, bdf), Reset::Driver, "No_Soft_Reset");
    fake.set(bdf, 0xE0, 0x0001_0010);
    fake.set(bdf, 0xE4, 1 << 28);
    assert_eq!(reset_method(&fake, bdf), Reset::Function { offset: 0xE8, bit: 1 << 15 });
    fake.set(bdf, 0xE0, 0x0001_C810); // back to the first: a circle
    assert_eq!(capability(&fake, bdf, cap::MSIX), None);
}

#[test]
fn a_virtio_device_that_passes_the_iommu_is_told() {
    let bdf = Bdf(5 << 3);
    let virtio = |id: u32, features, parts: &[(u16, u32, u16)]| {
        let mut fake = Fake { features, ..Fake::default() };
        fake.function(bdf, id << 16 | 0x1AF4, 0);
        fake.set(bdf, reg::CAPABILITIES, parts.first().map_or(0, |p| p.0.into()));
        for &(at, kind, next) in parts {
            fake.set(bdf, at, kind << 24 | 0x14 << 16 | u32::from(next) << 8 | 9);
            fake.set(bdf, at + 4, if kind == 1 { 4 } else { 0 });
            fake.set(bdf, at + 8, if kind == 1 { 0x3000 } else { 0 });
            (4..=12).step_by(4).for_each(|n| _ = fake.masks.insert((bdf, WINDOW + n), u32::MAX));
        }
        passes_iommu(&fake, bdf)
    };
    let whole = [(0x40, 1, 0x50), (0x50, 3, WINDOW), (WINDOW, 5, 0)];
    assert!(!virtio(0x1042, Some(0b11), &whole), "VERSION_1 and ACCESS_PLATFORM");
    assert!(virtio(0x1042, Some(0b01), &whole));
    assert!(virtio(0x1001, None, &[]), "a legacy device");
    assert!(virtio(0x1042, Some(0b11), &whole[..1]), "no window");
    assert!(!virtio(0x1110, None, &[]), "ivshmem is none");
    let mut fake = Fake::default();
    e1000(&mut fake, bdf);
    assert!(!passes_iommu(&fake, bdf));
}

#[test]
fn owners_change_two_bits_of_command_and_nothing_else() {
    let (master, intx) = (command::BUS_MASTER, command::INTX_DISABLE);
    assert_eq!(owner_write(0x0010_0003, reg::COMMAND, 2, 3 | master, true), Ok(7));
    assert_eq!(owner_write(3, reg::COMMAND, 4, 3 | intx, false), Ok(0x403));
    assert_eq!(owner_write(3, reg::COMMAND, 2, 3 | master, false), Err(Errno::EPERM), "not attached");
    assert_eq!(owner_write(7, reg::COMMAND, 2, 3, false), Ok(3), "off is always allowed");
    assert_eq!(owner_write(7, reg::COMMAND, 2, 7, false), Ok(7), "no change");
    assert_eq!(owner_write(3, reg::COMMAND, 2, 1, true), Err(Errno::EPERM), "memory decoding");
    assert_eq!(owner_write(3, reg::COMMAND, 4, 0xFFFF_0003, true), Err(Errno::EPERM), "STATUS");
    assert_eq!(owner_write(3, reg::COMMAND, 1, 7, true), Err(Errno::EPERM));
    for at in (0..256).step_by(4).filter(|&at| at != reg::COMMAND) {
        assert_eq!(owner_write(0, at, 4, 0, true), Err(Errno::EPERM), "offset {at:#x}");
    }
    assert_eq!(owner_write(3, 5, 2, 0, true), Err(Errno::EINVAL));
    assert_eq!(check_access(256, 4), Err(Errno::EINVAL));
    assert_eq!(check_access(0, 3), Err(Errno::EINVAL));
    assert_eq!((part(0x1234_5678, 6, 2), part(0x1234_5678, 7, 1), part(5, 4, 4)), (0x1234, 0x12, 5));
}
