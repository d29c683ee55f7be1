//! Every contradiction of disks and vbds is refused with the offender's name, before anything is started.

use super::*;
use crate::drive::Drives;
use crate::manifest::store;
use crate::manifest::vbd::Name;

/// A sound system with two drives on a controller, one on virtio, and three vbds; each test spoils one thing in it.
const DISKS: &str = r#"
[machine]
memory = "64MiB"
cpus = 2
[[machine.disk]]
model = "ahci"
address = "00:04.0"
size = "16MiB"
[[machine.disk.partition]]
name = "root"
size = "2MiB"
[[machine.disk.partition]]
name = "home"
size = "3MiB"
guid = "01234567-89ab-4def-8123-456789abcdef"
[[machine.disk]]
model = "ahci"
address = "00:04.0"
size = "4MiB"
physical-sector-size = 4096
volatile = true
fault = [{ on = "read", first = 8, sectors = 1, error = true }]
[[machine.disk]]
model = "virtio"
address = "00:05.0"
size = "8MiB"
sector-size = 4096

[[domain]]
name = "control"
image = "control"
role = "control"
memory = "4MiB"
[[domain]]
name = "blkback-ahci"
image = "blkback-ahci"
role = "driver"
memory = "4MiB"
device = "00:04.0"
[[domain]]
name = "a"
image = "blkcheck"
role = "guest"
memory = "4MiB"
[[domain.vbd]]
backend = "blkback-ahci"
name = "xvda"
partition = "root"
[[domain.vbd]]
backend = "blkback-ahci"
name = "xvdb"
drive = 1
first = 64
sectors = 128
[[domain]]
name = "b"
image = "blkcheck"
role = "guest"
memory = "4MiB"
[[domain.vbd]]
backend = "blkback-ahci"
name = "xvda"
partition = "01234567-89ab-4def-8123-456789ABCDEF"
"#;

fn sound() -> System {
    System::parse(DISKS, "sample.toml").unwrap()
}

/// Replaces `from` by `to` (once) and returns the refusal, of the manifest or of its drives.
fn refusal(from: &str, to: &str) -> String {
    assert!(DISKS.contains(from), "the sample has no {from}");
    let system = System::parse(&DISKS.replacen(from, to, 1), "sample.toml");
    format!("{:#}", system.and_then(|system| Drives::open(&system)).err().unwrap())
}

macro_rules! refused {
    ($($name:ident: $text:expr => $($part:literal),+;)*) => {$(
        #[test]
        fn $name() {
            let text = $text;
            $(assert!(text.contains($part), "`{}` is missing in: {text}", $part);)+
        }
    )*};
}

refused! {
    a_backend_nobody_knows: refusal("backend = \"blkback-ahci\"", "backend = \"blkback\"")
        => "`a`", "vbd xvda", "\"blkback\"", "disk drivers are: blkback-ahci";
    a_backend_without_disks: refusal("backend = \"blkback-ahci\"", "backend = \"b\"") => "`a`", "\"b\"", "drives no disk";
    a_drive_the_backend_lacks: refusal("drive = 1", "drive = 2") => "`a`", "vbd xvdb", "drive = 2", "has 2 (from 0)";
    two_vbds_of_one_name: refusal("name = \"xvdb\"", "name = \"xvda\"") => "`a`", "two vbds are named xvda";
    a_name_linux_does_not_know: refusal("\"xvdb\"", "\"sda\"") => "`sda`", "xvda to xvdp";
    a_partition_and_a_range: refusal("partition = \"root\"", "partition = \"root\"\nfirst = 1\nsectors = 2")
        => "`a`", "vbd xvda", "both a partition and a range";
    half_a_range: refusal("first = 64\n", "") => "vbd xvdb", "both `first` and `sectors`";
    a_range_that_wraps: refusal("sectors = 128", "sectors = 9223372036854775807\nmode = 'r'") => "vbd xvdb", "64";
    a_range_beyond_the_drive: refusal("sectors = 128", "sectors = 8192") => "`a`", "vbd xvdb", "disk 1 has 8192 sectors", "8255";
    a_partition_that_is_not_there: refusal("\"root\"\n[[domain.vbd]]", "\"boot\"\n[[domain.vbd]]")
        => "`a`", "vbd xvda", "disk 0", "no partition name:boot", "1 `root`, 2 `home`";
    a_partition_where_there_is_no_table: refusal("first = 64\nsectors = 128", "partition = 1") => "vbd xvdb", "no GPT";
    a_mode_that_is_none: refusal("drive = 1", "drive = 1\nmode = 'w'") => "unknown variant `w`", "`rw`";
    two_writers_of_a_partition: refusal("partition = \"01234567-89ab-4def-8123-456789ABCDEF\"", "partition = 1")
        => "vbd xvda of `b`", "vbd xvda of `a`", "disk 0", "mode = \"r\"";
    a_writer_of_all_and_one_of_a_part: refusal("partition = \"01234567-89ab-4def-8123-456789ABCDEF\"", "drive = 1")
        => "vbd xvda of `b`", "vbd xvdb of `a`", "disk 1";
    a_size_that_is_no_number_of_sectors: refusal("size = \"4MiB\"", "size = \"5KiB\"") => "disk 1", "5KiB", "4096 bytes";
    an_image_and_a_size: refusal("size = \"16MiB\"", "size = \"16MiB\"\nimage = \"x.img\"") => "disk 0 (x.img)", "both";
    size_and_content: refusal("size = \"4MiB\"\n", "size = \"4MiB\"\ncontent = \"debian\"\n") => "disk 1", "both `size` and `content`";
    content_with_partitions: refusal("size = \"16MiB\"\n", "content = \"debian\"\n") => "disk 0", "partitions are laid over a `size`d disk only";
    neither_image_nor_size: refusal("size = \"4MiB\"\n", "") => "disk 1", "neither `image` nor `size`";
    partitions_over_an_image: refusal("size = \"16MiB\"", "image = \"x.img\"") => "disk 0 (x.img)", "keeps its own";
    partitions_that_do_not_fit: refusal("size = \"3MiB\"", "size = \"30MiB\"") => "disk 0", "`home` of 30MiB does not fit";
    sectors_of_another_size: refusal("physical-sector-size = 4096", "physical-sector-size = 1024") => "disk 1", "1024";
    large_sectors_on_ahci: refusal("physical-sector-size = 4096", "sector-size = 4096") => "disk 1", "virtio";
    a_controller_at_a_nic: refusal("[[machine.disk]]", "[[machine.nic]]\nmodel='e1000'\naddress='00:04.0'\nmac='52:54:00:00:00:01'\n[[machine.disk]]")
        => "disk 0", "[[machine.nic]]", "00:04.0";
    two_models_at_one_address: refusal("\"virtio\"\naddress = \"00:05.0\"", "\"virtio\"\naddress = \"00:04.0\"")
        => "00:04.0", "another model";
    the_machines_own_controller: refusal("\"00:05.0\"", "\"00:1f.2\"") => "disk 2", "its own controller";
    an_unknown_key_of_a_disk: refusal("volatile", "volatil") => "unknown field `volatil`", "`volatile`";
    an_unknown_key_of_a_vbd: refusal("drive = 1", "disk = 1") => "unknown field `disk`", "`drive`";
    a_fault_that_does_nothing: refusal(", error = true", "") => "disk 1", "neither `delay` nor `error`";
    damage_without_a_table: refusal("volatile", "damage = 'primary-gpt'\nvolatile") => "disk 1", "no GPT";
    a_missing_image: refusal("size = \"4MiB\"", "image = \"/nowhere/x.img\"")
        => "disk 1", "/nowhere/x.img does not exist", "truncate -s 1G /nowhere/x.img";
    an_image_that_is_a_folder: refusal("size = \"4MiB\"", "image = \"/\"") => "disk 1", "no regular file";
    a_vbd_of_control: refusal("role = \"control\"", "role = \"control\"\nvbd = [{ backend = \"blkback-ahci\", name = \"xvda\", mode = \"r\" }]")
        => "`control`", "no `vbd`";
}

#[test]
fn the_sample_is_sound_and_a_reader_may_share_what_another_writes() {
    let system = sound();
    let drives = Drives::open(&system).unwrap();
    let places: Vec<_> = system.vbds().map(|(_, vbd)| drives.place(&system, vbd).unwrap()).collect();
    assert_eq!(places, [2048..6144, 64..192, 6144..12288]);
    let shared = DISKS.replacen("partition = \"01234567-89ab-4def-8123-456789ABCDEF\"", "mode = \"r\"", 1);
    Drives::open(&System::parse(&shared, "sample.toml").unwrap()).unwrap();
}

#[test]
fn ranges_of_a_drive_with_large_sectors_count_512_bytes_as_everywhere() {
    let large = |first: u64| {
        let text = DISKS.replace("model = \"ahci\"", "model = \"virtio\"").replace("drive = 1\n", "");
        let text = text.replacen("address = \"00:04.0\"", "address = \"00:04.0\"\nsector-size = 4096", 1);
        let text = text.replacen("address = \"00:04.0\"\nsize = \"4MiB\"", "address = \"00:06.0\"\nsize = \"4MiB\"", 1);
        System::parse(
            &text.replace("first = 64\nsectors = 128", &format!("first = {first}\nsectors = 128")),
            "large.toml",
        )
    };
    let places = |system: &System| -> Vec<_> {
        let drives = Drives::open(system).unwrap();
        system.vbds().map(|(_, vbd)| drives.place(system, vbd).unwrap()).collect()
    };
    assert_eq!(places(&large(64).unwrap()), [2048..6144, 64..192, 6144..12288]);
    let error = |first| format!("{:#}", Drives::open(&large(first).unwrap()).err().unwrap());
    assert!(error(65).contains("multiples of 8"), "{}", error(65));
    assert!(error(4096).contains("may both write"), "inside of the first partition: {}", error(4096));
    assert!(error(1 << 20).contains("are wanted"), "{}", error(1 << 20));
}

#[test]
fn an_image_of_another_run_or_of_a_wrong_size_is_refused() {
    let folder = crate::machine::folder("image-test").unwrap();
    let image = folder.join("x.img");
    std::fs::write(&image, [0; 1024]).unwrap();
    let text = DISKS.replacen("size = \"4MiB\"", &format!("image = \"{}\"", image.display()), 1);
    let text = text.replacen("first = 64\nsectors = 128", "first = 0\nsectors = 2", 1);
    let system = System::parse(&text, "sample.toml").unwrap();
    let first = Drives::open(&system).unwrap();
    let error = format!("{:#}", Drives::open(&system).err().unwrap());
    assert!(error.contains("x.img is in use by another run"), "{error}");
    drop(first);
    std::fs::write(&image, [0; 1000]).unwrap();
    let error = format!("{:#}", Drives::open(&system).err().unwrap());
    assert!(error.contains("x.img has 1000 bytes") && error.contains("512 bytes"), "{error}");
}

#[test]
fn an_image_of_another_format_is_no_disk() {
    let folder = crate::machine::folder("format-test").unwrap();
    let image = folder.join("x.qcow2");
    std::fs::write(&image, [b"QFI\xfb", &[0; 1020][..]].concat()).unwrap();
    let error = refusal("size = \"4MiB\"", &format!("image = \"{}\"", image.display()));
    for part in ["x.qcow2", "a qcow2 image", "qemu-img convert -O raw"] {
        assert!(error.contains(part), "`{part}` is missing in: {error}");
    }
}

#[test]
fn the_initial_xenstore_has_both_ends_of_a_vbd() {
    let text = store::compile(&sound());
    for line in [
        "/local/domain/1/backend/vbd\tn1\t",
        "/local/domain/2/device/vbd/51712/backend\tn2,r1\t/local/domain/1/backend/vbd/2/51712",
        "/local/domain/2/device/vbd/51728/virtual-device\tn2,r1\t51728",
        "/local/domain/2/device/vbd/51728/state\tn2,r1\t1",
        "/local/domain/1/backend/vbd/2/51712/source\tn1,r2\tdrive=0,partition=name:root",
        "/local/domain/1/backend/vbd/2/51728/source\tn1,r2\tdrive=1,first=64,sectors=128",
        "/local/domain/1/backend/vbd/3/51712/source\tn1,r3\tdrive=0,partition=guid:01234567-89ab-4def-8123-456789abcdef",
        "/local/domain/1/backend/vbd/2/51728/dev\tn1,r2\txvdb",
        "/local/domain/1/backend/vbd/2/51712/mode\tn1,r2\tw",
        "/local/domain/1/backend/vbd/3/51712/frontend\tn1,r3\t/local/domain/3/device/vbd/51712",
    ] {
        assert!(text.lines().any(|l| l == line), "`{line}` is missing in\n{text}");
    }
}

#[test]
fn names_have_linuxs_numbers() {
    let device = |name: &str| name.parse::<Name>().map(|n| n.device).ok();
    assert_eq!(device("xvda"), Some(51712));
    assert_eq!(device("xvdb"), Some(51728));
    assert_eq!(device("xvda1"), Some(51713));
    assert_eq!(device("xvdp15"), Some(51712 + 255));
    for bad in ["xvd", "xvdq", "xvda0", "xvda16", "xvda+1", "hda", "xvdé"] {
        assert_eq!(device(bad), None, "{bad}");
    }
}

#[test]
fn a_damaged_copy_of_a_table_leaves_the_other() {
    for damage in ["primary-gpt", "backup-gpt"] {
        let text = DISKS.replacen("size = \"16MiB\"", &format!("size = \"16MiB\"\ndamage = \"{damage}\""), 1);
        let system = System::parse(&text, "sample.toml").unwrap();
        let drives = Drives::open(&system).unwrap();
        let (_, vbd) = system.vbds().next().unwrap();
        assert_eq!(drives.place(&system, vbd).unwrap(), 2048..6144, "{damage}");
    }
}
