//! Error numbers of hypercalls (`public/errno.h`), returned negated in RAX.

macro_rules! errnos {
    ($($(#[$m:meta])* $name:ident = $val:expr;)*) => {
        /// An error a hypercall answers. The numbers are Xen's (which are Linux's).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Errno { $($(#[$m])* $name = $val,)* }

        impl Errno {
            /// The error behind a negative hypercall return; `None` for success or a number we do not know.
            #[must_use]
            pub const fn from_return(rax: i64) -> Option<Self> {
                match rax.wrapping_neg() { $($val => Some(Self::$name),)* _ => None }
            }
            /// The specification's name, for messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1;
    /// No such entity.
    ENOENT = 2;
    /// No such process; in Xen: no such domain.
    ESRCH = 3;
    /// Interrupted.
    EINTR = 4;
    /// I/O error.
    EIO = 5;
    /// No such device.
    ENXIO = 6;
    /// Argument list too long.
    E2BIG = 7;
    /// Try again.
    EAGAIN = 11;
    /// Out of memory.
    ENOMEM = 12;
    /// Permission denied.
    EACCES = 13;
    /// Bad address: a guest pointer did not translate.
    EFAULT = 14;
    /// Busy.
    EBUSY = 16;
    /// Already there.
    EEXIST = 17;
    /// Crosses devices.
    EXDEV = 18;
    /// No such device.
    ENODEV = 19;
    /// Is a directory.
    EISDIR = 21;
    /// Invalid argument.
    EINVAL = 22;
    /// No space (ports, grants, quota).
    ENOSPC = 28;
    /// Read-only.
    EROFS = 30;
    /// Out of range.
    ERANGE = 34;
    /// Not implemented.
    ENOSYS = 38;
    /// Not empty.
    ENOTEMPTY = 39;
    /// No data.
    ENODATA = 61;
    /// The time has passed already.
    ETIME = 62;
    /// Not supported.
    EOPNOTSUPP = 95;
    /// Is connected.
    EISCONN = 106;
    /// Not connected.
    ENOTCONN = 107;
    /// Timed out.
    ETIMEDOUT = 110;
}

impl Errno {
    /// The value for RAX.
    #[must_use]
    pub const fn to_return(self) -> i64 {
        -(self as i32 as i64)
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_round_trips_through_rax() {
        assert_eq!(Errno::ENOSYS.to_return(), -38);
        assert_eq!(Errno::from_return(-38), Some(Errno::ENOSYS));
        assert_eq!(Errno::from_return(0), None);
        assert_eq!(Errno::from_return(i64::MIN), None);
    }
}
