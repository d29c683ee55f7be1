//! Xenstore as a backend uses it: a handful of blocking operations with a deadline, so that backends stay pure. Driver domains implement it
//! over a [`Client`](crate::Client) and a ring, simulations over a map.

use abi::Errno;
use alloc::string::String;
use alloc::vec::Vec;

/// Why the store did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// It answered with an error.
    Refused(Errno),
    /// It did not answer in time.
    Timeout,
}

/// Xenstore, as far as a backend uses it. Paths are absolute. Lists go out together (pipelined), so that a call costs one
/// round trip, not one per node.
pub trait Store {
    /// Values of nodes; `None` where there is no such node, or none this domain may read.
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&mut self, paths: &[String]) -> Result<Vec<Option<String>>, StoreError>;

    /// Names of the children of nodes; empty where there is no such node.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&mut self, paths: &[String]) -> Result<Vec<Vec<String>>, StoreError>;

    /// Writes nodes, in this order.
    ///
    /// # Errors
    /// [`StoreError`], the first that occurred.
    fn write(&mut self, nodes: &[(String, String)]) -> Result<(), StoreError>;

    /// Watches a node and all below it; the backend is told with the path of each change (`Backend::store_changed`).
    ///
    /// # Errors
    /// [`StoreError`].
    fn watch(&mut self, path: &str) -> Result<(), StoreError>;

    /// Ends a watch. One that does not exist is no error.
    fn unwatch(&mut self, path: &str);
}
