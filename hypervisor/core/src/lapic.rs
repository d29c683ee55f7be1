//! The local APIC that a PVH guest sees: x2APIC registers by MSR, interprocessor interrupts, priorities; no timer that runs, as
//! such guests take the PV clock's, and no way in for devices, which come as events.
//!
//! It begins, and stays, in x2APIC mode, so nothing of it is in memory. Neighbours: `hypervisor/src/lapic.rs` turns [`Ipi`]s into
//! effects on other vCPUs, `run.rs` offers what is [`Lapic::pending`]. Source: AMD64 APM 2, chapter 16; Intel SDM 3, 10.12.

/// First MSR of the registers; register at byte `offset` of an xAPIC's page is MSR `FIRST_MSR + offset / 16`.
pub const FIRST_MSR: u32 = 0x800;
/// Last one.
pub const LAST_MSR: u32 = 0x8ff;

const ID: u32 = 0x802;
const VERSION: u32 = 0x803;
const TPR: u32 = 0x808;
const PPR: u32 = 0x80a;
const EOI: u32 = 0x80b;
const LDR: u32 = 0x80d;
const SPURIOUS: u32 = 0x80f;
const ISR: u32 = 0x810;
const TMR: u32 = 0x818;
const IRR: u32 = 0x820;
const ESR: u32 = 0x828;
const ICR: u32 = 0x830;
const LVT: u32 = 0x832;
const LVT_LAST: u32 = 0x837;
const TIMER_INITIAL: u32 = 0x838;
const TIMER_CURRENT: u32 = 0x839;
const TIMER_DIVIDE: u32 = 0x83e;
const SELF_IPI: u32 = 0x83f;

/// An integrated APIC with entries [`LVT`] to [`LVT_LAST`] in its local vector table.
const VERSION_VALUE: u32 = 0x14 | (LVT_LAST - LVT) << 16;
/// Masked, as after a reset.
const LVT_MASKED: u32 = 1 << 16;
/// Vectors below are not for APICs.
const FIRST_VECTOR: u8 = 16;

/// 256 vectors, a bit each.
type Vectors = [u64; 4];

/// What an interprocessor interrupt does to its targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Interrupt by this vector.
    Fixed(u8),
    /// Non-maskable interrupt.
    Nmi,
    /// Back to the state that waits for [`Message::Startup`].
    Init,
    /// Starts in real mode at the first byte of this page.
    Startup(u8),
}

/// A write to the interrupt command register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// What is sent.
    pub message: Message,
    sender: u32,
    command: u64,
}

impl Ipi {
    /// Decodes a command; `None` for what is reserved or not there (SMI, ExtINT, lowest priority), `Some(None)` for the
    /// end of an INIT, which does nothing.
    fn decode(sender: u32, command: u64) -> Option<Option<Self>> {
        let vector = command as u8;
        let message = match command >> 8 & 7 {
            0 if vector >= FIRST_VECTOR => Message::Fixed(vector),
            4 => Message::Nmi,
            5 if command & 1 << 14 == 0 => return Some(None),
            5 => Message::Init,
            6 => Message::Startup(vector),
            _ => return None,
        };
        Some(Some(Self { message, sender, command }))
    }

    /// Whether the APIC with this ID is meant.
    pub const fn reaches(&self, id: u32) -> bool {
        let dest = (self.command >> 32) as u32;
        match (self.command >> 18 & 3, self.command & 1 << 11 != 0) {
            (1, _) => id == self.sender,
            (2, _) => true,
            (3, _) => id != self.sender,
            (_, false) => dest == id || dest == u32::MAX,
            (_, true) => dest >> 16 == logical(id) >> 16 && dest & logical(id) & 0xffff != 0 || dest == u32::MAX,
        }
    }
}

/// The logical ID of an APIC: its cluster, and its bit there.
const fn logical(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}

/// One local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    id: u32,
    /// The task priority, of which the processor has the upper half in CR8.
    pub tpr: u8,
    spurious: u32,
    lvt: [u32; (LVT_LAST - LVT + 1) as usize],
    divide: u32,
    command: u64,
    requested: Vectors,
    in_service: Vectors,
}

fn set(vectors: &mut Vectors, vector: u8, on: bool) {
    if let Some(word) = vectors.get_mut(usize::from(vector >> 6)) {
        let bit = 1 << (vector & 63);
        *word = if on { *word | bit } else { *word & !bit };
    }
}

/// The highest vector set.
fn highest(vectors: &Vectors) -> Option<u8> {
    let word = vectors.iter().rposition(|&w| w != 0)?;
    let bit = vectors.get(word)?.checked_ilog2()?;
    u8::try_from(word << 6 | bit as usize).ok()
}

/// The `n`-th 32 bits.
fn half(vectors: &Vectors, n: u32) -> u32 {
    vectors.get(n as usize / 2).map_or(0, |w| w.wrapping_shr((n & 1) << 5) as u32)
}

impl Lapic {
    /// As after a reset, but in x2APIC mode.
    pub const fn new(id: u32) -> Self {
        Self {
            id,
            tpr: 0,
            spurious: 0xff,
            lvt: [LVT_MASKED; (LVT_LAST - LVT + 1) as usize],
            divide: 0,
            command: 0,
            requested: [0; 4],
            in_service: [0; 4],
        }
    }

    /// Its ID.
    pub const fn id(&self) -> u32 {
        self.id
    }

    fn priority(&self) -> u8 {
        let service = highest(&self.in_service).unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= service { self.tpr } else { service }
    }

    /// Reads the register of an MSR; `None` = #GP.
    pub fn read(&self, msr: u32) -> Option<u64> {
        let value = match msr {
            ID => self.id,
            VERSION => VERSION_VALUE,
            TPR => self.tpr.into(),
            PPR => self.priority().into(),
            LDR => logical(self.id),
            SPURIOUS => self.spurious,
            ICR => return Some(self.command),
            ISR..TMR => half(&self.in_service, msr & 7),
            IRR..ESR => half(&self.requested, msr & 7),
            TMR..IRR | ESR | TIMER_INITIAL | TIMER_CURRENT => 0,
            LVT..=LVT_LAST => *self.lvt.get(msr.wrapping_sub(LVT) as usize)?,
            TIMER_DIVIDE => self.divide,
            _ => return None,
        };
        Some(value.into())
    }

    /// Writes it; `None` = #GP, else the interprocessor interrupt that it sends.
    pub fn write(&mut self, msr: u32, value: u64) -> Option<Option<Ipi>> {
        if msr == ICR {
            let sent = Ipi::decode(self.id, value)?;
            self.command = value;
            return Some(sent);
        }
        let word = u32::try_from(value).ok()?;
        match msr {
            TPR => self.tpr = u8::try_from(word).ok()?,
            EOI if word == 0 => {
                if let Some(vector) = highest(&self.in_service) {
                    set(&mut self.in_service, vector, false);
                }
            }
            SPURIOUS if word < 1 << 10 => self.spurious = word,
            ESR if word == 0 => {}
            LVT..=LVT_LAST => *self.lvt.get_mut(msr.wrapping_sub(LVT) as usize)? = word,
            // Stopping it is fine.
            TIMER_INITIAL if word == 0 => {}
            TIMER_DIVIDE if word & !0xb == 0 => self.divide = word,
            SELF_IPI => {
                self.request(u8::try_from(word).ok().filter(|&v| v >= FIRST_VECTOR)?);
            }
            _ => return None,
        }
        Some(None)
    }

    /// An interrupt arrives; lost while the APIC is switched off by software.
    pub fn request(&mut self, vector: u8) {
        if self.spurious & 1 << 8 != 0 {
            set(&mut self.requested, vector, true);
        }
    }

    /// The interrupt that the processor would take now.
    pub fn pending(&self) -> Option<u8> {
        highest(&self.requested).filter(|v| v & 0xf0 > self.priority() & 0xf0)
    }

    /// The processor has taken what was [`Self::pending`]. What is not requested is not taken.
    pub fn take(&mut self, vector: u8) {
        let asked = self.requested.get(usize::from(vector >> 6)).is_some_and(|word| word >> (vector & 63) & 1 != 0);
        if asked {
            set(&mut self.requested, vector, false);
            set(&mut self.in_service, vector, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn on(id: u32) -> Lapic {
        let mut apic = Lapic::new(id);
        assert_eq!(apic.write(SPURIOUS, 0x1ff), Some(None));
        apic
    }

    #[test]
    fn registers_after_reset() {
        let apic = Lapic::new(6);
        assert_eq!((apic.read(ID), apic.read(VERSION), apic.read(LDR)), (Some(6), Some(0x5_0014), Some(0x40)));
        assert_eq!(
            (apic.read(SPURIOUS), apic.read(LVT), apic.read(LVT_LAST)),
            (Some(0xff), Some(0x1_0000), Some(0x1_0000))
        );
        assert_eq!(Lapic::new(0x12).read(LDR), Some(0x1_0004), "cluster 1, bit 2");
        for absent in [0x800, 0x804, EOI, 0x80e, 0x829, 0x82f, 0x831, LVT_LAST + 2 + 1, SELF_IPI, 0x840, LAST_MSR] {
            assert_eq!(apic.read(absent), None, "{absent:#x}");
        }
    }

    #[test]
    fn what_is_reserved_faults_and_changes_nothing() {
        let mut apic = on(0);
        let before = alloc::format!("{apic:?}");
        for (msr, value) in [
            (ID, 1),
            (VERSION, 0),
            (PPR, 0),
            (LDR, 1),
            (ISR, 0),
            (IRR, 0),
            (TIMER_CURRENT, 0),
            (TPR, 0x100),
            (EOI, 1),
            (SPURIOUS, 1 << 10),
            (ESR, 1),
            (TIMER_INITIAL, 1),
            (TIMER_DIVIDE, 4),
            (SELF_IPI, 15),
            (SELF_IPI, 0x120),
            (TPR, 1 << 32),
            (ICR, 0x0f),
            (ICR, 0x140),
            (ICR, 0x200),
            (ICR, 0x300),
            (ICR, 0x700),
        ] {
            assert_eq!(apic.write(msr, value), None, "{msr:#x} {value:#x}");
        }
        assert_eq!(alloc::format!("{apic:?}"), before);
    }

    #[test]
    fn an_interrupt_waits_for_those_of_its_class_and_for_the_task_priority() {
        let mut apic = on(0);
        apic.request(0x35);
        apic.request(0x42);
        assert_eq!(apic.pending(), Some(0x42));
        apic.take(0xf3);
        assert_eq!((apic.read(ISR + 7), apic.pending()), (Some(0), Some(0x42)), "an upcall's vector is not the APIC's");
        apic.take(0x42);
        assert_eq!(apic.read(ISR + 2), Some(4));
        apic.request(0x4f);
        assert_eq!(apic.pending(), None, "same class, lower than what is in service");
        assert_eq!(apic.read(PPR), Some(0x40));
        assert_eq!(apic.write(EOI, 0), Some(None));
        assert_eq!(apic.pending(), Some(0x4f));
        assert_eq!(apic.write(TPR, 0x4f), Some(None));
        assert_eq!((apic.pending(), apic.read(PPR)), (None, Some(0x4f)));
        assert_eq!(apic.write(TPR, 0x3f), Some(None));
        assert_eq!(apic.pending(), Some(0x4f));
        assert_eq!(apic.read(IRR + 1), Some(1 << 21), "0x35 waits");
    }

    #[test]
    fn a_switched_off_apic_takes_nothing() {
        let mut apic = Lapic::new(0);
        apic.request(0x40);
        assert_eq!(apic.write(SELF_IPI, 0x41), Some(None));
        assert_eq!(apic.pending(), None);
    }

    fn sent(sender: u32, command: u64) -> Ipi {
        match on(sender).write(ICR, command) {
            Some(Some(ipi)) => ipi,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commands_by_hand() {
        // As Linux starts a processor: INIT asserted, deasserted, start-up at 0x99000.
        assert_eq!(sent(0, 2 << 32 | 0xc500).message, Message::Init);
        assert_eq!(on(0).write(ICR, 2 << 32 | 0x8500), Some(None));
        assert_eq!(sent(0, 2 << 32 | 0x699).message, Message::Startup(0x99));
        assert_eq!(sent(0, 2 << 32 | 0x400).message, Message::Nmi);
        assert_eq!(sent(0, 2 << 32 | 0xfb).message, Message::Fixed(0xfb));
        let mut apic = on(4);
        let _sent = apic.write(ICR, 2 << 32 | 0xfb);
        assert_eq!(apic.read(ICR), Some(2 << 32 | 0xfb));
    }

    #[test]
    fn destinations_by_hand() {
        let who = |command: u64| [0u32, 2, 4, 0x12].map(|id| sent(2, command | 0x40).reaches(id));
        assert_eq!(who(4 << 32), [false, false, true, false], "physical");
        assert_eq!(who(0xffff_ffff << 32), [true; 4], "physical broadcast");
        assert_eq!(who(0x0000_0005 << 32 | 1 << 11), [true, true, false, false], "bits 0 and 2 of cluster 0");
        assert_eq!(who(0x0001_0005 << 32 | 1 << 11), [false, false, false, true], "bit 2 of cluster 1");
        assert_eq!(who(0xffff_ffff << 32 | 1 << 11), [true; 4], "logical broadcast");
        assert_eq!(who(1 << 18), [false, true, false, false], "self");
        assert_eq!(who(2 << 18), [true; 4], "all");
        assert_eq!(who(3 << 18), [true, false, true, true], "others");
    }

    proptest! {
        /// Against a list of what is in service, highest last.
        #[test]
        fn nested_interrupts_end_in_their_order(ops in prop::collection::vec((any::<bool>(), 16u8..), 1..200)) {
            let mut apic = on(0);
            let (mut waiting, mut service) = (std::collections::BTreeSet::new(), Vec::new());
            for (end, vector) in ops {
                if end {
                    prop_assert_eq!(apic.write(EOI, 0), Some(None));
                    service.pop();
                } else {
                    apic.request(vector);
                    waiting.insert(vector);
                }
                let floor = service.last().map_or(0, |v| v >> 4);
                let next = waiting.last().copied().filter(|v| v >> 4 > floor);
                prop_assert_eq!(apic.pending(), next);
                if let Some(v) = next {
                    apic.take(v);
                    waiting.remove(&v);
                    service.push(v);
                }
            }
        }
    }
}
