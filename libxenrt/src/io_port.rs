//! I/O ports the bundle gave to this domain (`abi::bundle::Ports`): the control domain's serial line.

/// A run of byte-wide ports. An access outside of the run reads all ones and writes nothing; one to a run that the
/// hypervisor did not give ends the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoPorts {
    first: u16,
    count: u16,
}

impl IoPorts {
    /// The ports `first..first + count`.
    #[must_use]
    pub const fn new(first: u16, count: u16) -> Self {
        Self { first, count }
    }

    fn at(self, offset: u16) -> Option<u16> {
        if offset < self.count { self.first.checked_add(offset) } else { None }
    }

    /// Reads a byte from the port at `offset`.
    #[must_use]
    pub fn read8(self, offset: u16) -> u8 {
        self.at(offset).map_or(u8::MAX, raw::read)
    }

    /// Writes a byte to the port at `offset`.
    pub fn write8(self, offset: u16, value: u8) {
        if let Some(port) = self.at(offset) {
            raw::write(port, value);
        }
    }
}

#[cfg(target_os = "none")]
mod raw {
    use x86_64::instructions::port::Port;

    pub fn read(port: u16) -> u8 {
        // SAFETY: I9 – a port of this domain or the end of it; either way no memory of Rust's is touched.
        unsafe { Port::new(port).read() }
    }
    pub fn write(port: u16, value: u8) {
        // SAFETY: I9 – as above.
        unsafe { Port::new(port).write(value) }
    }
}

/// No ports on the host.
#[cfg(not(target_os = "none"))]
mod raw {
    pub const fn read(_port: u16) -> u8 {
        u8::MAX
    }
    pub const fn write(_port: u16, _value: u8) {}
}
