//! The initial xenstore, compiled from a system manifest: the control domain's config blob. The tree stands in
//! `docs/architecture.md`; a line is `path TAB permissions TAB value`, parents before children.

use super::System;
use super::vbd::{Mode, Vbd};
use std::collections::BTreeSet;

#[derive(Default)]
struct Lines {
    text: String,
    folders: BTreeSet<String>,
}

impl Lines {
    fn put(&mut self, path: &str, perms: &str, value: impl std::fmt::Display) {
        self.text.push_str(&format!("{path}\t{perms}\t{value}\n"));
    }

    /// A node without value, unless it is there already.
    fn folder(&mut self, path: &str, perms: &str) {
        if self.folders.insert(path.to_string()) {
            self.put(path, perms, "");
        }
    }
}

/// The text of the blob. The manifest has passed [`super::check`].
pub fn compile(system: &System) -> String {
    let mut out = Lines::default();
    for root in ["/local", "/local/domain", "/xenolith", "/xenolith/domain"] {
        out.put(root, "r0", "");
    }
    for root in ["/xenolith/request", "/xenolith/right", "/xenolith/policy"] {
        out.put(root, "n0", "");
    }
    for (n, domain) in system.domains.iter().enumerate() {
        let home = format!("/local/domain/{n}");
        let theirs = format!("n0,r{n}");
        out.put(&home, &theirs, "");
        out.put(&format!("{home}/name"), &theirs, &domain.name);
        out.put(&format!("{home}/domid"), &theirs, n);
        // Linux tells there which shutdowns it understands.
        let control = if domain.linux.is_some() { format!("n0,b{n}") } else { theirs.clone() };
        out.put(&format!("{home}/control"), &control, "");
        out.put(&format!("{home}/device"), &theirs, "");
        if domain.linux.is_some() {
            // It has a console ring that control serves.
            out.put(&format!("{home}/console"), &theirs, "");
            out.put(&format!("{home}/cpu"), &theirs, "");
            for vcpu in 0..domain.vcpus {
                out.put(&format!("{home}/cpu/{vcpu}"), &theirs, "");
                out.put(&format!("{home}/cpu/{vcpu}/availability"), &theirs, "online");
            }
        }
        out.put(&format!("{home}/stats"), &format!("r{n}"), "");
        if domain.role == super::Role::Driver {
            out.put(&format!("{home}/backend"), &format!("n{n}"), "");
            out.put(&format!("{home}/backend/vif"), &format!("n{n}"), "");
            out.put(&format!("{home}/backend/vbd"), &format!("n{n}"), "");
        }
        out.put(&format!("/xenolith/domain/{n}"), "r0", "");
        out.put(&format!("/xenolith/domain/{n}/kind"), "r0", domain.role);
        out.put(&format!("/xenolith/request/{n}"), &format!("n{n}"), "");
        // Always there, so that a domain without rights finds nothing instead of a refusal.
        out.put(&format!("/xenolith/right/{n}"), &theirs, "");
        if !domain.may_crash.is_empty() {
            out.put(&format!("/xenolith/right/{n}/crash"), &theirs, domain.may_crash.join(" "));
        }
        if let Some(policy) = &domain.policy {
            let at = format!("/xenolith/policy/{n}");
            out.put(&at, "n0", "");
            out.put(&format!("{at}/on-failure"), "n0", policy.on_failure);
            out.put(&format!("{at}/back-off-ms"), "n0", policy.back_off.millis());
            out.put(&format!("{at}/max-restarts"), "n0", policy.max_restarts);
            out.put(&format!("{at}/window-ms"), "n0", policy.window.millis());
        }
    }
    for (f, domain) in system.domains.iter().enumerate() {
        for (i, vif) in domain.vifs.iter().enumerate() {
            let Some(b) = system.domid(&vif.backend) else { continue };
            vif_nodes(&mut out, f, usize::from(b), i, vif);
        }
        for vbd in &domain.vbds {
            let Some(b) = system.domid(&vbd.backend) else { continue };
            vbd_nodes(&mut out, f, usize::from(b), vbd);
        }
    }
    out.text
}

fn vif_nodes(out: &mut Lines, f: usize, b: usize, i: usize, vif: &super::Vif) {
    let front = format!("/local/domain/{f}/device/vif/{i}");
    let back = format!("/local/domain/{b}/backend/vif/{f}/{i}");
    let (fronts, backs) = (format!("n{f},r{b}"), format!("n{b},r{f}"));
    out.folder(&format!("/local/domain/{f}/device/vif"), &format!("n{f}"));
    out.folder(&format!("/local/domain/{b}/backend/vif/{f}"), &backs);
    out.put(&front, &fronts, "");
    out.put(&format!("{front}/backend"), &fronts, &back);
    out.put(&format!("{front}/backend-id"), &fronts, b);
    out.put(&format!("{front}/handle"), &fronts, i);
    out.put(&format!("{front}/mac"), &fronts, vif.mac);
    out.put(&format!("{front}/state"), &fronts, 1);
    out.put(&back, &backs, "");
    out.put(&format!("{back}/frontend"), &backs, &front);
    out.put(&format!("{back}/frontend-id"), &backs, f);
    out.put(&format!("{back}/handle"), &backs, i);
    out.put(&format!("{back}/mac"), &backs, vif.mac);
    out.put(&format!("{back}/online"), &backs, 1);
    if !vif.rules.is_empty() {
        out.put(&format!("{back}/rules"), &backs, vif.rules.join(";"));
    }
    out.put(&format!("{back}/state"), &backs, 1);
}

/// The nodes a toolstack makes for Linux's blkfront, and `source`, which only our backend reads.
fn vbd_nodes(out: &mut Lines, f: usize, b: usize, vbd: &Vbd) {
    let device = vbd.name.device;
    let front = format!("/local/domain/{f}/device/vbd/{device}");
    let back = format!("/local/domain/{b}/backend/vbd/{f}/{device}");
    let (fronts, backs) = (format!("n{f},r{b}"), format!("n{b},r{f}"));
    out.folder(&format!("/local/domain/{f}/device/vbd"), &format!("n{f}"));
    out.folder(&format!("/local/domain/{b}/backend/vbd/{f}"), &backs);
    out.put(&front, &fronts, "");
    out.put(&format!("{front}/backend"), &fronts, &back);
    out.put(&format!("{front}/backend-id"), &fronts, b);
    out.put(&format!("{front}/virtual-device"), &fronts, device);
    out.put(&format!("{front}/device-type"), &fronts, "disk");
    out.put(&format!("{front}/state"), &fronts, 1);
    out.put(&back, &backs, "");
    out.put(&format!("{back}/frontend"), &backs, &front);
    out.put(&format!("{back}/frontend-id"), &backs, f);
    out.put(&format!("{back}/online"), &backs, 1);
    out.put(&format!("{back}/dev"), &backs, &vbd.name.text);
    out.put(&format!("{back}/mode"), &backs, if vbd.mode == Mode::Write { "w" } else { "r" });
    out.put(&format!("{back}/device-type"), &backs, "disk");
    out.put(&format!("{back}/source"), &backs, vbd.source());
    out.put(&format!("{back}/state"), &backs, 1);
}
