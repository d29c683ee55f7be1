//! Frame numbers, one type per address space, so that a guest's number is never used to reach memory. All count 4 KiB pages.

use abi::PAGE_SHIFT;

macro_rules! frame {
    ($(#[$m:meta])* $name:ident) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The frame that holds byte address `addr`.
            pub const fn containing(addr: u64) -> Self {
                Self(addr >> PAGE_SHIFT)
            }
            /// Address of the frame's first byte, cut to 64 bits: for frames that are known to exist.
            pub const fn addr(self) -> u64 {
                self.0 << PAGE_SHIFT
            }
            /// The frame `pages` further on.
            pub const fn checked_add(self, pages: u64) -> Option<Self> {
                match self.0.checked_add(pages) {
                    Some(n) => Some(Self(n)),
                    None => None,
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

frame!(
    /// A frame of one domain's guest-physical memory.
    Gfn
);
frame!(
    /// A frame of the machine.
    Mfn
);
frame!(
    /// A frame of the address space an assigned device sees.
    Dfn
);
