//! The status page: one file, no outside resource. It only ever assigns text, so nothing a domain writes becomes markup.

/// Body of `/`.
pub const PAGE: &str = include_str!("page.html");
