//! Writes the system bundle (`abi::bundle`) and reads it back with the code the hypervisor uses.

use super::boot;
use super::elf::{Flat, LOAD_ADDRESS};
use super::kernel::initrd::Initrd;
use super::kernel::{Kernel, pvh};
use crate::manifest::{Bdf, Role, System, image::Image, store};
use crate::units::{Size, kib};
use abi::PAGE_SIZE;
use abi::bundle::{
    Bundle, Device, Domain, Header, MAGIC, Ports, Segment, VERSION, bundle_flags, entry, flags, special,
};
use abi::ids::DomId;
use anyhow::{Context, Result, anyhow, ensure};
use std::collections::BTreeMap;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Least heap a unikernel starts with.
const MIN_HEAP: u64 = 64 << 10;

/// What the domains of a system are made of, by the names their manifests use.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Unikernels.
    pub images: BTreeMap<String, (Image, Flat)>,
    /// Linux kernels.
    pub kernels: BTreeMap<String, Kernel>,
    /// Their initrds.
    pub initrds: BTreeMap<String, Initrd>,
}

#[derive(Default)]
struct Tables {
    domains: Vec<Domain>,
    segments: Vec<Segment>,
    devices: Vec<Device>,
    ports: Vec<Ports>,
    /// Data of each segment; what several domains have in common is there once.
    data: Vec<Arc<[u8]>>,
}

/// A domain's first memory and how it is entered; the rest of its record comes from the manifest.
struct Loaded {
    segments: Vec<(u64, Arc<[u8]>)>,
    entry: Domain,
    device_id: u32,
}

/// Composes the bundle of a checked system from its parts.
///
/// # Errors
/// A domain's memory is too small for its image; its config or command line is too long.
pub fn compose(system: &System, parts: &Parts) -> Result<Vec<u8>> {
    let mut tables = Tables::default();
    let xenstore = store::compile(system);
    for (index, domain) in system.domains.iter().enumerate() {
        let loaded = match &domain.linux {
            Some(linux) => self::linux(domain, linux, parts),
            None => unikernel(domain, &xenstore, parts),
        };
        tables.add(index, domain, loaded.with_context(|| format!("domain `{}`", domain.name))?);
    }
    write(tables)
}

fn unikernel(domain: &crate::manifest::Domain, xenstore: &str, parts: &Parts) -> Result<Loaded> {
    let name = domain.source();
    let (image, flat) = parts.images.get(name).ok_or_else(|| anyhow!("image `{name}` is not built"))?;
    let config = if domain.role == Role::Control && domain.config.is_empty() {
        xenstore.to_string()
    } else {
        domain.config.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
    };
    let special = u64::from(special::CONSOLE) * PAGE_SIZE as u64;
    let needed = LOAD_ADDRESS + flat.mem_len + MIN_HEAP + special;
    ensure!(
        domain.memory.0 >= needed,
        "memory = {} is too little for image `{name}`: it needs {} at least; give it {} or more",
        domain.memory,
        kib(needed),
        Size(needed.next_multiple_of(1 << 20))
    );
    let boot = boot::lay(flat, domain.memory.0 - special, &domain.command_line, config.as_bytes())?;
    Ok(Loaded {
        segments: vec![(boot::BASE, boot.bytes.into()), (LOAD_ADDRESS, flat.bytes.clone())],
        entry: Domain {
            entry_kind: entry::LONG64,
            rip: flat.entry,
            rsp: boot::STACK_POINTER,
            cr3: boot.cr3,
            rdi: boot.boot_info,
            ..Domain::default()
        },
        device_id: image.device_id()?,
    })
}

fn linux(domain: &crate::manifest::Domain, linux: &crate::manifest::Linux, parts: &Parts) -> Result<Loaded> {
    let name = &linux.kernel;
    let kernel = parts.kernels.get(name).ok_or_else(|| anyhow!("kernel `{name}` is not loaded"))?;
    let initrd = linux
        .initrd
        .as_ref()
        .map(|name| parts.initrds.get(name).cloned().ok_or_else(|| anyhow!("initrd `{name}` is not loaded")));
    let initrd = initrd.transpose()?;
    let lengths = initrd.as_ref().map_or((0, 0), |initrd| (initrd.bytes.len() as u64, initrd.unpacked));
    let boot = pvh::lay(kernel, lengths, &domain.command_line, domain.memory.0, domain.vcpus)?;
    let mut segments = vec![(pvh::BASE, boot.bytes.into()), (kernel.start, Arc::clone(&kernel.bytes))];
    segments.extend(initrd.map(|initrd| (boot.initrd, initrd.bytes)));
    let entry = Domain {
        flags: flags::PVH,
        entry_kind: entry::PVH32,
        rip: kernel.entry.into(),
        rdi: pvh::BASE,
        ..Domain::default()
    };
    Ok(Loaded { segments, entry, device_id: 0 })
}

impl Tables {
    fn add(&mut self, index: usize, domain: &crate::manifest::Domain, loaded: Loaded) {
        let mut name = [0; 32];
        name[..domain.name.len()].copy_from_slice(domain.name.as_bytes());
        let role = match domain.role {
            Role::Control => flags::CONTROL,
            Role::Driver => flags::DRIVER,
            Role::Guest => 0,
        };
        let start = if domain.start { 0 } else { flags::ON_DEMAND };
        self.domains.push(Domain {
            name,
            domid: DomId(index as u16),
            flags: loaded.entry.flags | role | start,
            mem_pages: (domain.memory.0 / PAGE_SIZE as u64) as u32,
            vcpus: domain.vcpus,
            cpu_mask: domain.cpus.iter().fold(0, |mask, cpu| mask | 1 << cpu),
            first_segment: self.segments.len() as u32,
            nr_segments: loaded.segments.len() as u32,
            first_device: self.devices.len() as u32,
            nr_devices: u32::from(domain.device.is_some()),
            first_port: self.ports.len() as u32,
            nr_ports: domain.ports.len() as u32,
            max_ports: domain.max_ports,
            max_grant_frames: domain.max_grant_frames,
            ..loaded.entry
        });
        for (gpa, bytes) in loaded.segments {
            let file_len = bytes.len() as u64;
            self.segments.push(Segment { gpa, file_len, crc: crc32fast::hash(&bytes), ..Segment::default() });
            self.data.push(bytes);
        }
        self.devices.extend(domain.device.map(|bdf| Device { gsi: gsi(bdf), bdf: bdf.0, id: loaded.device_id }));
        self.ports.extend(domain.ports.iter().map(|p| Ports { first: p.first, count: p.count, irq: p.irq }));
    }
}

/// Where QEMU's q35 connects the INTA of a function: slots below 25 of the root bus swizzle over the IO-APIC's inputs 20 to 23.
/// Its other functions have MSI.
const fn gsi(bdf: Bdf) -> u16 {
    let slot = bdf.0 >> 3;
    if slot < 25 { 20 + (slot & 3) } else { 0 }
}

fn write(mut tables: Tables) -> Result<Vec<u8>> {
    let tables_len = size_of::<Header>()
        + size_of_val(tables.domains.as_slice())
        + size_of_val(tables.segments.as_slice())
        + size_of_val(tables.devices.as_slice())
        + size_of_val(tables.ports.as_slice());
    let mut end = tables_len.next_multiple_of(PAGE_SIZE);
    let mut places: BTreeMap<*const u8, u64> = BTreeMap::new();
    for (segment, data) in tables.segments.iter_mut().zip(&tables.data) {
        segment.offset = *places.entry(data.as_ptr()).or_insert(end as u64);
        if segment.offset == end as u64 {
            end = (end + data.len()).next_multiple_of(PAGE_SIZE);
        }
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
        if segment.offset >= out.len() as u64 {
            out.resize(segment.offset as usize, 0);
            out.extend_from_slice(data);
        }
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

    fn parts(mem_len: u64) -> Parts {
        let images = ["control", "netback-e1000", "web"]
            .into_iter()
            .map(|name| {
                let image: Image = toml::from_str("package = \"x\"\nabout = \"y\"\ndrives = \"8086:100e\"").unwrap();
                let flat = Flat {
                    bytes: vec![0x90; 5000].into(),
                    mem_len,
                    entry: LOAD_ADDRESS + 0x10,
                    tls: [0; 4],
                    text_len: 5000,
                };
                (name.to_string(), (image, flat))
            })
            .collect();
        let kernel = Kernel { start: 0x100_0000, bytes: vec![0x48; 9000].into(), end: 0x110_0000, entry: 0x100_0100 };
        Parts {
            images,
            kernels: [("vmlinux".to_string(), kernel)].into(),
            initrds: [("initrd".to_string(), Initrd { bytes: vec![0x33; 70].into(), unpacked: 200 })].into(),
        }
    }

    #[test]
    fn a_bundle_is_read_back_as_it_was_meant() {
        let system = System::parse(SYSTEM, "test").unwrap();
        let bytes = compose(&system, &parts(0x4000)).unwrap();
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(&bytes);
        let bundle = Bundle::parse(words.as_bytes()).unwrap();
        let [control, netback, web] = bundle.domains() else { panic!("three domains expected") };
        assert_eq!(bundle.name(netback), Some("netback-e1000"));
        assert_eq!((control.flags, netback.flags, web.flags), (flags::CONTROL, flags::DRIVER, 0));
        assert_eq!(control.domid, DomId(0));
        assert_eq!(bundle.devices(netback), [Device { gsi: 23, bdf: 0x18, id: 0x100e_8086 }]);
        assert_eq!(bundle.ports(control), [Ports { first: 0x2f8, count: 8, irq: 3 }]);
        assert_eq!(web.rip, LOAD_ADDRESS + 0x10);
        let segments = bundle.segments(web);
        assert_eq!(segments.iter().map(|s| s.gpa).collect::<Vec<_>>(), [boot::BASE, LOAD_ADDRESS]);
        assert_eq!(bundle.data(&segments[1]), Some(&[0x90; 5000][..]));
    }

    #[test]
    fn two_linux_guests_share_their_kernel_in_the_bundle() {
        let guest = |name: &str| {
            format!(
                "[[domain]]\nname='{name}'\nrole='guest'\nmemory='48MiB'\nvcpus=2\nstart=false\n\
                 linux={{kernel='vmlinux',initrd='initrd'}}\n"
            )
        };
        let text = SYSTEM.replacen("64MiB", "256MiB", 1) + &guest("one") + &guest("two");
        let system = System::parse(&text, "test").unwrap();
        let bytes = compose(&system, &parts(0x4000)).unwrap();
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(&bytes);
        let bundle = Bundle::parse(words.as_bytes()).unwrap();
        let (one, two) = (&bundle.domains()[3], &bundle.domains()[4]);
        assert_eq!((one.entry_kind, one.flags, one.vcpus), (entry::PVH32, flags::PVH | flags::ON_DEMAND, 2));
        assert_eq!((one.rip, one.rdi), (0x100_0100, pvh::BASE));
        let places = |d| bundle.segments(d).iter().map(|s| (s.gpa, s.offset)).collect::<Vec<_>>();
        let (first, second) = (places(one), places(two));
        assert_eq!(first.iter().map(|p| p.0).collect::<Vec<_>>(), [pvh::BASE, 0x100_0000, 0x120_0000]);
        assert_eq!(first[1..], second[1..]);
        assert_ne!(first[0], second[0]);
        assert_eq!(bundle.data(&bundle.segments(two)[2]), Some(&[0x33; 70][..]));
    }

    #[test]
    fn damage_and_truncation_of_a_bundle_are_found() {
        let system = System::parse(SYSTEM, "test").unwrap();
        let bytes = compose(&system, &parts(0x4000)).unwrap();
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
        let error = format!("{:#}", compose(&system, &parts(8 << 20)).unwrap_err());
        assert!(error.contains("`control`") && error.contains("memory = 4MiB") && error.contains("10MiB"), "{error}");
    }
}
