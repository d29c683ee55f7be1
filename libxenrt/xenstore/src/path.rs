//! Paths: checked once where they enter, then only passed as [`Path`].

use abi::DomId;
use abi::io::xs_wire::{ABS_PATH_MAX, REL_PATH_MAX};
use alloc::format;
use alloc::string::String;

/// Why a path was refused (`docs/misc/xenstore.txt`, "Xenstore path").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// Nothing there.
    Empty,
    /// Longer than `XENSTORE_ABS_PATH_MAX` or `XENSTORE_REL_PATH_MAX`.
    TooLong {
        /// Bytes.
        len: usize,
    },
    /// A byte that is neither alphanumeric nor one of `-`, `/`, `_`, `@`.
    BadByte {
        /// The byte.
        byte: u8,
        /// Its place.
        at: usize,
    },
    /// Two slashes in a row, or one at the end.
    EmptyComponent {
        /// Place of the slash.
        at: usize,
    },
}

impl core::fmt::Display for PathError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Empty => f.write_str("empty path"),
            Self::TooLong { len } => write!(f, "path of {len} bytes is too long"),
            Self::BadByte { byte, at } => write!(f, "byte {byte:#04x} at {at} is not allowed in a path"),
            Self::EmptyComponent { at } => write!(f, "empty path component at {at}"),
        }
    }
}

/// An absolute path without a trailing slash (except the root, `/`), or a special name such as `@introduceDomain`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(String);

/// Checks characters, slashes and length, without saying where a relative path begins.
///
/// # Errors
/// The first defect, see [`PathError`].
pub fn check(path: &[u8]) -> Result<&str, PathError> {
    let first = *path.first().ok_or(PathError::Empty)?;
    let max = if first == b'/' { ABS_PATH_MAX } else { REL_PATH_MAX };
    if path.len() > max {
        return Err(PathError::TooLong { len: path.len() });
    }
    let mut slash = false;
    for (at, &byte) in path.iter().enumerate() {
        if !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_' | b'@')) {
            return Err(PathError::BadByte { byte, at });
        }
        if byte == b'/' && slash {
            return Err(PathError::EmptyComponent { at });
        }
        slash = byte == b'/';
    }
    if slash && path.len() > 1 {
        return Err(PathError::EmptyComponent { at: path.len().saturating_sub(1) });
    }
    // All bytes are ASCII here.
    core::str::from_utf8(path).map_err(|e| PathError::BadByte { byte: 0, at: e.valid_up_to() })
}

impl Path {
    /// The root.
    #[must_use]
    pub fn root() -> Self {
        Self(String::from("/"))
    }

    /// A path as `domid` wrote it: absolute, or relative to `/local/domain/DOMID`.
    ///
    /// # Errors
    /// See [`PathError`]; special names (`@…`) are no paths here.
    pub fn resolve(path: &[u8], domid: DomId) -> Result<Self, PathError> {
        let text = check(path)?;
        if text.starts_with('@') {
            return Err(PathError::BadByte { byte: b'@', at: 0 });
        }
        if text.starts_with('/') {
            return Ok(Self(String::from(text)));
        }
        let absolute = format!("/local/domain/{domid}/{text}");
        if absolute.len() > ABS_PATH_MAX {
            return Err(PathError::TooLong { len: absolute.len() });
        }
        Ok(Self(absolute))
    }

    /// An absolute path.
    ///
    /// # Errors
    /// See [`PathError`]; a relative path is [`PathError::Empty`] of its root.
    pub fn absolute(path: &str) -> Result<Self, PathError> {
        let text = check(path.as_bytes())?;
        if !text.starts_with('/') {
            return Err(PathError::EmptyComponent { at: 0 });
        }
        Ok(Self(String::from(text)))
    }

    /// What a watch may name: a path, or `@introduceDomain` and the like.
    ///
    /// # Errors
    /// See [`PathError`].
    pub fn watchable(path: &[u8], domid: DomId) -> Result<Self, PathError> {
        if path.first() == Some(&b'@') {
            return check(path).map(|text| Self(String::from(text)));
        }
        Self::resolve(path, domid)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// Whether this is a special name (`@…`).
    #[must_use]
    pub fn is_special(&self) -> bool {
        self.0.starts_with('@')
    }

    /// The names on the way from the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// The directory this lies in; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() || self.is_special() {
            return None;
        }
        match self.0.rfind('/') {
            Some(0) | None => Some(Self::root()),
            Some(at) => self.0.get(..at).map(|p| Self(String::from(p))),
        }
    }

    /// The last component; empty for the root.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Whether this is `dir` itself or lies below it.
    #[must_use]
    pub fn is_at_or_below(&self, dir: &Self) -> bool {
        if dir.is_root() {
            return !self.is_special();
        }
        self.0.strip_prefix(&dir.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// This path as `domid` would write it relative to its own directory, if it lies there.
    #[must_use]
    pub fn relative_to(&self, domid: DomId) -> Option<&str> {
        self.0.strip_prefix(format!("/local/domain/{domid}/").as_str())
    }
}

impl core::fmt::Display for Path {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn relative_paths_begin_at_the_domain() {
        let p = Path::resolve(b"device/vif/0", DomId(7)).unwrap();
        assert_eq!(p.as_str(), "/local/domain/7/device/vif/0");
        assert_eq!(p.relative_to(DomId(7)), Some("device/vif/0"));
        assert_eq!(p.relative_to(DomId(70)), None);
        assert_eq!(p.parent().unwrap().name(), "vif");
    }

    #[test]
    fn defects_are_named() {
        assert_eq!(check(b""), Err(PathError::Empty));
        assert_eq!(check(b"/a//b"), Err(PathError::EmptyComponent { at: 3 }));
        assert_eq!(check(b"/a/"), Err(PathError::EmptyComponent { at: 2 }));
        assert_eq!(check(b"/a b"), Err(PathError::BadByte { byte: b' ', at: 2 }));
        assert_eq!(check(&[b'a'; REL_PATH_MAX + 1]), Err(PathError::TooLong { len: REL_PATH_MAX + 1 }));
        assert!(check(b"/").is_ok());
    }

    #[test]
    fn below_is_by_component() {
        let dir = Path::absolute("/a/b").unwrap();
        assert!(Path::absolute("/a/b/c").unwrap().is_at_or_below(&dir));
        assert!(dir.is_at_or_below(&dir));
        assert!(!Path::absolute("/a/bc").unwrap().is_at_or_below(&dir));
        assert!(!Path::watchable(b"@introduceDomain", DomId(1)).unwrap().is_at_or_below(&Path::root()));
    }

    proptest! {
        #[test]
        fn no_input_panics_and_what_passes_is_canonical(raw in proptest::collection::vec(any::<u8>(), 0..64), domid in 0u16..100) {
            if let Ok(path) = Path::resolve(&raw, DomId(domid)) {
                prop_assert!(path.as_str().starts_with('/'));
                let rebuilt = alloc::format!("/{}", path.components().collect::<alloc::vec::Vec<_>>().join("/"));
                prop_assert_eq!(path.as_str(), rebuilt);
            }
        }
    }
}
