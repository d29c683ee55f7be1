//! The machine: finds the controller, makes drive and workload, turns it until it is over, and ends QEMU with the result.

use crate::drive::Drive;
use crate::iommu::Iommu;
use alloc::format;
use alloc::string::String;
use blkback::disk::DriveId;
use blkback_ahci_driver::{AREA_BYTES, Config, Stopped};
use blkcheck::options::Options;
use blkcheck::report;
use blkcheck::workload::{Turn, Workload};
use driver_domain::{PvClock, Registers, Rings};
use libxenrt::bare::{self, Function};
use libxenrt::config::config;
use libxenrt::{clock, println};

/// Mass storage, SATA, AHCI 1.0 (PCI Code and ID Assignment 1.11, 1.2).
const CLASS: u32 = 0x01_06_01;
/// The BAR with the registers and their bytes (AHCI 1.3.1, 2.1.11 and 3: 0x100 and 0x80 for each of 32 ports).
const ABAR: (u8, usize) = (5, 0x1100);
/// Linux' number of the first disk, and the step from one to the next.
const XVDA: (u32, u32) = (51712, 16);

/// Runs the workload.
pub fn run() {
    let passed = check().unwrap_or_else(|why| {
        println!("blkcheck: {why}");
        false
    });
    bare::exit(passed)
}

fn check() -> Result<bool, String> {
    if !bare::active() {
        return Err("there is a hypervisor".into());
    }
    let options = Options::parse(config().pairs()).map_err(|key| format!("bad value of {key}"))?;
    let translate = config().number::<u8>("iommu").is_some_and(|on| on != 0);
    let _iommu = if translate { Some(Iommu::enable()?) } else { None };
    let function = Function::of_class(CLASS).ok_or("no AHCI controller")?;
    let registers = function.mmio(ABAR.0, ABAR.1).ok_or("no registers")?;
    function.enable();
    let memory = Rings::alloc(AREA_BYTES).ok_or("no memory for command lists")?;
    let stopped = Stopped::stop(Registers::new(registers), PvClock).map_err(|e| format!("AHCI: {e:?}"))?;
    let ahci = stopped.start(memory, Config::default()).map_err(|e| format!("AHCI: {e:?}"))?;
    let number = options.vbd.first().copied().unwrap_or(0);
    let id = DriveId(u8::try_from(number).map_err(|_| "bad value of vbd")?);
    let pool = options.pool_kib as usize * 1024;
    let mut drive = Drive::new(ahci, id, pool, options.depth).ok_or("no such drive, or no memory")?;
    let vbd = XVDA.0 + XVDA.1 * number;
    let info = blkcheck::disk::Disk::info(&drive);
    let mut workload = Workload::new(vbd, &options, info, clock::now().as_micros())
        .map_err(|key| format!("{key} does not fit the drive: {info:?}"))?;
    loop {
        let turn = workload.turn(&mut drive, false);
        for line in workload.said() {
            println!("blkcheck: {line}");
        }
        match turn {
            Turn::Done => break,
            Turn::Moved => {}
            Turn::Wait => drive.poll(),
        }
    }
    let pairs = workload.pairs(&[("notifications", 0), ("links", 0)]);
    for line in report::lines(&pairs) {
        println!("blkcheck: report {line}");
    }
    let passed = workload.report.passed();
    println!("blkcheck: done {vbd} {}", if passed { "pass" } else { "fail" });
    Ok(passed)
}
