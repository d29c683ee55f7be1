//! Which of our packages may depend on which, checked on cargo's metadata. Only ordinary dependencies count: a test may use
//! what it tests against.

use crate::cargo;
use anyhow::{Context, Result};
use serde_json::Value;

/// What one package may depend on among ours. A package that is not listed is a fault, so that a new one is thought about.
const ALLOWED: &[(&str, &[&str])] = &[
    ("abi", &[]),
    ("hv-core", &["abi"]),
    ("hv-npt", &["abi", "hv-core"]),
    ("hv-svm", &["abi", "hv-core"]),
    ("hv-amdvi", &["abi", "hv-core", "hv-npt"]),
    ("hypervisor", &["abi", "hv-core", "hv-npt", "hv-svm", "hv-amdvi"]),
    ("hw", &[]),
    ("ring", &["abi"]),
    ("xenstore", &["abi", "ring"]),
    ("backend", &["abi", "ring", "xenstore"]),
    ("libxenrt", &["abi", "ring", "xenstore"]),
    // Backends know no registers …
    ("netback", &["abi", "backend", "hw", "ring", "xenstore"]),
    ("blkback", &["abi", "backend", "hw", "ring", "xenstore"]),
    // … and drivers no grants and no xenstore.
    ("netback-e1000-driver", &["abi", "netback"]),
    ("blkback-ahci-driver", &["blkback"]),
    ("blkback-virtio-driver", &["blkback"]),
    ("control", &["abi", "ring", "xenstore", "libxenrt"]),
    ("hello", &["libxenrt"]),
    ("hostile", &["abi", "ring", "xenstore", "libxenrt"]),
    // What all driver domains do knows neither backends nor drivers.
    ("driver-domain", &["abi", "backend", "hw", "xenstore", "libxenrt"]),
    // A disk's image adds a driver to what all of them are.
    ("blkback-domain", &["abi", "libxenrt", "driver-domain", "blkback"]),
    ("blkback-ahci", &["libxenrt", "driver-domain", "blkback-domain", "blkback-ahci-driver"]),
    ("blkback-virtio", &["libxenrt", "driver-domain", "blkback-domain", "blkback-virtio-driver"]),
    ("netback-e1000", &["abi", "libxenrt", "driver-domain", "netback", "netback-e1000-driver"]),
    ("web", &["abi", "libxenrt"]),
    ("sim", &["abi", "backend", "hw", "ring", "netback", "blkback", "hv-core"]),
    ("models", &["abi", "ring", "netback", "hv-core"]),
    ("blkcheck", &["abi", "libxenrt"]),
    ("blkbare", &["libxenrt", "driver-domain", "blkback", "blkback-ahci-driver", "blkcheck"]),
    ("xtask", &["abi", "blkcheck"]),
];

/// What was found.
pub struct Edges {
    /// Dependencies between our packages.
    pub count: usize,
    /// Those that point the wrong way.
    pub faults: Vec<String>,
}

/// Checks the workspace.
///
/// # Errors
/// Cargo cannot tell.
pub fn check() -> Result<Edges> {
    let output = cargo::command()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot start cargo")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo's metadata")?;
    Ok(judge(&metadata))
}

fn judge(metadata: &Value) -> Edges {
    let packages: Vec<&Value> = metadata["packages"].as_array().into_iter().flatten().collect();
    let ours: Vec<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut edges = Edges { count: 0, faults: Vec::new() };
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default();
        let allowed = ALLOWED.iter().find(|(n, _)| *n == name).map(|(_, to)| *to);
        if allowed.is_none() {
            edges.faults.push(format!("package {name} is in no rule of xtask/src/lint/directions.rs; add it"));
        }
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for to in dependencies.filter(|d| d["kind"].is_null()).filter_map(|d| d["name"].as_str()) {
            if ours.contains(&to) {
                edges.count += 1;
                if !allowed.unwrap_or_default().contains(&to) {
                    edges.faults.push(format!("package {name} depends on {to}, which points the wrong way"));
                }
            }
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_dependency_of_the_hypervisor_on_libxenrt_is_a_fault_and_one_of_a_test_is_not() {
        let package =
            |name: &str, to: &str, kind: Value| json!({ "name": name, "dependencies": [{ "name": to, "kind": kind }] });
        let metadata = |packages: Vec<Value>| json!({ "packages": packages });
        let runtime = package("libxenrt", "abi", Value::Null);
        let bad = judge(&metadata(vec![package("hypervisor", "libxenrt", Value::Null), runtime.clone()]));
        assert!(bad.faults[0].contains("hypervisor depends on libxenrt"), "{:?}", bad.faults);
        let good = judge(&metadata(vec![package("hypervisor", "libxenrt", json!("dev")), runtime]));
        assert!(good.faults.is_empty(), "{:?}", good.faults);
        let new = judge(&metadata(vec![package("unheard-of", "abi", Value::Null)]));
        assert!(new.faults[0].contains("unheard-of"));
    }
}
