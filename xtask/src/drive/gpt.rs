//! GUID partition tables of images, by the `gpt` crate: laid over a new file, read to learn which sectors a vbd has.

use crate::manifest::disk::{Damage, Disk};
use crate::manifest::vbd::{Guid, Key};
use anyhow::{Context, Result, bail};
use gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition_types};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Partitions begin at multiples of this, as every tool has it.
const ALIGNMENT: u64 = 1 << 20;
/// Bytes of a table with its header, at either end.
const TABLE: u64 = 16 << 10;

fn sector(disk: &Disk) -> LogicalBlockSize {
    if disk.sector_size == 4096 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 }
}

/// Lays the disk's partitions over `file`, and damages a copy of the table where the manifest says so.
///
/// # Errors
/// They do not fit; the file cannot be written.
pub fn lay(disk: &Disk, mut file: &File, len: u64) -> Result<()> {
    let sectors = len / u64::from(disk.sector_size);
    let mbr = ProtectiveMBR::with_lb_size(u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX));
    mbr.overwrite_lba0(&mut file).context("cannot write the protective MBR")?;
    let config = GptConfig::new().writable(true).logical_block_size(sector(disk));
    let mut table = config.create_from_device(file, None).context("cannot lay a GPT")?;
    let alignment = Some(ALIGNMENT / u64::from(disk.sector_size));
    for partition in &disk.partitions {
        table
            .add_partition(&partition.name, partition.size.0, partition_types::LINUX_FS, 0, alignment)
            .with_context(|| format!("partition `{}` of {} does not fit", partition.name, partition.size))?;
    }
    let mut laid = table.partitions().clone();
    for (number, partition) in &mut laid {
        let given = disk.partitions.get(*number as usize - 1).and_then(|p| p.guid);
        let guid = given.unwrap_or(Guid(0x5865_6e6f_6c69_7468_8000_0000_0000_0000 | u128::from(*number)));
        partition.part_guid = guid.to_string().parse().context("GUID of a partition")?;
    }
    table.update_partitions(laid).context("cannot lay a GPT")?;
    table.write().context("cannot write the GPT")?;
    let noise = vec![0xa5; TABLE as usize];
    match disk.damage {
        None => {}
        Some(Damage::PrimaryGpt) => file.write_all_at(&noise, u64::from(disk.sector_size))?,
        Some(Damage::BackupGpt) => file.write_all_at(&noise, len - TABLE)?,
    }
    Ok(())
}

/// The sectors of a partition.
///
/// # Errors
/// There is no GPT, or none such; all names are told.
pub fn find(disk: &Disk, file: &File, key: &Key) -> Result<Range<u64>> {
    let table = GptConfig::new().logical_block_size(sector(disk)).open_from_device(file).context("it has no GPT")?;
    let partitions = table.partitions();
    let mut found = partitions.iter().filter(|(number, p)| match key {
        Key::Number(wanted) => *number == wanted,
        Key::Name(wanted) => p.name == *wanted,
        Key::Guid(wanted) => p.part_guid.to_string() == wanted.to_string(),
    });
    match (found.next(), found.next()) {
        (Some((_, one)), None) => Ok(one.first_lba..one.last_lba.saturating_add(1)),
        (Some(_), Some(_)) => bail!("its GPT has several partitions {key}"),
        (None, _) => {
            let names: Vec<String> = partitions.iter().map(|(n, p)| format!("{n} `{}`", p.name)).collect();
            bail!("its GPT has no partition {key}; there are: {}", names.join(", "))
        }
    }
}
