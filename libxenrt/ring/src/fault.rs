//! What can be wrong with a ring: the peer's fault, ours, or a journal that does not fit. Each variant carries the value.

/// A back ring refuses to go on; the device it belongs to is closed, the others are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFault {
    /// The frontend's `req_prod` ran ahead of the ring or moved back behind what was consumed.
    BadProducer {
        /// `req_prod` as read.
        prod: u32,
        /// Requests consumed so far (private).
        cons: u32,
    },
    /// A completion for an index that is not in flight, or for the second time: the caller's fault.
    NotInFlight {
        /// The index.
        index: u32,
    },
}

/// A front ring refuses to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontFault {
    /// The backend's `rsp_prod` answers what was never asked, or moved back.
    BadProducer {
        /// `rsp_prod` as read.
        prod: u32,
        /// Responses consumed so far (private).
        cons: u32,
    },
    /// A response names an id that is not outstanding.
    BadId {
        /// The id.
        id: u32,
    },
}

/// Why a journalled attach is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// The frontend's indices make no sense: close the device.
    Fault(RingFault),
    /// The journal does not fit the ring: take this one device through a full reconnect.
    Reconnect(Mismatch),
}

/// How the survivor record and the ring disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The page holds neither "clear" nor an intact record, so any ring may have a half-written slot.
    Corrupt {
        /// The state word as read.
        state: u32,
    },
    /// The record begins elsewhere than the ring stands.
    Position {
        /// First index of the record.
        start: u32,
        /// Responses in it.
        count: u32,
        /// The ring's `rsp_prod`.
        rsp_prod: u32,
    },
    /// The record answers more than was requested, or has another shape than this ring.
    Shape {
        /// Responses in it.
        count: u32,
        /// Words of each.
        words: u32,
    },
}

impl From<RingFault> for AttachError {
    fn from(fault: RingFault) -> Self {
        Self::Fault(fault)
    }
}

impl core::fmt::Display for RingFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BadProducer { prod, cons } => write!(f, "req_prod {prod} with {cons} consumed"),
            Self::NotInFlight { index } => write!(f, "completion of {index}, which is not in flight"),
        }
    }
}

impl core::fmt::Display for FrontFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BadProducer { prod, cons } => write!(f, "rsp_prod {prod} with {cons} consumed"),
            Self::BadId { id } => write!(f, "response to {id}, which is not outstanding"),
        }
    }
}

impl core::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Corrupt { state } => write!(f, "survivor record corrupt (state word {state:#x})"),
            Self::Position { start, count, rsp_prod } => {
                write!(f, "survivor record {start}+{count} does not fit rsp_prod {rsp_prod}")
            }
            Self::Shape { count, words } => {
                write!(f, "survivor record of {count} x {words} words does not fit the ring")
            }
        }
    }
}

impl core::fmt::Display for AttachError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::Reconnect(mismatch) => mismatch.fmt(f),
        }
    }
}
