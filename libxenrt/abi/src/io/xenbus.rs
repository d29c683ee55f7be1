//! XenBus states (`public/io/xenbus.h`).

/// The state node of either end of a split driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum XenbusState {
    /// Not known, or the node is gone.
    Unknown = 0,
    /// Starting.
    Initialising = 1,
    /// Finished early initialisation, waits for the peer.
    InitWait = 2,
    /// Initialised, waits for a connection.
    Initialised = 3,
    /// Connected.
    Connected = 4,
    /// Closing down.
    Closing = 5,
    /// Closed.
    Closed = 6,
    /// Reconfiguring.
    Reconfiguring = 7,
    /// Reconfigured.
    Reconfigured = 8,
}

impl XenbusState {
    /// Reads the decimal text of a state node; anything else is `Unknown`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.trim() {
            "1" => Self::Initialising,
            "2" => Self::InitWait,
            "3" => Self::Initialised,
            "4" => Self::Connected,
            "5" => Self::Closing,
            "6" => Self::Closed,
            "7" => Self::Reconfiguring,
            "8" => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }
    /// The text of the node.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "0",
            Self::Initialising => "1",
            Self::InitWait => "2",
            Self::Initialised => "3",
            Self::Connected => "4",
            Self::Closing => "5",
            Self::Closed => "6",
            Self::Reconfiguring => "7",
            Self::Reconfigured => "8",
        }
    }
}
