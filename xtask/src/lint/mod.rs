//! `cargo xtask lint`: what the compiler does not check. The hypervisor stays small, `unsafe`
//! stays in its rooms, dependencies point one way, files stay readable.
mod directions;
mod source;

use crate::paths;
use anyhow::{Context, Result, bail};
use source::Source;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Lines of Rust the hypervisor may have, without tests, comments and blank lines.
const HYPERVISOR_MAX: usize = 8_000;
/// Above this the file's head has to say why it is one.
const LONG: usize = 500;
/// Above this it is two rooms.
const TOO_LONG: usize = 800;

/// Folders and files that may hold `unsafe`; everything else is pure.
const UNSAFE_ROOMS: [&str; 8] = [
    "hypervisor/src/",
    "hypervisor/svm/",
    "libxenrt/src/",
    // Commits the offences a guest can commit, on purpose.
    "unikernels/hostile/src/",
    // Issues grant copies, which libxenrt cannot bound to packet memory for it.
    "unikernels/netback-e1000/src/platform.rs",
    // Reads back what hermit-entry's loader wrote into uninitialised memory.
    "xtask/src/image/elf.rs",
    // Its tests look at the bytes of hermit-entry's boot information.
    "xtask/src/image/boot.rs",
    // The emulator dies with us: `pre_exec` is unsafe by its signature.
    "xtask/src/machine/qemu.rs",
];

/// Arguments of `lint`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the lines of every file of the hypervisor
    #[arg(long)]
    files: bool,
}

/// The command.
///
/// # Errors
/// The tree cannot be read; broken rules are counted instead.
pub fn run(args: &Args) -> Result<ExitCode> {
    let root = paths::root();
    let sources = read_all(&root)?;
    let mut faults = Vec::new();
    let lines = hypervisor_lines(&sources, args.files);
    println!("hypervisor: {lines} lines of Rust without tests, comments and blank lines (at most {HYPERVISOR_MAX})");
    if lines > HYPERVISOR_MAX {
        faults.push(format!("hypervisor/: {lines} lines, {} too many", lines - HYPERVISOR_MAX));
    }
    let mut unsafe_count = 0;
    for source in &sources {
        unsafe_count += source.unsafe_lines().len();
        faults.extend(unsafe_faults(source));
        faults.extend(size_fault(source));
    }
    println!("unsafe: {unsafe_count} places");
    let edges = directions::check()?;
    println!("dependencies: {} between our packages", edges.count);
    faults.extend(edges.faults);
    for fault in &faults {
        println!("FAULT: {fault}");
    }
    println!("{} files, {} faults", sources.len(), faults.len());
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Lines of the hypervisor, as `lint` counts them.
///
/// # Errors
/// The tree cannot be read.
pub fn count_hypervisor() -> Result<usize> {
    Ok(hypervisor_lines(&read_all(&paths::root())?, false))
}

fn hypervisor_lines(sources: &[Source], show: bool) -> usize {
    let own = sources.iter().filter(|s| s.path.starts_with("hypervisor/") && !s.is_test_file());
    own.map(|source| {
        let lines = source.code_lines();
        if show {
            println!("{lines:6} {}", source.path);
        }
        lines
    })
    .sum()
}

fn unsafe_faults(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    let may = UNSAFE_ROOMS.iter().any(|room| source.path.starts_with(room));
    if !may {
        for line in source.unsafe_lines() {
            faults.push(format!("{}:{line}: `unsafe` outside of the rooms that may hold it", source.path));
        }
        let root_of_library = source.path.ends_with("src/lib.rs");
        if root_of_library && !source.text.contains("#![forbid(unsafe_code)]") {
            faults.push(format!("{}: a pure crate without #![forbid(unsafe_code)]", source.path));
        }
    }
    faults
}

fn size_fault(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    let head = source.text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join(" ");
    if lines > TOO_LONG {
        Some(format!("{}: {lines} lines; above {TOO_LONG} it is two rooms", source.path))
    } else if lines > LONG && !head.contains("long") && !head.contains("one file") {
        Some(format!("{}: {lines} lines; above {LONG} its head says why it is so long", source.path))
    } else if head.is_empty() && source.path.contains("/src/") && !source.is_test_file() {
        Some(format!("{}: no head that says what it does", source.path))
    } else {
        None
    }
}

fn read_all(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                sources.push(read(root, path)?);
            }
        }
    }
    if sources.is_empty() {
        bail!("no Rust source below {}", root.display());
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn read(root: &Path, path: PathBuf) -> Result<Source> {
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let relative = path.strip_prefix(root).unwrap_or(&path).display().to_string();
    Ok(Source { path: relative, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[test]
    fn unsafe_is_found_outside_of_its_rooms_only() {
        let text = "#![forbid(unsafe_code)]\n// unsafe in words\nlet a = \"unsafe\";\nfn f() { unsafe { g() } }\n";
        assert_eq!(unsafe_faults(&source("libxenrt/ring/src/lib.rs", text)).len(), 1);
        assert!(unsafe_faults(&source("libxenrt/src/heap.rs", text)).is_empty());
        assert_eq!(unsafe_faults(&source("netback/src/lib.rs", "//! x\n"))[0].matches("forbid").count(), 1);
    }

    #[test]
    fn long_files_have_to_say_why() {
        let long = format!("//! A table.\n{}", "a\n".repeat(600));
        assert!(size_fault(&source("a/src/b.rs", &long)).unwrap().contains("601 lines"));
        assert!(size_fault(&source("a/src/b.rs", &long.replace("table", "table; long because"))).is_none());
        assert!(size_fault(&source("a/src/b.rs", &"//! long\n".repeat(900))).unwrap().contains("two rooms"));
    }
}
