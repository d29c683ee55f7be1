//! Descriptors as four little-endian 32-bit words, in the form that the ring's memory holds.
//!
//! Source: SDM 317453, section 3.2.3 (receive), 3.3.3 (legacy transmit, not used), 3.3.6 (TCP/IP context), 3.3.7 (TCP/IP
//! data), 3.5 (segmentation), 3.6 (checksum offload). The golden values in the tests are worked out by hand from these tables.

use netback::nic::{Checksum, Gso, GsoKind};

/// Bytes of any descriptor.
pub const SIZE: usize = 16;
/// Words of any descriptor.
pub type Words = [u32; 4];

/// Bytes of the Ethernet header in front of IP: what is segmented carries no VLAN tag (see `netback::nic`).
const ETHERNET_HEADER: u32 = 14;

/// DCMD/TUCMD bits, as they stand in word 2.
mod cmd {
    /// Data: end of packet. Context: TCP, not UDP.
    pub const EOP: u32 = 1 << 24;
    pub const TCP: u32 = 1 << 24;
    /// Data: insert the FCS. Context: IPv4, not IPv6.
    pub const IFCS: u32 = 1 << 25;
    pub const IP: u32 = 1 << 25;
    /// Segment.
    pub const TSE: u32 = 1 << 26;
    /// Report status.
    pub const RS: u32 = 1 << 27;
    /// Extended descriptor.
    pub const DEXT: u32 = 1 << 29;
    /// Interrupt may be delayed.
    pub const IDE: u32 = 1 << 31;
    /// DTYP of a data descriptor (a context has 0).
    pub const DTYP_DATA: u32 = 1 << 20;
}

/// RS of a data descriptor's word 2.
pub const TX_RS: u32 = cmd::RS;
/// STA.DD of word 3.
pub const TX_DD: u32 = 1 << 0;
/// STA: excess collisions, late collision.
pub const TX_ERRORS: u32 = 0b110;
/// All of STA and the reserved bits beside it: what the device may change in word 3.
pub const TX_STA_MASK: u32 = 0xff;
/// POPTS.IXSM in word 3.
const POPTS_IXSM: u32 = 1 << 8;
/// POPTS.TXSM in word 3.
const POPTS_TXSM: u32 = 1 << 9;

/// A TCP/IP context descriptor (3.3.6): how checksums and segments of the data descriptors after it are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    words: Words,
}

impl Context {
    /// For one checksum. `None` where the field lies beyond byte 255 or before its sum's start.
    #[must_use]
    pub fn checksum(sum: Checksum) -> Option<Self> {
        let tucss = u8::try_from(sum.start).ok()?;
        let tucso = u8::try_from(sum.start.checked_add(sum.offset)?).ok()?;
        let tcp = if sum.offset == 16 { cmd::TCP } else { 0 };
        Some(Self { words: [0, u32::from(tucss) | u32::from(tucso) << 8, cmd::DEXT | tcp, 0] })
    }

    /// For segments of a frame of `frame_len` bytes. `None` where the headers contradict each other or the device's fields, and for IPv6,
    /// which is not given to this device (`lib.rs`, `caps`).
    #[must_use]
    pub fn segmentation(sum: Checksum, gso: Gso, frame_len: u32) -> Option<Self> {
        let tucss = u8::try_from(sum.start).ok()?;
        let tucso = u8::try_from(sum.start.checked_add(sum.offset)?).ok()?;
        let hdrlen = u8::try_from(gso.header_len).ok()?;
        let payload = frame_len.checked_sub(u32::from(hdrlen))?;
        let network_len = u32::from(tucss).checked_sub(ETHERNET_HEADER)?;
        // At least an IP header before the TCP header, a TCP header behind it, payload, and a length of 20 bits.
        let sane = gso.kind == GsoKind::TcpV4
            && sum.offset == 16
            && network_len >= 20
            && u32::from(hdrlen).checked_sub(u32::from(tucss)).is_some_and(|tcp| tcp >= 20)
            && gso.mss > 0
            && payload > 0
            && payload < 1 << 20;
        if !sane {
            return None;
        }
        let (ipcso, ipcse) = (ETHERNET_HEADER.saturating_add(10), u32::from(tucss).saturating_sub(1));
        Some(Self {
            words: [
                ETHERNET_HEADER | ipcso << 8 | ipcse << 16,
                u32::from(tucss) | u32::from(tucso) << 8,
                payload | cmd::DEXT | cmd::TSE | cmd::TCP | cmd::IP,
                u32::from(hdrlen) << 8 | u32::from(gso.mss) << 16,
            ],
        })
    }

    /// As the ring holds it.
    #[must_use]
    pub const fn words(&self) -> Words {
        self.words
    }
}

/// What the data descriptors of one frame have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Insert the TCP or UDP checksum of the context.
    pub checksum: bool,
    /// Cut as the context says, and make the IPv4 header's sum of each segment.
    pub segment: bool,
}

/// A TCP/IP data descriptor (3.3.7) of `len` bytes at `addr`. Status is reported where [`TX_RS`] is added to word 2.
#[must_use]
pub fn data(addr: u64, len: u32, offload: Offload, end: bool) -> Words {
    let mut command = cmd::DEXT | cmd::DTYP_DATA | cmd::IFCS | cmd::IDE;
    let mut popts = 0;
    if offload.checksum {
        popts |= POPTS_TXSM;
    }
    if offload.segment {
        command |= cmd::TSE;
        popts |= POPTS_IXSM;
    }
    if end {
        command |= cmd::EOP;
    }
    [addr as u32, (addr >> 32) as u32, command | len & 0xf_ffff, popts]
}

/// An empty receive descriptor (3.2.3): the buffer's address, everything the device writes zero.
#[must_use]
pub const fn receive(addr: u64) -> Words {
    [addr as u32, (addr >> 32) as u32, 0, 0]
}

/// STA.DD of a receive descriptor's word 3.
pub const RX_DD: u32 = 1 << 0;

/// What the device wrote into words 2 and 3 of a receive descriptor; not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes.
    pub len: u32,
    /// Last of its frame.
    pub end: bool,
    /// TCP or UDP checksum was looked at and is good.
    pub checksum_ok: bool,
    /// CRC, symbol, sequence or data error.
    pub error: bool,
}

impl Received {
    /// Takes the words apart (Tables 3-2 to 3-4).
    #[must_use]
    pub const fn from_words(word2: u32, word3: u32) -> Self {
        const EOP: u32 = 1 << 1;
        const IXSM: u32 = 1 << 2;
        const TCPCS: u32 = 1 << 5;
        const CE_SE_SEQ_RXE: u32 = (1 << 0 | 1 << 1 | 1 << 2 | 1 << 7) << 8;
        const TCPE_IPE: u32 = (1 << 5 | 1 << 6) << 8;
        Self {
            len: word2 & 0xffff,
            end: word3 & EOP != 0,
            checksum_ok: word3 & IXSM == 0 && word3 & TCPCS != 0 && word3 & TCPE_IPE == 0,
            error: word3 & CE_SE_SEQ_RXE != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_context_of_tcp_over_ipv4() {
        // TUCSS = 34, TUCSO = 34 + 16 = 50 = 0x32, TUCSE = 0; TUCMD = DEXT | TCP = 0x21; DTYP = 0.
        let c = Context::checksum(Checksum { start: 34, offset: 16 }).unwrap();
        assert_eq!(c.words(), [0, 0x0000_3222, 0x2100_0000, 0]);
        // UDP over IPv6: TUCSS = 54 = 0x36, TUCSO = 60 = 0x3c, TUCMD = DEXT.
        let c = Context::checksum(Checksum { start: 54, offset: 6 }).unwrap();
        assert_eq!(c.words(), [0, 0x0000_3c36, 0x2000_0000, 0]);
        assert_eq!(Context::checksum(Checksum { start: 250, offset: 16 }), None);
        assert_eq!(Context::checksum(Checksum { start: 300, offset: 6 }), None);
    }

    #[test]
    fn segmentation_context_of_ipv4() {
        // 14 + 20 + 32 = 66 bytes of headers, 4 * 1448 payload = 5792 = 0x16a0.
        let gso = Gso { kind: GsoKind::TcpV4, mss: 1448, header_len: 66 };
        let c = Context::segmentation(Checksum { start: 34, offset: 16 }, gso, 66 + 5792).unwrap();
        // IPCSS 14 = 0x0e, IPCSO 24 = 0x18, IPCSE 33 = 0x21; TUCMD = DEXT | TSE | IP | TCP = 0x27;
        // HDRLEN 66 = 0x42, MSS 1448 = 0x5a8.
        assert_eq!(c.words(), [0x0021_180e, 0x0000_3222, 0x2700_16a0, 0x05a8_4200]);
    }

    #[test]
    fn impossible_segmentation_is_refused() {
        let sum = Checksum { start: 34, offset: 16 };
        let ok = Gso { kind: GsoKind::TcpV4, mss: 1448, header_len: 66 };
        assert!(Context::segmentation(sum, ok, 67).is_some());
        for (sum, gso, len) in [
            (sum, Gso { mss: 0, ..ok }, 3000),
            (sum, Gso { header_len: 53, ..ok }, 3000),
            (sum, Gso { header_len: 256, ..ok }, 3000),
            (Checksum { start: 54, offset: 16 }, Gso { kind: GsoKind::TcpV6, mss: 1440, header_len: 74 }, 3000),
            (Checksum { start: 33, offset: 16 }, ok, 3000),
            (Checksum { start: 10, offset: 16 }, ok, 3000),
            (Checksum { start: 34, offset: 6 }, ok, 3000),
            (sum, ok, 66),
            (sum, ok, 65),
            (sum, ok, 66 + (1 << 20)),
        ] {
            assert_eq!(Context::segmentation(sum, gso, len), None, "{sum:?} {gso:?} {len}");
        }
    }

    #[test]
    fn data_descriptors() {
        let addr = 0x1_2345_6780;
        // DCMD = IDE | DEXT | IFCS (| EOP), DTYP = 1.
        assert_eq!(data(addr, 1514, Offload::default(), true), [0x2345_6780, 1, 0xa310_05ea, 0]);
        assert_eq!(data(addr, 1514, Offload::default(), false), [0x2345_6780, 1, 0xa210_05ea, 0]);
        let sum = Offload { checksum: true, segment: false };
        assert_eq!(data(addr, 60, sum, true), [0x2345_6780, 1, 0xa310_003c, 0x200]);
        let cut = Offload { checksum: true, segment: true };
        assert_eq!(data(addr, 4096, cut, false), [0x2345_6780, 1, 0xa610_1000, 0x300]);
        assert_eq!(data(addr, 4096, cut, true), [0x2345_6780, 1, 0xa710_1000, 0x300]);
    }

    #[test]
    fn receive_write_back() {
        assert_eq!(receive(0x1_0000_0800), [0x800, 1, 0, 0]);
        let r = Received::from_words(0xbeef_05ea, 0x0000_0023);
        assert_eq!(r, Received { len: 1514, end: true, checksum_ok: true, error: false });
        assert!(!Received::from_words(60, 0x27).checksum_ok, "IXSM: the device did not look");
        assert!(!Received::from_words(60, 0x2023).checksum_ok, "TCPE");
        assert!(Received::from_words(60, 0x0103).error, "CE");
        assert!(Received::from_words(60, 0x8003).error, "RXE");
        assert!(!Received::from_words(60, 0x2003).error, "a bad TCP checksum is the receiver's to judge");
    }
}
