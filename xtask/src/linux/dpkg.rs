//! A Debian package as dpkg has it once it is unpacked and not yet configured: its files, its scripts and lists under
//! `/var/lib/dpkg`, its stanza in `status`.
//!
//! So that a whole system can be laid out on the host and dpkg's first deed there is `--configure`: under emulation most of an
//! installation's time is decompression, which a host does in seconds (deb(5), deb-triggers(5), deb-conffiles(5); the formats
//! under `/var/lib/dpkg` are those of dpkg's `lib/dpkg/db-*.c` and `triglib.c`).

use anyhow::{Context, Result, ensure};
use md5::{Digest, Md5};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::process::Command;

/// dpkg's folder in a root file system.
const ADMIN: &str = "var/lib/dpkg";
/// What says that names of `Multi-Arch: same` packages carry their architecture.
const FORMAT: &str = "1\n";
/// In a package's control archive, yet not among what dpkg keeps of it.
const NOT_KEPT: [&str; 2] = ["control", "triggers"];

/// Packages that are unpacked.
#[derive(Default)]
pub struct Database {
    /// By path; the scripts among them can be run.
    info: BTreeMap<String, (Vec<u8>, u32)>,
    status: String,
    /// Who is to be told, by the trigger's name.
    interests: BTreeMap<String, BTreeSet<String>>,
}

/// One entry of a package's files.
struct Member {
    /// From the root: `/etc/passwd`; `/.` for the root.
    path: String,
    /// Of a file.
    md5: String,
}

impl Database {
    /// Takes a package in; returns its files, a tar archive without its end mark.
    ///
    /// # Errors
    /// The package is damaged.
    pub fn unpack(&mut self, deb: &Path) -> Result<Vec<u8>> {
        let part = |option: &str| {
            let done = Command::new("dpkg-deb").arg(option).arg(deb).output().context("cannot start dpkg-deb")?;
            let said = String::from_utf8_lossy(&done.stderr);
            ensure!(done.status.success(), "dpkg-deb cannot read {}: {}", deb.display(), said.trim());
            Ok(done.stdout)
        };
        let mut files = part("--fsys-tarfile")?;
        let (members, end) = members(&files).with_context(|| format!("files of {}", deb.display()))?;
        self.add(&part("--ctrl-tarfile")?, &members).with_context(|| format!("control of {}", deb.display()))?;
        files.truncate(end);
        Ok(files)
    }

    /// Notes a package by its control archive.
    fn add(&mut self, control: &[u8], members: &[Member]) -> Result<()> {
        let mut kept = BTreeMap::new();
        for entry in tar::Archive::new(control).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.display().to_string();
            let name = path.trim_start_matches("./").to_string();
            if entry.header().entry_type().is_file() {
                let mut content = Vec::new();
                entry.read_to_end(&mut content)?;
                kept.insert(name, (content, entry.header().mode()?));
            }
        }
        let text = |name: &str| kept.get(name).map(|(content, _)| String::from_utf8_lossy(content).into_owned());
        let stanza = text("control").context("there is none")?;
        let field =
            |name: &str| stanza.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim()));
        let package = field("Package").context("it names no package")?;
        let mut name = package.to_string();
        if field("Multi-Arch") == Some("same") {
            name = format!("{package}:{}", field("Architecture").context("it names no architecture")?);
        }
        for line in text("triggers").unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            let kind = words.next().unwrap_or_default();
            if let (Some(trigger), true) = (words.next(), kind.starts_with("interest")) {
                let how = if kind == "interest-noawait" { "/noawait" } else { "" };
                self.interests.entry(trigger.into()).or_default().insert(format!("{package}{how}"));
            }
        }
        self.status.push_str(&format!("{}\nStatus: install ok unpacked\n", stanza.trim_end()));
        let conffiles = text("conffiles").unwrap_or_default();
        for (number, path) in conffiles.lines().filter(|path| path.starts_with('/')).enumerate() {
            let file = members.iter().find(|member| member.path == path.trim_end());
            let md5 = &file.with_context(|| format!("there is no {path}"))?.md5;
            self.status.push_str(if number == 0 { "Conffiles:\n" } else { "" });
            self.status.push_str(&format!(" {} {md5}\n", path.trim_end()));
        }
        self.status.push('\n');
        let list: String = members.iter().map(|member| format!("{}\n", member.path)).collect();
        self.info.insert(format!("{ADMIN}/info/{name}.list"), (list.into_bytes(), 0o644));
        for (what, content) in kept.into_iter().filter(|(what, _)| !NOT_KEPT.contains(&what.as_str())) {
            self.info.insert(format!("{ADMIN}/info/{name}.{what}"), content);
        }
        Ok(())
    }

    /// The database's files: path, content and mode.
    pub fn files(self) -> Vec<(String, Vec<u8>, u32)> {
        let mut files: Vec<_> = self.info.into_iter().map(|(path, (content, mode))| (path, content, mode)).collect();
        let mut add =
            |path: String, content: String| files.push((format!("{ADMIN}/{path}"), content.into_bytes(), 0o644));
        add("status".into(), self.status);
        add("info/format".into(), FORMAT.into());
        // Those of paths have one file, each of the others its own.
        let mut paths = String::new();
        for (trigger, who) in self.interests {
            if trigger.starts_with('/') {
                paths.extend(who.iter().map(|package| format!("{trigger} {package}\n")));
            } else {
                add(format!("triggers/{trigger}"), who.iter().map(|package| format!("{package}\n")).collect());
            }
        }
        add("triggers/File".into(), paths);
        files
    }
}

/// What is in an archive of files, and where its last entry ends.
fn members(archive: &[u8]) -> Result<(Vec<Member>, usize)> {
    let (mut members, mut end) = (Vec::new(), 0);
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        end = entry.raw_file_position() + entry.header().entry_size()?.next_multiple_of(512);
        let path = entry.path()?.display().to_string();
        let path = format!("/{}", path.trim_start_matches("./").trim_end_matches('/'));
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        let md5 = Md5::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        members.push(Member { path: if path == "/" { "/.".into() } else { path }, md5 });
    }
    let end = usize::try_from(end)?;
    ensure!(end <= archive.len(), "the archive is truncated");
    Ok((members, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, name, *content).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn database(control: &[(&str, &[u8])], files: &[(&str, &[u8])]) -> Result<BTreeMap<String, String>> {
        let mut database = Database::default();
        let archive_of_files = archive(files);
        let (members, _) = members(&archive_of_files)?;
        database.add(&archive(control), &members)?;
        let text = |(path, content, _): (String, Vec<u8>, u32)| (path, String::from_utf8(content).unwrap());
        Ok(database.files().into_iter().map(text).collect())
    }

    #[test]
    fn a_package_is_as_dpkg_leaves_it_unpacked() {
        let control: [(&str, &[u8]); 5] = [
            ("./control", b"Package: a\nVersion: 1\nArchitecture: amd64\nMulti-Arch: same\nDescription: x\n y\n"),
            ("./conffiles", b"/etc/a\nremove-on-upgrade /etc/b\n"),
            ("./postinst", b"#!/bin/sh\n"),
            ("./triggers", b"# c\ninterest-noawait /usr/a\ninterest-await go\nactivate-noawait ldconfig\n"),
            ("./md5sums", b"sums\n"),
        ];
        let files = database(&control, &[("./etc/a", b"abc"), ("./usr/a/long", b"")]).unwrap();
        // RFC 1321, A.5: MD5 ("abc").
        assert_eq!(
            files["var/lib/dpkg/status"],
            "Package: a\nVersion: 1\nArchitecture: amd64\nMulti-Arch: same\nDescription: x\n y\nStatus: install ok unpacked\n\
             Conffiles:\n /etc/a 900150983cd24fb0d6963f7d28e17f72\n\n"
        );
        assert_eq!(files["var/lib/dpkg/info/a:amd64.list"], "/etc/a\n/usr/a/long\n");
        assert_eq!(files["var/lib/dpkg/info/a:amd64.postinst"], "#!/bin/sh\n");
        assert_eq!(files["var/lib/dpkg/info/a:amd64.md5sums"], "sums\n");
        assert_eq!(files["var/lib/dpkg/triggers/File"], "/usr/a a/noawait\n");
        assert_eq!(files["var/lib/dpkg/triggers/go"], "a\n");
        let kept: Vec<&String> = files.keys().filter(|path| path.contains("/info/")).collect();
        assert_eq!(kept.len(), 5, "neither control nor triggers: {kept:?}");
    }

    #[test]
    fn a_package_without_its_configuration_file_is_told() {
        let control: [(&str, &[u8]); 2] = [("./control", b"Package: a\n"), ("./conffiles", b"/etc/a\n")];
        assert!(database(&control, &[("./etc/b", b"")]).unwrap_err().to_string().contains("/etc/a"));
        assert!(database(&[("./postinst", b"")], &[]).is_err());
    }

    #[test]
    fn archives_without_their_end_marks_are_strung_together() {
        // Content of zeros, as an end mark has, and a name too long for a header.
        let long = "long/".repeat(40) + "name";
        let all: [(&str, &[u8]); 3] = [("a", &[0; 1024]), (&long, b"b"), ("c", b"")];
        let mut bytes = Vec::new();
        for one in all {
            let one = archive(&[one]);
            bytes.extend(&one[..members(&one).unwrap().1]);
        }
        let found = members(&bytes).unwrap().0;
        let paths: Vec<&str> = found.iter().map(|member| member.path.trim_start_matches('/')).collect();
        assert_eq!(paths, all.map(|(name, _)| name));
        let whole = archive(&[("a", &[1; 600])]);
        assert!(members(&whole[..900]).is_err(), "truncated");
    }
}
