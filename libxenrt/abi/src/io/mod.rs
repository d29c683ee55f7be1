//! Protocols of split drivers (`public/io/`).
pub mod blkif;
pub mod netif;
pub mod ring;
pub mod xenbus;
pub mod xs_wire;
