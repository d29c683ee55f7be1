//! What a scenario looks for in a line: text, in which `*` stands for anything.

use serde::{Deserialize, Deserializer};

/// A pattern; it matches if it is found anywhere in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// From text.
    pub fn new(text: &str) -> Self {
        Self(text.to_string())
    }

    /// Whether it is found in a line.
    pub fn found(&self, line: &str) -> bool {
        let mut rest = line;
        for part in self.0.split('*') {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text.trim_matches('*').is_empty() {
            return Err(serde::de::Error::custom("a pattern that matches every line checks nothing"));
        }
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything_and_order_counts() {
        let found = |pattern: &str, line: &str| Pattern(pattern.into()).found(line);
        assert!(found("IOMMU*00:03.0*0x", "(xenolith) IOMMU fault of 00:03.0 at 0x1000"));
        assert!(!found("0x*IOMMU", "(xenolith) IOMMU fault of 00:03.0 at 0x1000"));
        assert!(found("tick 3", "(hello) tick 3, late"));
        assert!(!found("tick 4", "(hello) tick 3, late"));
        assert!(!found("aa*aa", "aaa"), "parts do not overlap");
    }
}
