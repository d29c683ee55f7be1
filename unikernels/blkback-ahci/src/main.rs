//! The driver domain of an AHCI controller: this file names the driver, `blkback-domain` does the rest.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use blkback_ahci_driver::{AREA_BYTES, Ahci, Config, Stopped};
use driver_domain::{Function, PvClock, Registers, Rings};

libxenrt::main!(run);

/// Mass storage, SATA, AHCI 1.0 (PCI Code and ID Assignment 1.11, 1.2).
const CLASS: u32 = 0x01_06_01;
/// The BAR with the registers (AHCI 1.3.1, 2.1.11).
const ABAR: usize = 5;

fn run() {
    blkback_domain::run(bring_up)
}

fn bring_up(function: &Function) -> Result<Ahci<Registers, Rings, PvClock>, String> {
    if function.class() != CLASS {
        return Err(format!("device {:08x}, class {:06x}, is no AHCI controller", function.id(), function.class()));
    }
    let memory = Rings::alloc(AREA_BYTES).ok_or("no memory for command lists")?;
    let controller = Stopped::stop(function.registers(ABAR)?, PvClock).map_err(|e| format!("AHCI: {e:?}"))?;
    // All ports are at rest: nothing reads the predecessor's command lists any more.
    function.allow_dma()?;
    let controller = controller.start(memory, Config::default()).map_err(|e| format!("AHCI: {e:?}"))?;
    for (drive, step) in controller.coming() {
        libxenrt::log::warn!("drive {}: not ready yet, it waits for {step:?}", drive.0);
    }
    Ok(controller)
}
