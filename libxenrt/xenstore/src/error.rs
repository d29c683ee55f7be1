//! Errors travel by name (`xsd_errors[]` in `public/io/xs_wire.h`): the payload of an `XS_ERROR` reply is the name and a NUL.

macro_rules! errors {
    ($($(#[$m:meta])* $variant:ident = $name:literal,)*) => {
        /// What a store answers instead of a result.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum XsError {
            $($(#[$m])* $variant,)*
            /// A name this list does not hold.
            Unknown,
        }

        impl XsError {
            /// The name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* Self::Unknown => "EIO" }
            }
            /// The error behind the payload of an `XS_ERROR` reply.
            #[must_use]
            pub fn from_payload(payload: &[u8]) -> Self {
                let name = payload.strip_suffix(&[0]).unwrap_or(payload);
                $(if name == $name.as_bytes() { return Self::$variant; })*
                Self::Unknown
            }
            /// Every error with a name.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
        }
    };
}

errors! {
    /// Malformed request.
    Inval = "EINVAL",
    /// The caller's domain may not.
    Acces = "EACCES",
    /// Already there.
    Exist = "EEXIST",
    /// Is a directory.
    IsDir = "EISDIR",
    /// No such node, watch or transaction.
    NoEnt = "ENOENT",
    /// Out of memory.
    NoMem = "ENOMEM",
    /// A quota is used up.
    NoSpc = "ENOSPC",
    /// I/O error.
    Io = "EIO",
    /// Not empty.
    NotEmpty = "ENOTEMPTY",
    /// The operation is not known.
    NoSys = "ENOSYS",
    /// Read-only.
    RoFs = "EROFS",
    /// Busy.
    Busy = "EBUSY",
    /// The transaction conflicts with another: begin again.
    Again = "EAGAIN",
    /// Already connected.
    IsConn = "EISCONN",
    /// The answer does not fit a message.
    TooBig = "E2BIG",
    /// Not permitted.
    Perm = "EPERM",
}

impl core::fmt::Display for XsError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire_with_and_without_nul() {
        for &e in XsError::ALL {
            let mut payload = e.name().as_bytes().to_vec();
            assert_eq!(XsError::from_payload(&payload), e);
            payload.push(0);
            assert_eq!(XsError::from_payload(&payload), e);
        }
        assert_eq!(XsError::from_payload(b"EWHAT\0"), XsError::Unknown);
    }
}
