//! As much JSON (RFC 8259) as the control socket needs: a reader for one bounded line ([`read`]) and a writer that cannot
//! make anything malformed ([`write`]). Our own, because the small crates either need a schema per line or cannot say where a line is wrong.

pub mod read;
pub mod write;

pub use read::{Value, parse};
pub use write::{Object, Writer};
