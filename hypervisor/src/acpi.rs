//! The firmware's tables, read once at boot; `hv_core::acpi` does the reading, this file only finds the bytes.

use crate::mem;
use hv_core::acpi::{AcpiError, Platform};
use spin::Once;

static PLATFORM: Once<Platform> = Once::new();

/// Bytes of physical memory below 4 GiB, where PC firmware keeps its tables.
fn bytes(addr: u64, len: usize) -> Option<&'static [u8]> {
    let end = addr.checked_add(len as u64)?;
    if addr == 0 || end > 1 << 32 {
        return None;
    }
    // SAFETY: the direct map covers the low 4 GiB; firmware tables lie in memory that the memory map reserves or below 1 MiB,
    // neither of which is ever given to anyone.
    Some(unsafe { core::slice::from_raw_parts(mem::direct(addr), len) })
}

/// Reads the tables that the root pointer at physical address `rsdp` leads to.
///
/// # Errors
/// As [`Platform::parse`].
pub fn init(rsdp: u64) -> Result<&'static Platform, AcpiError> {
    let platform = Platform::parse(&bytes, rsdp)?;
    Ok(PLATFORM.call_once(|| platform))
}

/// The machine, after [`init`].
pub fn platform() -> Option<&'static Platform> {
    PLATFORM.get()
}
