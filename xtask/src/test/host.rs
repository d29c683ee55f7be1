//! The tests that run on the host: every package with a library, and xtask itself, built in one go and run one by one; and
//! the simulation of deaths once more as the images are built, since an optimiser has broken what it tests
//! (`.cargo/config.toml`).

use super::Tally;
use crate::{cargo, progress};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// One test executable.
struct Executable {
    package: String,
    path: PathBuf,
    folder: PathBuf,
}

/// Builds and runs them all.
///
/// # Errors
/// Cargo cannot be started, or its answer cannot be read; a build that fails is one failed test.
pub fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    println!("host tests: building");
    let as_images = ["--release", "--package", "sim", "--test", "deaths"].map(str::to_string);
    let (Some(mut executables), Some(optimised)) = (build(&in_development(&packages()?))?, build(&as_images)?) else {
        println!("FAILED  build of the host tests; cargo's message stands above");
        tally.failed += 1;
        return Ok(tally);
    };
    executables.extend(optimised.into_iter().map(|e| Executable { package: format!("{} (release)", e.package), ..e }));
    let bar = progress::steps("host tests", executables.len() as u64);
    for executable in &executables {
        if crate::signals::stop() {
            break;
        }
        bar.tick(&executable.package);
        let output = Command::new(&executable.path)
            .current_dir(&executable.folder)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", executable.path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut part = count(&text);
        if !output.status.success() {
            // A test program that dies without its summary failed at least once.
            part.failed = part.failed.max(1);
            bar.line(&format!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        }
        if part != Tally::default() {
            let word = if part.failed == 0 { "ok    " } else { "FAILED" };
            bar.line(&format!("{word}  {:24} {:4} passed, {} failed", executable.package, part.passed, part.failed));
        }
        tally.add(part);
    }
    bar.done();
    Ok(tally)
}

/// Names of the packages that have something to test on the host: libraries, test programs and xtask. What has only
/// freestanding binaries is tested in QEMU.
fn packages() -> Result<Vec<String>> {
    let output = cargo::command()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot start cargo")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo's metadata")?;
    let testable = |package: &&Value| {
        let kinds = package["targets"].as_array().into_iter().flatten().flat_map(|t| t["kind"].as_array());
        kinds.flatten().any(|kind| kind == "lib" || kind == "test") || package["name"] == env!("CARGO_PKG_NAME")
    };
    let packages = metadata["packages"].as_array().into_iter().flatten().filter(testable);
    Ok(packages.filter_map(|p| p["name"].as_str().map(str::to_string)).collect())
}

/// Arguments for the libraries and test programs of packages. Freestanding binaries beside a library have a plain `main` on
/// the host, and nothing to test in it.
fn in_development(packages: &[String]) -> Vec<String> {
    let kinds = ["--lib", "--tests"].map(str::to_string);
    kinds.into_iter().chain(packages.iter().flat_map(|package| ["--package".to_string(), package.clone()])).collect()
}

/// Builds tests; `None` if cargo fails, which then has said why.
fn build(what: &[String]) -> Result<Option<Vec<Executable>>> {
    let mut command = cargo::command();
    command.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]).args(what);
    let output = command.stderr(Stdio::inherit()).stdin(Stdio::null()).output().context("cannot start cargo")?;
    if !output.status.success() {
        return Ok(None);
    }
    let messages = output.stdout.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    Ok(Some(messages.filter_map(|message| executable(&message)).collect()))
}

fn executable(message: &Value) -> Option<Executable> {
    let path = message["executable"].as_str()?;
    if message["profile"]["test"] != true {
        return None;
    }
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let folder = manifest.parent()?.to_path_buf();
    let package = message["target"]["name"].as_str()?.to_string();
    Some(Executable { package, path: path.into(), folder })
}

/// Reads `test result: ok. 3 passed; 0 failed; …`, summed over all such lines.
fn count(text: &str) -> Tally {
    let mut tally = Tally::default();
    for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let number = |word: &str| {
            let part = line.split([';', '.']).find(|part| part.trim_end().ends_with(word))?;
            part.trim().split(' ').next()?.parse().ok()
        };
        tally.add(Tally { passed: number("passed").unwrap_or(0), failed: number("failed").unwrap_or(0) });
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_counted() {
        let text = "running 2 tests\n\ntest result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s\n\
                    test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s\n";
        assert_eq!(count(text), Tally { passed: 15, failed: 2 });
        assert_eq!(count("a program that died"), Tally::default());
    }
}
