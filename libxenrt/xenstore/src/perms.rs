//! Permissions of a node: a list of (access, domain); the first entry names the owner and what everybody not listed may do.

use abi::DomId;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `n`
    None,
    /// `r`
    Read,
    /// `w`
    Write,
    /// `b`: both.
    Both,
}

impl Access {
    /// Whether reading is included.
    #[must_use]
    pub const fn reads(self) -> bool {
        matches!(self, Self::Read | Self::Both)
    }
    /// Whether writing is included.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Both)
    }
    const fn letter(self) -> char {
        match self {
            Self::None => 'n',
            Self::Read => 'r',
            Self::Write => 'w',
            Self::Both => 'b',
        }
    }
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Perm {
    /// What.
    pub access: Access,
    /// Who.
    pub domid: DomId,
}

/// Why a permission list was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermsError {
    /// No entry at all.
    Empty,
    /// More than [`Perms::MAX`].
    TooMany,
    /// Entry `index` is not a letter of `rwbn` and a domain number.
    BadEntry {
        /// Which.
        index: usize,
    },
}

/// A node's permissions; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Perms(Vec<Perm>);

impl Perms {
    /// Most entries of a list.
    pub const MAX: usize = 16;

    /// Owner only.
    #[must_use]
    pub fn owned_by(domid: DomId) -> Self {
        Self(alloc::vec![Perm { access: Access::None, domid }])
    }

    /// An owner, and what everybody else may do.
    #[must_use]
    pub fn single(perm: Perm) -> Self {
        Self(alloc::vec![perm])
    }

    /// Reads `n0,r2` (configuration) or `n0\0r2\0` (wire), separated by `separator`; one at the end is ignored.
    ///
    /// # Errors
    /// See [`PermsError`].
    pub fn parse(text: &[u8], separator: u8) -> Result<Self, PermsError> {
        let text = text.strip_suffix(&[separator]).unwrap_or(text);
        if text.is_empty() {
            return Err(PermsError::Empty);
        }
        let mut list = Vec::new();
        for (index, entry) in text.split(|&b| b == separator).enumerate() {
            if index >= Self::MAX {
                return Err(PermsError::TooMany);
            }
            list.push(Self::entry(entry).ok_or(PermsError::BadEntry { index })?);
        }
        Ok(Self(list))
    }

    fn entry(entry: &[u8]) -> Option<Perm> {
        let (&letter, number) = entry.split_first()?;
        let access = match letter {
            b'n' => Access::None,
            b'r' => Access::Read,
            b'w' => Access::Write,
            b'b' => Access::Both,
            _ => return None,
        };
        if !number.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let domid = DomId(core::str::from_utf8(number).ok()?.parse().ok()?);
        (domid < DomId::FIRST_RESERVED).then_some(Perm { access, domid })
    }

    /// The list as text, each entry followed (`terminate`) or separated by `separator`.
    #[must_use]
    pub fn to_text(&self, separator: char, terminate: bool) -> String {
        let mut text = String::new();
        for (i, perm) in self.0.iter().enumerate() {
            if i > 0 && !terminate {
                text.push(separator);
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "{}{}", perm.access.letter(), perm.domid);
            if terminate {
                text.push(separator);
            }
        }
        text
    }

    /// The owner: the first entry's domain.
    #[must_use]
    pub fn owner(&self) -> DomId {
        self.0.first().map_or(DomId::CONTROL, |p| p.domid)
    }

    /// The same list with another owner.
    #[must_use]
    pub fn with_owner(mut self, domid: DomId) -> Self {
        if let Some(first) = self.0.first_mut() {
            first.domid = domid;
        }
        self
    }

    /// What `domid` may do. The control domain and the owner may do everything, a listed domain what its entry says,
    /// all others what the first entry says.
    #[must_use]
    pub fn access(&self, domid: DomId) -> Access {
        if domid == DomId::CONTROL || domid == self.owner() {
            return Access::Both;
        }
        let listed = self.0.iter().skip(1).find(|p| p.domid == domid);
        listed.or(self.0.first()).map_or(Access::None, |p| p.access)
    }

    /// The entries.
    #[must_use]
    pub fn entries(&self) -> &[Perm] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn access_follows_owner_list_and_default() {
        let p = Perms::parse(b"r1,n2,b3", b',').unwrap();
        assert_eq!(p.access(DomId(1)), Access::Both);
        assert_eq!(p.access(DomId(0)), Access::Both);
        assert_eq!(p.access(DomId(2)), Access::None);
        assert_eq!(p.access(DomId(3)), Access::Both);
        assert_eq!(p.access(DomId(4)), Access::Read);
    }

    #[test]
    fn defects_are_named() {
        assert_eq!(Perms::parse(b"", 0), Err(PermsError::Empty));
        assert_eq!(Perms::parse(b"n0,x1", b','), Err(PermsError::BadEntry { index: 1 }));
        assert_eq!(Perms::parse(b"n+1", b','), Err(PermsError::BadEntry { index: 0 }));
        assert_eq!(Perms::parse(b"n32752", b','), Err(PermsError::BadEntry { index: 0 }));
        assert_eq!(Perms::parse(&b"n0,".repeat(17), b','), Err(PermsError::TooMany));
    }

    fn perms() -> impl Strategy<Value = Perms> {
        let access = prop_oneof![Just(Access::None), Just(Access::Read), Just(Access::Write), Just(Access::Both)];
        let entry = (access, 0u16..0x7FF0).prop_map(|(access, d)| Perm { access, domid: DomId(d) });
        proptest::collection::vec(entry, 1..=Perms::MAX).prop_map(Perms)
    }

    proptest! {
        #[test]
        fn text_round_trips(p in perms()) {
            prop_assert_eq!(Perms::parse(p.to_text('\0', true).as_bytes(), 0).unwrap(), p.clone());
            prop_assert_eq!(Perms::parse(p.to_text(',', false).as_bytes(), b',').unwrap(), p);
        }
        #[test]
        fn no_input_panics(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Perms::parse(&raw, 0);
            let _ = Perms::parse(&raw, b',');
        }
    }
}
