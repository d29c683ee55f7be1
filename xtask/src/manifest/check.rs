//! Contradictions in a system manifest, each told with the thing's name and what to do about it.

use super::{Domain, OnFailure, Role, System, disk};
use crate::units::Size;
use anyhow::{Result, bail, ensure};
use std::collections::BTreeMap;

/// RAM the hypervisor keeps: itself, its heap, page tables, the pristine bundle.
pub const HYPERVISOR_RESERVE: u64 = 32 << 20;
/// libxenrt maps foreign pages from 1 GiB up, so RAM ends there.
pub const MAX_DOMAIN_MEMORY: u64 = 1 << 30;
/// Linux' RAM ends below the hole in front of 4 GiB, in which the local APIC stands.
pub const MAX_LINUX_MEMORY: u64 = 3 << 30;
/// Tried with so many.
const MAX_LINUX_VCPUS: u32 = 4;
/// One less than the hypervisor has room for (`percpu.rs`): an emulated machine gets one more, whose first runs no guest.
const MAX_CPUS: u32 = 31;
/// `vcpu_info`s in a `shared_info` page.
const MAX_VCPUS: u32 = 32;

/// Checks all that needs no built image.
///
/// # Errors
/// The first contradiction found.
pub fn system(system: &System) -> Result<()> {
    ensure!(!system.domains.is_empty(), "no [[domain]]: the first one has to be the control domain");
    ensure!(
        (1..=MAX_CPUS).contains(&system.machine.cpus),
        "machine.cpus = {}: 1 to {MAX_CPUS} are possible",
        system.machine.cpus
    );
    names(system)?;
    roles(system)?;
    for domain in &system.domains {
        self::domain(system, domain)?;
    }
    devices(system)?;
    disk::check(system)?;
    memory(system)
}

fn names(system: &System) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for domain in &system.domains {
        let name = &domain.name;
        ensure!(
            (1..=31).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
            "domain name `{name}`: 1 to 31 of a-z, 0-9 and `-` are possible"
        );
        ensure!(seen.insert(name), "two domains are named `{name}`; rename one of them");
    }
    Ok(())
}

fn roles(system: &System) -> Result<()> {
    let controls: Vec<&str> =
        system.domains.iter().filter(|d| d.role == Role::Control).map(|d| d.name.as_str()).collect();
    match controls.as_slice() {
        [] => bail!("no domain has role = \"control\"; the first one has to"),
        [one] if system.domain_is_first(one) => Ok(()),
        [one] => bail!("the control domain `{one}` has to be the first [[domain]], since its number is 0"),
        more => bail!("{} domains have role = \"control\" ({}); only the first may", more.len(), more.join(", ")),
    }
}

fn domain(system: &System, domain: &Domain) -> Result<()> {
    let name = &domain.name;
    let cpus = system.machine.cpus;
    ensure!(domain.vcpus >= 1, "domain `{name}`: vcpus = 0; it needs at least one");
    if let Some(cpu) = domain.cpus.iter().find(|&&cpu| cpu >= cpus) {
        bail!("domain `{name}`: cpus names {cpu}, but the machine has only 0 to {}", cpus - 1);
    }
    source(domain)?;
    let most = if domain.linux.is_some() { MAX_LINUX_MEMORY } else { MAX_DOMAIN_MEMORY };
    ensure!(
        domain.memory.0.is_multiple_of(4096) && domain.memory.0 <= most,
        "domain `{name}`: memory = {}; whole pages up to {} are possible",
        domain.memory,
        Size(most)
    );
    for (key, value) in &domain.config {
        ensure!(
            !key.is_empty() && !key.contains(['=', '\n', ' ']) && !value.contains('\n'),
            "domain `{name}`: config key `{key}`: keys have no `=` or space, and nothing has a line break"
        );
    }
    ensure!(
        domain.role != Role::Control
            || domain.config.is_empty()
            || (system.vifs().next().is_none() && system.vbds().next().is_none()),
        "domain `{name}`: config of a control domain takes the place of the initial xenstore, which vifs and vbds need"
    );
    ensure!(!domain.command_line.contains(['\n', '\0']), "domain `{name}`: command-line has to be one line");
    for ports in &domain.ports {
        ensure!(
            ports.count >= 1 && ports.first.checked_add(ports.count - 1).is_some(),
            "domain `{name}`: ports from {:#x}, {} of them: not within 0 to 0xffff",
            ports.first,
            ports.count
        );
    }
    ensure!(
        domain.role != Role::Control || domain.vifs.is_empty(),
        "domain `{name}`: the control domain serves xenstore and has no `vif`"
    );
    vifs(system, domain)?;
    if let Some(policy) = domain.policy {
        ensure!(
            policy.max_restarts <= 1000,
            "domain `{name}`: policy.max-restarts = {}; control remembers 1000 failures at most",
            policy.max_restarts
        );
        ensure!(
            policy.on_failure != OnFailure::Destroy || domain.role == Role::Guest,
            "domain `{name}`: policy.on-failure = \"destroy\" is for guests; a {} is restarted or stopped",
            domain.role
        );
    }
    for target in &domain.may_crash {
        ensure!(
            system.domid(target).is_some(),
            "domain `{name}`: may-crash names `{target}`, which is no domain of this system"
        );
    }
    Ok(())
}

/// What stands in its memory, and what goes with that only.
fn source(domain: &Domain) -> Result<()> {
    let name = &domain.name;
    match (&domain.image, &domain.linux) {
        (Some(_), None) => {}
        (None, Some(_)) => {
            ensure!(domain.role == Role::Guest, "domain `{name}`: a Linux kernel is a guest; give it role = \"guest\"");
            ensure!(
                domain.config.is_empty(),
                "domain `{name}`: Linux reads no config; write what it is to know into command-line"
            );
        }
        (Some(_), Some(_)) => bail!("domain `{name}` has both an image and [domain.linux]; remove one"),
        (None, None) => bail!("domain `{name}` has neither an image nor [domain.linux]; give it one"),
    }
    let most = if domain.linux.is_some() { MAX_LINUX_VCPUS } else { MAX_VCPUS };
    ensure!(domain.vcpus <= most, "domain `{name}`: vcpus = {}; {most} are possible at most", domain.vcpus);
    ensure!(
        domain.start || domain.role == Role::Guest,
        "domain `{name}`: start = false is for guests; a {} is needed from the beginning",
        domain.role
    );
    Ok(())
}

fn vifs(system: &System, domain: &Domain) -> Result<()> {
    let name = &domain.name;
    for (index, vif) in domain.vifs.iter().enumerate() {
        let backend = &vif.backend;
        let Some(found) = system.domains.iter().find(|d| d.name == *backend) else {
            let drivers: Vec<&str> =
                system.domains.iter().filter(|d| d.role == Role::Driver).map(|d| d.name.as_str()).collect();
            bail!(
                "domain `{name}`: vif {index} has backend = \"{backend}\", which is no domain of this system; drivers are: {}",
                if drivers.is_empty() { "none".to_string() } else { drivers.join(", ") }
            );
        };
        ensure!(
            found.role == Role::Driver,
            "domain `{name}`: vif {index} has backend = \"{backend}\", which is no driver; give it role = \"driver\""
        );
        for (other, twin) in system.vifs() {
            ensure!(
                twin.mac != vif.mac || std::ptr::eq(twin, vif),
                "domain `{name}`: vif {index} has the MAC {} of a vif of `{other}`; each needs its own",
                vif.mac
            );
        }
        for rule in &vif.rules {
            ensure!(
                !rule.contains(['\n', '\t', ';']) && !rule.is_empty(),
                "domain `{name}`: vif {index}: the rule `{rule}` is empty or holds a tab, line break or `;`"
            );
        }
    }
    Ok(())
}

fn devices(system: &System) -> Result<()> {
    let mut owners = BTreeMap::new();
    let mut irqs: BTreeMap<u32, &str> = BTreeMap::new();
    let disks = || system.machine.disks.iter().map(|disk| disk.address);
    for domain in &system.domains {
        if let Some(device) = domain.device {
            if let Some(other) = owners.insert(device, &domain.name) {
                bail!(
                    "device {device} is owned by `{other}` and by `{}`; a device has one owner, remove one `device`",
                    domain.name
                );
            }
            ensure!(
                domain.role == Role::Driver,
                "domain `{}` owns device {device} but is no driver; give it role = \"driver\"",
                domain.name
            );
            ensure!(
                system.machine.nics.iter().map(|nic| nic.address).chain(disks()).any(|address| address == device),
                "domain `{}` owns device {device}, but the machine has nothing there; add a [[machine.nic]] or [[machine.disk]]",
                domain.name
            );
        }
        for ports in domain.ports.iter().filter(|p| p.irq != 0) {
            if let Some(other) = irqs.insert(ports.irq, &domain.name) {
                bail!("interrupt {} is given to `{other}` and to `{}`; remove one", ports.irq, domain.name);
            }
        }
    }
    let mut all: Vec<(u16, u16, &str)> = Vec::new();
    for domain in &system.domains {
        for ports in &domain.ports {
            let last = ports.first + (ports.count - 1);
            if let Some(&(.., other)) = all.iter().find(|&&(first, end, _)| ports.first <= end && first <= last) {
                bail!(
                    "I/O ports {:#x}–{last:#x} are given to `{other}` and to `{}`; remove one",
                    ports.first,
                    domain.name
                );
            }
            all.push((ports.first, last, &domain.name));
        }
    }
    let mut places = std::collections::BTreeSet::new();
    for nic in &system.machine.nics {
        ensure!(places.insert(nic.address), "two [[machine.nic]] sit at {}; move one", nic.address);
        ensure!(nic.address.0 >> 8 == 0 && nic.address.0 & 7 == 0, "a NIC at {}: QEMU puts it on 00:DD.0", nic.address);
    }
    Ok(())
}

fn memory(system: &System) -> Result<()> {
    let domains: u64 = system.domains.iter().map(|d| d.memory.0).fold(0, u64::saturating_add);
    let needed = domains.saturating_add(HYPERVISOR_RESERVE);
    let have = system.machine.memory.0;
    ensure!(
        needed <= have,
        "the domains' memory is {} MiB in sum and the hypervisor keeps {} MiB, but machine.memory is {}; give the machine more or a domain less",
        domains >> 20,
        HYPERVISOR_RESERVE >> 20,
        system.machine.memory
    );
    Ok(())
}

/// Checks that the machine has room for the bundle beside what the domains get of it at the start.
///
/// # Errors
/// It has not.
pub fn bundle(system: &System, len: u64) -> Result<()> {
    let domains: u64 = system.domains.iter().filter(|d| d.start).map(|d| d.memory.0).fold(0, u64::saturating_add);
    // Page tables and what the hypervisor keeps of each domain: a sixteenth, as the hypervisor reckons itself.
    let needed = domains.saturating_add(domains / 16).saturating_add(len).saturating_add(HYPERVISOR_RESERVE);
    ensure!(
        needed <= system.machine.memory.0,
        "the machine's memory does not do: the domains get {} MiB of it at the start, their kernels, initrds and images stand in it \
         with {} MiB, the hypervisor keeps {} MiB, but machine.memory is {}; give the machine {} or more, or a domain less",
        domains >> 20,
        len.div_ceil(1 << 20),
        HYPERVISOR_RESERVE >> 20,
        system.machine.memory,
        Size(needed.next_multiple_of(64 << 20))
    );
    Ok(())
}

impl System {
    fn domain_is_first(&self, name: &str) -> bool {
        self.domains.first().is_some_and(|d| d.name == name)
    }

    /// Every vif with its domain's name.
    pub fn vifs(&self) -> impl Iterator<Item = (&str, &super::Vif)> {
        self.domains.iter().flat_map(|d| d.vifs.iter().map(move |v| (d.name.as_str(), v)))
    }
}
