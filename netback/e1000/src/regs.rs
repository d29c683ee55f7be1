//! Registers of the 82540EM that the driver uses: byte offsets in BAR 0 and their bits.
//!
//! Source: Intel, *PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual* (317453), section 13.4
//! (13.5 filters, 13.7 statistics). Names are the manual's.

use bitflags::bitflags;

/// Device control.
pub const CTRL: usize = 0x0000;
/// Device status.
pub const STATUS: usize = 0x0008;
/// EEPROM read.
pub const EERD: usize = 0x0014;
/// Interrupt cause, cleared by reading.
pub const ICR: usize = 0x00c0;
/// Interrupt throttling: least time between interrupts in 256 ns.
pub const ITR: usize = 0x00c4;
/// Interrupt mask set.
pub const IMS: usize = 0x00d0;
/// Interrupt mask clear.
pub const IMC: usize = 0x00d8;
/// Receive control.
pub const RCTL: usize = 0x0100;
/// Transmit control.
pub const TCTL: usize = 0x0400;
/// Transmit inter-packet gap.
pub const TIPG: usize = 0x0410;

/// Receive descriptor base, low and high.
pub const RDBAL: usize = 0x2800;
/// High half.
pub const RDBAH: usize = 0x2804;
/// Bytes of the receive ring, a multiple of 128.
pub const RDLEN: usize = 0x2808;
/// Receive head: the device's next descriptor.
pub const RDH: usize = 0x2810;
/// Receive tail: one past the last posted.
pub const RDT: usize = 0x2818;
/// Receive delay, 1.024 us; 0 interrupts at once.
pub const RDTR: usize = 0x2820;
/// Receive absolute delay, 1.024 us.
pub const RADV: usize = 0x282c;

/// Transmit descriptor base, low and high.
pub const TDBAL: usize = 0x3800;
/// High half.
pub const TDBAH: usize = 0x3804;
/// Bytes of the transmit ring, a multiple of 128.
pub const TDLEN: usize = 0x3808;
/// Transmit head.
pub const TDH: usize = 0x3810;
/// Transmit tail.
pub const TDT: usize = 0x3818;
/// Transmit delay of descriptors with IDE, 1.024 us.
pub const TIDV: usize = 0x3820;
/// Its absolute bound.
pub const TADV: usize = 0x382c;

/// Receive checksum control.
pub const RXCSUM: usize = 0x5000;
/// Multicast table, 128 words (13.5).
pub const MTA: usize = 0x5200;
/// Words of it.
pub const MTA_WORDS: usize = 128;
/// Receive addresses, 16 pairs of low and high (13.5).
pub const RAL: usize = 0x5400;
/// High half of the first.
pub const RAH: usize = 0x5404;
/// Pairs.
pub const RA_COUNT: usize = 16;

/// Statistics (13.7); 32 bits, cleared by reading, saturating.
pub mod stat {
    /// CRC errors.
    pub const CRCERRS: usize = 0x4000;
    /// Alignment errors.
    pub const ALGNERRC: usize = 0x4004;
    /// Symbol errors.
    pub const SYMERRS: usize = 0x4008;
    /// Receive errors.
    pub const RXERRC: usize = 0x400c;
    /// Missed packets: no room in the packet buffer.
    pub const MPC: usize = 0x4010;
    /// Excessive collisions.
    pub const ECOL: usize = 0x4018;
    /// Late collisions.
    pub const LATECOL: usize = 0x4020;
    /// Transmissions without carrier sense.
    pub const TNCRS: usize = 0x4034;
    /// Length errors.
    pub const RLEC: usize = 0x4040;
    /// Good packets received.
    pub const GPRC: usize = 0x4074;
    /// Broadcasts among them.
    pub const BPRC: usize = 0x4078;
    /// Multicasts among them.
    pub const MPRC: usize = 0x407c;
    /// Good packets sent.
    pub const GPTC: usize = 0x4080;
    /// Good octets received, low; the high half follows and clears both when read.
    pub const GORCL: usize = 0x4088;
    /// Good octets sent, low; as above.
    pub const GOTCL: usize = 0x4090;
    /// Undersize packets.
    pub const RUC: usize = 0x40a4;
    /// Oversize packets.
    pub const ROC: usize = 0x40ac;
}

bitflags! {
    /// CTRL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ctrl: u32 {
        /// Full duplex, when forced.
        const FD = 1 << 0;
        /// Auto-speed detection: follow the PHY.
        const ASDE = 1 << 5;
        /// Set link up.
        const SLU = 1 << 6;
        /// Invert loss-of-signal.
        const ILOS = 1 << 7;
        /// Force speed.
        const FRCSPD = 1 << 11;
        /// Force duplex.
        const FRCDPX = 1 << 12;
        /// Reset all but the PHY; clears itself.
        const RST = 1 << 26;
        /// VLAN tags are taken off.
        const VME = 1 << 30;
        /// Reset the PHY: never written, it would drop the link.
        const PHY_RST = 1 << 31;
        // Bits we do not know are kept as read.
        const _ = !0;
    }

    /// STATUS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u32 {
        /// Full duplex.
        const FD = 1 << 0;
        /// Link up.
        const LU = 1 << 1;
        /// Transmission paused by flow control.
        const TXOFF = 1 << 4;
        /// 100 Mbit/s.
        const SPEED_100 = 1 << 6;
        /// 1000 Mbit/s (with or without the bit below).
        const SPEED_1000 = 1 << 7;
        const _ = !0;
    }

    /// ICR, IMS, IMC.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Interrupts: u32 {
        /// Transmit descriptor written back.
        const TXDW = 1 << 0;
        /// Transmit queue empty.
        const TXQE = 1 << 1;
        /// Link status change.
        const LSC = 1 << 2;
        /// Free receive descriptors below the threshold.
        const RXDMT0 = 1 << 4;
        /// Receiver overrun.
        const RXO = 1 << 6;
        /// Receive timer: descriptors were written back.
        const RXT0 = 1 << 7;
        const _ = !0;
    }

    /// RCTL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rctl: u32 {
        /// Receiver enable.
        const EN = 1 << 1;
        /// Unicast promiscuous.
        const UPE = 1 << 3;
        /// Multicast promiscuous.
        const MPE = 1 << 4;
        /// Packets above 1522 bytes are accepted.
        const LPE = 1 << 5;
        /// Broadcasts are accepted.
        const BAM = 1 << 15;
        /// The FCS is taken off.
        const SECRC = 1 << 26;
        // BSIZE = 0, BSEX = 0: buffers of 2048 bytes. MO = 0: bits 47:36 of the address index the multicast table.
    }

    /// TCTL without its fields.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Tctl: u32 {
        /// Transmitter enable.
        const EN = 1 << 1;
        /// Short packets are padded.
        const PSP = 1 << 3;
        /// Re-transmit on late collision.
        const RTLC = 1 << 24;
        const _ = !0;
    }

    /// RXCSUM.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rxcsum: u32 {
        /// IP checksum is checked.
        const IPOFL = 1 << 8;
        /// TCP and UDP checksums are checked.
        const TUOFL = 1 << 9;
    }
}

/// TCTL.CT: attempts before giving up, as 802.3 says.
pub const TCTL_CT: u32 = 0x0f << 4;
/// TCTL.COLD in byte times, full duplex.
pub const TCTL_COLD_FULL: u32 = 0x40 << 12;
/// TCTL.COLD, half duplex.
pub const TCTL_COLD_HALF: u32 = 0x200 << 12;
/// TIPG for copper: IPGT 8, IPGR1 8, IPGR2 6.
pub const TIPG_COPPER: u32 = 0x0060_2008;

/// EERD.START.
pub const EERD_START: u32 = 1 << 0;
/// EERD.DONE.
pub const EERD_DONE: u32 = 1 << 4;
/// Shift of EERD.ADDR.
pub const EERD_ADDR_SHIFT: u32 = 8;
/// Shift of EERD.DATA.
pub const EERD_DATA_SHIFT: u32 = 16;

/// RAH.AV: the pair is in use.
pub const RAH_AV: u32 = 1 << 31;
