//! Emergency console (`public/xen.h`, `CONSOLEIO_*`) and the PV console ring (`public/io/console.h`).

/// `CONSOLEIO_write`: `console_io(0, count, buffer)`. The hypervisor prefixes the domain's name, line by line.
pub const WRITE: u64 = 0;
/// `CONSOLEIO_read`.
pub const READ: u64 = 1;
/// Bytes one write may carry.
pub const WRITE_MAX: u64 = 4096;

/// Offsets in the console page: `in[1024]`, `out[2048]`, then the four indices.
pub mod ring {
    /// `in`: towards the domain.
    pub const IN: usize = 0;
    /// Bytes of `in`.
    pub const IN_SIZE: u32 = 1024;
    /// `out`: from the domain.
    pub const OUT: usize = 1024;
    /// Bytes of `out`.
    pub const OUT_SIZE: u32 = 2048;
    /// `in_cons`.
    pub const IN_CONS: usize = 3072;
    /// `in_prod`.
    pub const IN_PROD: usize = 3076;
    /// `out_cons`.
    pub const OUT_CONS: usize = 3080;
    /// `out_prod`.
    pub const OUT_PROD: usize = 3084;
}
