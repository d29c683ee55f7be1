//! Writes the system bundle (`abi::bundle`) and reads it back with the code the hypervisor uses.

use super::boot::{self, Boot};
use super::elf::{Flat, LOAD_ADDRESS};
use crate::manifest::{Role, System, image::Image, store};
use crate::units::{Size, kib};
use abi::PAGE_SIZE;
use abi::bundle::{
    Bundle, Device, Domain, Header, MAGIC, Ports, Segment, VERSION, bundle_flags, entry, flags, special,
};
use abi::ids::DomId;
use anyhow::{Context, Result, anyhow, ensure};
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

/// Least heap a unikernel starts with.
const MIN_HEAP: u64 = 64 << 10;

#[derive(Default)]
struct Tables {
    domains: Vec<Domain>,
    segments: Vec<Segment>,
    devices: Vec<Device>,
    ports: Vec<Ports>,
    /// Data of each segment.
    data: Vec<Vec<u8>>,
}

/// Composes the bundle of a checked system from its flattened images, by name.
///
/// # Errors
/// A domain's memory is too small for its image; its config or command line is too long.
pub fn compose(system: &System, images: &BTreeMap<String, (Image, Flat)>) -> Result<Vec<u8>> {
    let mut tables = Tables::default();
    let xenstore = store::compile(system);
    for (index, domain) in system.domains.iter().enumerate() {
        let (image, flat) = images
            .get(&domain.image)
            .ok_or_else(|| anyhow!("domain `{}`: image `{}` is not built", domain.name, domain.image))?;
        let config = if domain.role == Role::Control && domain.config.is_empty() {
            xenstore.clone()
        } else {
            domain.config.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
        };
        let special = u64::from(special::CONSOLE) * PAGE_SIZE as u64;
        let needed = LOAD_ADDRESS + flat.mem_len + MIN_HEAP + special;
        ensure!(
            domain.memory.0 >= needed,
            "domain `{}`: memory = {} is too little for image `{}`: it needs {} at least; give it {} or more",
            domain.name,
            domain.memory,
            domain.image,
            kib(needed),
            Size(needed.next_multiple_of(1 << 20))
        );
        let boot = boot::lay(flat, domain.memory.0 - special, &domain.command_line, config.as_bytes())
            .with_context(|| format!("domain `{}`", domain.name))?;
        add(&mut tables, index, domain, image.device_id()?, flat, boot);
    }
    write(tables)
}

fn add(tables: &mut Tables, index: usize, domain: &crate::manifest::Domain, device_id: u32, flat: &Flat, boot: Boot) {
    let mut name = [0; 32];
    name[..domain.name.len()].copy_from_slice(domain.name.as_bytes());
    let record = Domain {
        name,
        domid: DomId(index as u16),
        flags: match domain.role {
            Role::Control => flags::CONTROL,
            Role::Driver => flags::DRIVER,
            Role::Guest => 0,
        },
        mem_pages: (domain.memory.0 / PAGE_SIZE as u64) as u32,
        vcpus: domain.vcpus,
        entry_kind: entry::LONG64,
        cpu_mask: domain.cpus.iter().fold(0, |mask, cpu| mask | 1 << cpu),
        rip: flat.entry,
        rsp: boot::STACK_POINTER,
        cr3: boot.cr3,
        rdi: boot.boot_info,
        first_segment: tables.segments.len() as u32,
        nr_segments: 2,
        first_device: tables.devices.len() as u32,
        nr_devices: u32::from(domain.device.is_some()),
        first_port: tables.ports.len() as u32,
        nr_ports: domain.ports.len() as u32,
        max_ports: domain.max_ports,
        max_grant_frames: domain.max_grant_frames,
        ..Domain::default()
    };
    tables.domains.push(record);
    for (gpa, bytes) in [(boot::BASE, boot.bytes), (LOAD_ADDRESS, flat.bytes.clone())] {
        tables.segments.push(Segment {
            gpa,
            file_len: bytes.len() as u64,
            crc: crc32fast::hash(&bytes),
            ..Segment::default()
        });
        tables.data.push(bytes);
    }
    tables.devices.extend(domain.device.map(|bdf| Device { segment: 0, bdf: bdf.0, id: device_id }));
    tables.ports.extend(domain.ports.iter().map(|p| Ports { first: p.first, count: p.count, irq: p.irq }));
}

fn write(mut tables: Tables) -> Result<Vec<u8>> {
    let tables_len = size_of::<Header>()
        + size_of_val(tables.domains.as_slice())
        + size_of_val(tables.segments.as_slice())
        + size_of_val(tables.devices.as_slice())
        + size_of_val(tables.ports.as_slice());
    let mut end = tables_len.next_multiple_of(PAGE_SIZE);
    for (segment, data) in tables.segments.iter_mut().zip(&tables.data) {
        segment.offset = end as u64;
        end = (end + data.len()).next_multiple_of(PAGE_SIZE);
    }
    let mut body = Vec::with_capacity(tables_len);
    body.extend_from_slice(tables.domains.as_bytes());
    body.extend_from_slice(tables.segments.as_bytes());
    body.extend_from_slice(tables.devices.as_bytes());
    body.extend_from_slice(tables.ports.as_bytes());
    let mut header = Header {
        magic: MAGIC,
        version: VERSION,
        flags: bundle_flags::DEBUG_EXIT,
        total_len: end as u64,
        nr_domains: tables.domains.len() as u32,
        nr_segments: tables.segments.len() as u32,
        nr_devices: tables.devices.len() as u32,
        nr_ports: tables.ports.len() as u32,
        tables_crc: 0,
        reserved: 0,
    };
    header.tables_crc = Bundle::tables_crc(&header, &body);
    let mut out = Vec::with_capacity(end);
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&body);
    for (segment, data) in tables.segments.iter().zip(&tables.data) {
        out.resize(segment.offset as usize, 0);
        out.extend_from_slice(data);
    }
    out.resize(end, 0);
    read_back(&out)?;
    Ok(out)
}

/// Checks a bundle as the hypervisor will.
///
/// # Errors
/// The first defect.
pub fn read_back(bytes: &[u8]) -> Result<()> {
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    let (aligned, _) = words.as_mut_bytes().split_at_mut(bytes.len());
    aligned.copy_from_slice(bytes);
    Bundle::parse(aligned).map(|_| ()).map_err(|error| anyhow!("the bundle is damaged: {error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::SYSTEM;

    fn images(mem_len: u64) -> BTreeMap<String, (Image, Flat)> {
        ["control", "netback-e1000", "web"]
            .into_iter()
            .map(|name| {
                let image: Image = toml::from_str("package = \"x\"\nabout = \"y\"\ndrives = \"8086:100e\"").unwrap();
                let flat =
                    Flat { bytes: vec![0x90; 5000], mem_len, entry: LOAD_ADDRESS + 0x10, tls: [0; 4], text_len: 5000 };
                (name.to_string(), (image, flat))
            })
            .collect()
    }

    #[test]
    fn a_bundle_is_read_back_as_it_was_meant() {
        let system = System::parse(SYSTEM, "test").unwrap();
        let bytes = compose(&system, &images(0x4000)).unwrap();
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(&bytes);
        let bundle = Bundle::parse(words.as_bytes()).unwrap();
        let [control, netback, web] = bundle.domains() else { panic!("three domains expected") };
        assert_eq!(bundle.name(netback), Some("netback-e1000"));
        assert_eq!((control.flags, netback.flags, web.flags), (flags::CONTROL, flags::DRIVER, 0));
        assert_eq!(control.domid, DomId(0));
        assert_eq!(bundle.devices(netback), [Device { segment: 0, bdf: 0x18, id: 0x100e_8086 }]);
        assert_eq!(bundle.ports(control), [Ports { first: 0x2f8, count: 8, irq: 3 }]);
        assert_eq!(web.rip, LOAD_ADDRESS + 0x10);
        let segments = bundle.segments(web);
        assert_eq!(segments.iter().map(|s| s.gpa).collect::<Vec<_>>(), [boot::BASE, LOAD_ADDRESS]);
        assert_eq!(bundle.data(&segments[1]), Some(&[0x90; 5000][..]));
    }

    #[test]
    fn damage_and_truncation_of_a_bundle_are_found() {
        let system = System::parse(SYSTEM, "test").unwrap();
        let bytes = compose(&system, &images(0x4000)).unwrap();
        let mut bad = bytes.clone();
        *bad.last_mut().unwrap() = 1;
        assert!(read_back(&bad).is_ok(), "padding carries nothing");
        let segment = bad.iter().rposition(|&b| b == 0x90).unwrap();
        bad[segment] = 0;
        assert!(read_back(&bad).unwrap_err().to_string().contains("SegmentCrc"));
        let mut bad = bytes.clone();
        bad[60] ^= 1;
        assert!(read_back(&bad).unwrap_err().to_string().contains("TablesCrc"));
        assert!(read_back(&bytes[..bytes.len() - 4096]).unwrap_err().to_string().contains("Truncated"));
    }

    #[test]
    fn too_little_memory_names_domain_image_and_need() {
        let system = System::parse(SYSTEM, "test").unwrap();
        let error = compose(&system, &images(8 << 20)).unwrap_err().to_string();
        assert!(error.contains("`control`") && error.contains("memory = 4MiB") && error.contains("10MiB"), "{error}");
    }
}
