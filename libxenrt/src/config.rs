//! The domain's configuration: `key=value` lines of the blob xtask put beside the image. Lines that are empty or start with
//! `#` are skipped, spaces around key and value do not count.

/// A view of a blob of `key=value` lines.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a>(&'a str);

impl<'a> Config<'a> {
    /// Over some text.
    #[must_use]
    pub const fn new(text: &'a str) -> Self {
        Self(text)
    }
    /// The whole text (the control domain's is its initial xenstore, not key=value lines).
    #[must_use]
    pub const fn text(&self) -> &'a str {
        self.0
    }
    /// All pairs in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim(), value.trim()))
    }
    /// The first value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.pairs().find(|(k, _)| *k == key).map(|(_, value)| value)
    }
    /// The value of `key` read as a number (or any other type that parses); `None` where it is absent or malformed.
    #[must_use]
    pub fn number<T: core::str::FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.parse().ok()
    }
}

/// This domain's configuration; empty where it has none (or one that is not UTF-8).
#[must_use]
pub fn config() -> Config<'static> {
    #[cfg(target_os = "none")]
    return Config(crate::boot::config_text());
    #[cfg(not(target_os = "none"))]
    Config("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pairs_and_skips_the_rest() {
        let c = Config::new("# comment\n\nname = web\nport=80\r\nempty=\njunk\nport=81\nurl=a=b\n");
        assert_eq!(c.get("name"), Some("web"));
        assert_eq!(c.number::<u16>("port"), Some(80));
        assert_eq!(c.get("empty"), Some(""));
        assert_eq!(c.get("url"), Some("a=b"));
        assert_eq!(c.get("junk"), None);
        assert_eq!(c.number::<u16>("name"), None);
    }
}
