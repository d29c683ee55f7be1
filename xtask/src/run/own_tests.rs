//! Options over the systems there are.

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    own: Own,
}

fn own(line: &str) -> Own {
    Line::try_parse_from(std::iter::once("run").chain(line.split_whitespace())).unwrap().own
}
fn wrong(line: &str) -> String {
    Line::try_parse_from(std::iter::once("run").chain(line.split_whitespace())).err().unwrap().to_string()
}
fn system(name: &str, line: &str) -> Result<System> {
    let mut system = System::load(name).unwrap();
    own(line).apply(&mut system).map(|()| system)
}
fn refusal(name: &str, line: &str) -> String {
    format!("{:#}", system(name, line).unwrap_err())
}

#[test]
fn kernel_initrd_words_memory_and_vcpus_take_the_place_of_the_manifests() {
    let before = System::load("linux").unwrap();
    let system = system("linux", "--kernel k --initrd i --append debug --memory 512MiB --vcpus 4").unwrap();
    let (old, guest) = [&before, &system].map(|s| s.domains.iter().find(|d| d.name == "linux").unwrap().clone()).into();
    let linux = guest.linux.clone().unwrap();
    assert!(Path::new(&linux.kernel).is_absolute() && linux.kernel.ends_with("/k"));
    assert!(linux.initrd.unwrap().ends_with("/i"));
    assert_eq!(guest.command_line, format!("{} debug", old.command_line));
    assert_eq!((guest.memory, guest.vcpus), (Size(512 << 20), 4));
    assert_eq!(system.machine.memory.0 - before.machine.memory.0, guest.memory.0 - old.memory.0 + KERNEL_ROOM);
    let none = super::tests::system("linux", "--initrd none").unwrap();
    assert!(none.domains.iter().any(|d| d.linux.as_ref().is_some_and(|l| l.initrd.is_none())));
}

#[test]
fn without_options_a_system_is_as_it_is_written() {
    for name in ["linux", "two-linux", "demo"] {
        let (before, after) = (System::load(name).unwrap(), system(name, "").unwrap());
        assert_eq!(format!("{before:?}"), format!("{after:?}"));
    }
    assert_eq!(own("").guest(&System::load("demo").unwrap()).unwrap(), None);
    assert_eq!(own("").guest(&System::load("two-linux").unwrap()).unwrap().as_deref(), Some("linux-a"));
}

#[test]
fn disks_take_the_place_of_the_systems_and_are_named_in_order() {
    let system = system("linux", "--disk /x/one.img --disk two.img:ro").unwrap();
    let images: Vec<_> = system.machine.disks.iter().map(|d| d.image.clone().unwrap()).collect();
    assert_eq!(images[0], Path::new("/x/one.img"));
    assert!(images[1].ends_with("two.img") && images[1].is_absolute() && images.len() == 2);
    let vbds: Vec<_> = system.vbds().map(|(d, v)| (d, v.name.text.as_str(), v.drive, v.mode)).collect();
    assert_eq!(vbds, [("linux", "xvda", 0, Mode::Write), ("linux", "xvdb", 1, Mode::Read)]);
}

#[test]
fn a_drive_that_another_guest_uses_stays() {
    let system = system("two-linux", "--guest linux-b --disk mine.img").unwrap();
    assert_eq!(system.machine.disks.len(), 2);
    let vbds: Vec<_> = system.vbds().map(|(d, v)| (d, v.name.text.as_str(), v.drive)).collect();
    assert_eq!(vbds, [("linux-a", "xvda", 0), ("linux-b", "xvda", 1)]);
    assert!(system.domains.iter().any(|d| d.name == "linux-b" && d.start), "it is started");
}

#[test]
fn a_system_without_a_disk_driver_gets_one() {
    let mut system = System::load("linux").unwrap();
    let place = system.domains.iter().position(|d| d.name == BACKEND).unwrap();
    system.domains.remove(place);
    system.machine.disks.clear();
    system.domains.iter_mut().for_each(|d| d.vbds.clear());
    own("--disk mine.img").apply(&mut system).unwrap();
    let driver = system.domains.last().unwrap();
    assert_eq!((driver.name.as_str(), driver.role, driver.device), (BACKEND, Role::Driver, Some(Bdf(4 << 3))));
}

#[test]
fn the_drives_behind_one_that_goes_move_up() {
    let mut system = System::load("linux").unwrap();
    let disk = Disk::of_image(Bdf(4 << 3), "other.img".into());
    system.machine.disks.push(disk);
    let mut vbd = system.domains.iter().flat_map(|d| d.vbds.clone()).next().unwrap();
    vbd.drive = 1;
    system.domains[1].vbds.push(vbd);
    own("--disk mine.img").apply(&mut system).unwrap();
    let images: Vec<_> = system.machine.disks.iter().map(|d| d.image.clone().unwrap()).collect();
    assert!(images[0].ends_with("other.img") && images[1].ends_with("mine.img"));
    let drives: Vec<_> = system.vbds().map(|(d, v)| (d.to_string(), v.drive)).collect();
    assert!(drives.contains(&("linux".into(), 1)) && drives.contains(&(system.domains[1].name.clone(), 0)));
}

#[test]
fn what_does_not_fit_is_told_by_name_and_remedy() {
    for (name, line, parts) in [
        ("demo", "--vcpus 2", &["no Linux guest", "cargo xtask run linux"][..]),
        ("two-linux", "--vcpus 2", &["linux-a, linux-b", "--guest NAME"]),
        ("linux", "--guest web", &["--guest web", "it has: linux"]),
        ("demo", "--guest web", &["it has: none"]),
        ("linux", "--memory 4GiB", &["`linux`", "memory = 4GiB", "up to 3GiB"]),
        ("linux", "--disk a --disk b --disk c --disk d --disk e --disk f --disk g", &["7 disks", "6 fit"]),
    ] {
        let error = refusal(name, line);
        for part in parts {
            assert!(error.contains(part), "`{part}` is missing in: {error}");
        }
    }
    for (line, parts) in [
        ("--vcpus 9", &["--vcpus", "1..=4"][..]),
        ("--vcpus 0", &["--vcpus", "1..=4"]),
        ("--memory 512", &["`512` is not a size", "4MiB"]),
        ("--disk :ro", &["FILE or FILE:ro"]),
    ] {
        let error = wrong(line);
        for part in parts {
            assert!(error.contains(part), "`{part}` is missing in: {error}");
        }
    }
    let error = host_has(Size(9 << 30), Size(1 << 30), Some(Size(4 << 30))).unwrap_err().to_string();
    assert!(error.contains("9216 MiB") && error.contains("only 4096 MiB"), "{error}");
    host_has(Size(9 << 30), Size(9 << 30), Some(Size(4 << 30))).unwrap();
}

#[test]
fn a_colon_in_a_name_is_part_of_it() {
    let image = |text: &str| text.parse::<Image>().unwrap();
    assert_eq!(image("a:b"), Image { path: "a:b".into(), read_only: false });
    assert_eq!(image("a:b:ro"), Image { path: "a:b".into(), read_only: true });
}
