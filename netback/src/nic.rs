//! What a NIC driver gives the backend ([`Nic`]); what it needs from the domain it runs in is `hw`'s ([`Mmio`], [`DmaMemory`], [`Clock`]).
//!
//! A driver knows no grants, no xenstore and no frames: it sees device addresses and 32-bit tokens. The backend owns every
//! buffer and knows no register. Both sides are pure, so each is tested against a model of the other.
//!
//! Directions in this file are the *wire's*: transmit is towards the cable (netif's TX, the frontend's view), receive from it.
//!
//! A device is not trusted. A driver checks all that the device writes; what cannot be true becomes a sticky
//! [`NicFault`]: from then on the driver neither reports nor accepts anything until [`Nic::reset`].

use core::fmt;

pub use hw::{Clock, DmaMemory, Mmio};

/// An Ethernet address in wire order.
pub type MacAddr = [u8; 6];

/// The group bit: broadcast or multicast.
#[must_use]
pub const fn is_group(mac: &MacAddr) -> bool {
    mac[0] & 1 != 0
}

/// A contiguous run of bytes as the device addresses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Device address of the first byte.
    pub addr: u64,
    /// Bytes; 1 to [`Caps::max_segment`].
    pub len: u32,
}

/// A checksum that the device shall insert: the 16-bit one's complement sum from `start` to the end of the frame, added to
/// what the field holds (the pseudo-header's sum), goes to `start + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// First byte summed, from the start of the frame.
    pub start: u16,
    /// Where the field is, from `start`: 16 for TCP, 6 for UDP.
    pub offset: u16,
}

/// What is segmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
}

/// A frame that the device shall cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// What it is.
    pub kind: GsoKind,
    /// Payload bytes per segment, not 0.
    pub mss: u16,
    /// Bytes of Ethernet, IP and TCP header that each segment repeats.
    pub header_len: u16,
}

/// What the device shall do to a frame on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxMeta {
    /// Insert a checksum. Needed with `gso`.
    pub checksum: Option<Checksum>,
    /// Cut it. The TCP checksum field must hold the pseudo-header's sum *without* the length (unless the device says
    /// otherwise by [`Caps::gso_pseudo_with_len`]) and the IPv4 header's checksum field 0: the device makes both for each
    /// segment, as well as IP lengths, IPv4 identification, TCP sequence numbers and flags.
    pub gso: Option<Gso>,
}

/// One buffer that the device has filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxFrame {
    /// As given to [`Nic::rx_post`]; the buffer is the backend's again.
    pub token: u32,
    /// Bytes in this buffer, at most [`Caps::rx_buffer`]; without the FCS.
    pub len: u32,
    /// The last buffer of its frame. A frame larger than a buffer comes as several.
    pub end: bool,
    /// The device has checked the TCP or UDP checksum and found it good. Meaningful with `end`.
    pub checksum_ok: bool,
    /// The frame is damaged (with `end`: drop all its buffers).
    pub error: bool,
}

/// What the device can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Inserts TCP and UDP checksums over IPv4.
    pub tx_checksum_v4: bool,
    /// The same over IPv6.
    pub tx_checksum_v6: bool,
    /// Segments TCP over IPv4.
    pub tso_v4: bool,
    /// Segments TCP over IPv6.
    pub tso_v6: bool,
    /// With `gso`, the pseudo-header's sum in the TCP field must include the length, as for a frame that is not cut.
    pub gso_pseudo_with_len: bool,
    /// Reports good TCP and UDP checksums.
    pub rx_checksum: bool,
    /// Segments that one frame may have.
    pub max_segments: u16,
    /// Bytes of one segment.
    pub max_segment: u32,
    /// Bytes of one frame on the wire without the FCS.
    pub max_frame: u32,
    /// Bytes of one frame given with `gso`.
    pub max_gso: u32,
    /// Largest `header_len` with `gso`.
    pub max_gso_header: u16,
    /// Bytes that the device may write to a posted buffer.
    pub rx_buffer: u32,
}

/// State of the cable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// There is one.
    pub up: bool,
    /// Mbit/s; 0 while down.
    pub mbit: u32,
    /// Both directions at once.
    pub full_duplex: bool,
}

/// Why the device interrupted; what [`Nic::interrupt`] returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes {
    /// Buffers were filled.
    pub rx: bool,
    /// Frames were sent.
    pub tx: bool,
    /// The link changed; ask [`Nic::link`].
    pub link: bool,
    /// The device ran out of posted buffers and dropped frames.
    pub overrun: bool,
}

impl Causes {
    /// Nothing: the interrupt was another device's, or an earlier poll has served it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        !(self.rx || self.tx || self.link || self.overrun)
    }
}

/// Which frames the device takes from the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxFilter<'a> {
    /// All unicast frames. The uplink of a switch needs it when `unicast` does not fit.
    pub promiscuous: bool,
    /// Addresses besides the device's own.
    pub unicast: &'a [MacAddr],
    /// All multicast frames.
    pub all_multicast: bool,
    /// Groups; filters may be coarse (a hash).
    pub multicast: &'a [MacAddr],
}

/// Counters since the driver was made; a reset does not clear them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicStats {
    /// Good frames received.
    pub rx_frames: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Multicast and broadcast frames among them.
    pub rx_group: u64,
    /// Frames with a bad FCS, length, symbol or alignment.
    pub rx_errors: u64,
    /// Frames dropped for want of buffers.
    pub rx_missed: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Frames given up (excessive or late collisions, no carrier).
    pub tx_errors: u64,
    /// Resets made by [`Nic::reset`].
    pub resets: u64,
    /// Interrupts served.
    pub interrupts: u64,
}

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxError {
    /// Not enough descriptors now; retry after [`Nic::tx_done`].
    Full,
    /// No segment, too many, or one of length 0 or above [`Caps::max_segment`]; holds the count.
    BadSegments(usize),
    /// The frame's bytes are outside of what the device sends.
    BadLength(u32),
    /// The checksum's place lies outside of the frame or of what the device can be told.
    BadChecksum(Checksum),
    /// The segmentation is impossible: mss 0, header longer than the frame or than the device's limit, no checksum.
    BadGso(Gso),
    /// The device is faulty or not yet reset.
    Faulty,
}

/// Why a buffer was not posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxError {
    /// Not enough descriptors now.
    Full,
    /// The device cannot address it or reads this address as "no buffer".
    BadAddress(u64),
    /// The device is faulty or not yet reset.
    Faulty,
}

/// What a device did that it cannot do; what makes a driver stop until [`Nic::reset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicFault {
    /// A filled buffer's length is 0 or above what it was told to write.
    RxLength {
        /// Index of the descriptor.
        index: u16,
        /// As written back.
        len: u32,
    },
    /// A frame went on over more buffers than the largest frame needs.
    RxEndless {
        /// Index of the descriptor.
        index: u16,
    },
    /// A read-only part of a descriptor was changed.
    Descriptor {
        /// Index of the descriptor.
        index: u16,
        /// Word as found.
        found: u32,
        /// Word as left by the driver.
        expected: u32,
    },
    /// The device's own idea of the ring lies outside of it, or of what it was given.
    Head {
        /// Register as read.
        head: u32,
        /// Descriptors of the ring.
        len: u16,
    },
    /// All ones from a register: the device has gone from the bus.
    Gone,
    /// Descriptors given to it were not sent for too long.
    TxHung {
        /// Descriptors in flight.
        in_flight: u16,
    },
}

impl fmt::Display for NicFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RxLength { index, len } => write!(f, "receive descriptor {index} says {len} bytes"),
            Self::RxEndless { index } => write!(f, "a frame does not end at receive descriptor {index}"),
            Self::Descriptor { index, found, expected } => {
                write!(f, "descriptor {index} was changed from {expected:#x} to {found:#x}")
            }
            Self::Head { head, len } => write!(f, "head register says {head} of a ring of {len}"),
            Self::Gone => write!(f, "the device does not answer"),
            Self::TxHung { in_flight } => write!(f, "{in_flight} transmit descriptors are not served"),
        }
    }
}

/// Why a reset did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetError {
    /// The device did not come out of it in time.
    Timeout {
        /// Microseconds waited.
        waited_us: u64,
    },
    /// The device does not answer.
    Gone,
    /// The station address is unusable (all zero or a group address).
    BadMac(MacAddr),
    /// The rings' memory does not suit the device.
    BadMemory {
        /// Device address.
        addr: u64,
        /// Bytes.
        len: usize,
    },
    /// More resets than the driver allows in a row; the domain should crash and be restarted.
    TooMany(u32),
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { waited_us } => write!(f, "no end of reset within {waited_us} us"),
            Self::Gone => write!(f, "the device does not answer"),
            Self::BadMac(m) => {
                write!(
                    f,
                    "unusable station address {:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
                    m[0], m[1], m[2], m[3], m[4], m[5]
                )
            }
            Self::BadMemory { addr, len } => write!(f, "{len} bytes at {addr:#x} cannot hold the rings"),
            Self::TooMany(n) => write!(f, "{n} resets without a frame in between"),
        }
    }
}

/// A NIC. Calls never block; none loops longer than a ring. See the module's head for faults.
pub trait Nic {
    /// Station address.
    fn mac(&self) -> MacAddr;

    /// What it can do; constant.
    fn caps(&self) -> Caps;

    /// State of the cable, read from the device.
    fn link(&mut self) -> Link;

    /// Segments that the next frame may have, whatever its [`TxMeta`]: a frame of no more is not refused as
    /// [`TxError::Full`]. 0 = none fits.
    fn tx_room(&self) -> usize;

    /// Queues a frame; the device learns of it by [`Nic::tx_flush`]. The segments must stay readable until
    /// [`Nic::tx_done`] returns `token`. Frames complete in order.
    ///
    /// # Errors
    /// Nothing was queued, see [`TxError`].
    fn tx(&mut self, segments: &[Segment], meta: &TxMeta, token: u32) -> Result<(), TxError>;

    /// Tells the device of all that was queued since the last call (one register write, none where there is nothing).
    fn tx_flush(&mut self);

    /// Token of the next completed frame, in order; its segments are the backend's again.
    fn tx_done(&mut self) -> Option<u32>;

    /// Buffers that can be posted now.
    fn rx_room(&self) -> usize;

    /// Queues an empty buffer of [`Caps::rx_buffer`] bytes; the device learns of it by [`Nic::rx_flush`].
    ///
    /// # Errors
    /// Nothing was queued, see [`RxError`].
    fn rx_post(&mut self, addr: u64, token: u32) -> Result<(), RxError>;

    /// Tells the device of all buffers posted since the last call.
    fn rx_flush(&mut self);

    /// The next filled buffer, in order.
    fn rx_poll(&mut self) -> Option<RxFrame>;

    /// Reads and acknowledges the interrupt's causes; a level-triggered line is low afterwards. Work may be there without a
    /// cause and a cause without work: poll both rings after it.
    fn interrupt(&mut self) -> Causes;

    /// Lets the device interrupt, or not. After enabling, poll both rings once more before sleeping.
    fn interrupts_enable(&mut self, on: bool);

    /// Replaces the receive filter. Registers that would not change are not written.
    fn set_receive_filter(&mut self, filter: &RxFilter<'_>);

    /// Counters; reads the device's, so seldom.
    fn stats(&mut self) -> NicStats;

    /// The fault that stopped the driver, until a reset clears it.
    fn fault(&self) -> Option<NicFault>;

    /// Stops, resets and starts the device (MAC only: the PHY's link stays up). Every queued frame and posted buffer is
    /// forgotten: no token given before is reported afterwards, and all buffers are the backend's again. The filter and the
    /// interrupt enable are restored.
    ///
    /// # Errors
    /// The device is silent and stays so, see [`ResetError`]; the domain should end itself to be restarted.
    fn reset(&mut self) -> Result<(), ResetError>;

    /// Fault injection (crash kind `dma`): makes the device read from and write to `addr`, which the caller knows not to
    /// be its own. The driver is unusable afterwards.
    fn point_dma_at(&mut self, addr: u64);
}
