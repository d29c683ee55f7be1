//! Every contradiction is refused with the offender's name.

use super::*;

/// A sound system; each test spoils one thing in it.
pub const SYSTEM: &str = r#"
[machine]
memory = "64MiB"
cpus = 2
[[machine.nic]]
model = "e1000"
address = "00:03.0"
mac = "52:54:00:00:00:01"

[[domain]]
name = "control"
image = "control"
role = "control"
memory = "4MiB"
ports = [{ first = 0x2f8, count = 8, irq = 3 }]

[[domain]]
name = "netback-e1000"
image = "netback-e1000"
role = "driver"
memory = "4MiB"
device = "00:03.0"
config = { burst = "64" }
[domain.policy]
on-failure = "restart"
back-off = "50ms"
max-restarts = 5
window = "10s"

[[domain]]
name = "web"
image = "web"
role = "guest"
memory = "8MiB"
may-crash = ["netback-e1000"]
[[domain.vif]]
backend = "netback-e1000"
mac = "52:54:00:00:00:10"
rules = ["allow in tcp 80", "deny in"]
"#;

/// Replaces `from` by `to` (once) and returns the refusal.
fn refusal(from: &str, to: &str) -> String {
    assert!(SYSTEM.contains(from), "the sample has no {from}");
    let error = System::parse(&SYSTEM.replacen(from, to, 1), "sample.toml").unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("sample.toml"), "the file is not named: {text}");
    text
}

/// Adds text at the end and returns the refusal.
fn refusal_of(more: &str) -> String {
    format!("{:#}", System::parse(&format!("{SYSTEM}\n{more}"), "sample.toml").unwrap_err())
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
    a_device_owned_twice: refusal_of("[[domain]]\nname='b'\nimage='x'\nrole='driver'\nmemory='4MiB'\ndevice='00:03.0'")
        => "00:03.0", "`netback-e1000`", "`b`", "one owner";
    a_device_of_a_guest: refusal("role = \"driver\"", "role = \"guest\"") => "netback-e1000", "role = \"driver\"";
    a_device_the_machine_lacks: refusal("device = \"00:03.0\"", "device = \"00:04.0\"")
        => "00:04.0", "machine has nothing there", "netback-e1000";
    an_address_that_is_none: refusal("device = \"00:03.0\"", "device = \"3\"") => "`3` is not a PCI address";
    an_unknown_key_of_a_domain: refusal("may-crash", "can-crash") => "unknown field `can-crash`", "may-crash";
    an_unknown_key_of_a_vif: refusal("rules", "firewall") => "unknown field `firewall`", "`rules`";
    an_unknown_key_of_a_policy: refusal("window", "span") => "unknown field `span`", "`window`";
    an_unknown_key_of_the_machine: refusal("cpus", "cores") => "unknown field `cores`", "`cpus`";
    more_cpus_than_the_hypervisor_knows: refusal("cpus = 2", "cpus = 32") => "machine.cpus = 32", "1 to 31";
    an_unknown_role: refusal("role = \"guest\"", "role = \"vip\"") => "unknown variant `vip`", "`guest`";
    a_missing_key: refusal("image = \"web\"", "") => "`web`", "image", "[domain.linux]";
    both_image_and_kernel: refusal("may-crash", "linux = { kernel = \"k\" }\nmay-crash") => "`web`", "both";
    a_linux_driver: refusal("image = \"netback-e1000\"", "linux = { kernel = \"k\" }") => "netback-e1000", "role = \"guest\"";
    a_config_of_linux: refusal("image = \"web\"", "linux = { kernel = \"k\" }\nconfig = { a = \"b\" }")
        => "`web`", "command-line";
    more_vcpus_than_events_have_room_for:
        refusal("image = \"web\"", "linux = { kernel = \"k\" }\nvcpus = 5") => "`web`", "vcpus = 5", "4 are possible";
    control_that_is_not_started: refusal("ports = [{", "start = false\nports = [{") => "`control`", "start = false";
    two_domains_of_one_name: refusal("name = \"web\"", "name = \"control\"") => "two domains", "`control`";
    a_name_nobody_can_type: refusal("name = \"web\"", "name = \"we b\"") => "`we b`";
    a_vif_to_an_unknown_backend: refusal("backend = \"netback-e1000\"", "backend = \"netback\"")
        => "`web`", "vif 0", "\"netback\"", "drivers are: netback-e1000";
    a_vif_to_a_domain_that_is_no_driver: refusal("backend = \"netback-e1000\"", "backend = \"control\"")
        => "\"control\"", "is no driver";
    two_vifs_of_one_mac: refusal_of("[[domain.vif]]\nbackend='netback-e1000'\nmac='52:54:00:00:00:10'")
        => "52:54:00:00:00:10", "`web`", "vif";
    a_multicast_mac: refusal("52:54:00:00:00:10", "53:54:00:00:00:10") => "53:54:00:00:00:10", "multicast";
    a_rule_that_would_break_the_list: refusal("deny in", "deny;in") => "`deny;in`", "vif 0";
    a_right_over_nobody: refusal("may-crash = [\"netback-e1000\"]", "may-crash = [\"x\"]") => "`x`", "`web`";
    more_memory_than_the_machine_has: refusal("memory = \"8MiB\"", "memory = \"64MiB\"")
        => "72 MiB", "machine.memory is 64MiB";
    a_size_without_unit: refusal("memory = \"8MiB\"", "memory = \"8\"") => "`8` is not a size", "4MiB";
    memory_above_the_window_of_foreign_pages: refusal("memory = \"8MiB\"", "memory = \"2GiB\"") => "`web`", "2GiB";
    no_control_domain: refusal("role = \"control\"", "role = \"guest\"") => "no domain has role = \"control\"";
    two_control_domains: refusal("role = \"guest\"", "role = \"control\"") => "2 domains", "control, web";
    a_cpu_the_machine_lacks: refusal("image = \"web\"", "image = \"web\"\ncpus = [2]") => "`web`", "names 2", "0 to 1";
    no_vcpu: refusal("image = \"web\"", "image = \"web\"\nvcpus = 0") => "`web`", "vcpus = 0";
    a_config_key_with_a_space: refusal("{ burst", "{ \"bu rst\"") => "`bu rst`", "netback-e1000";
    ports_given_twice: refusal("image = \"web\"", "image = \"web\"\nports = [{ first = 0x2ff, count = 2 }]")
        => "0x2ff", "`control`", "`web`";
    an_interrupt_given_twice:
        refusal("image = \"web\"", "image = \"web\"\nports = [{ first = 0x60, count = 1, irq = 3 }]") => "interrupt 3";
    config_for_control: refusal("ports = [", "config = { a = \"b\" }\nports = [") => "`control`", "initial xenstore";
    a_driver_that_would_be_destroyed: refusal("on-failure = \"restart\"", "on-failure = \"destroy\"")
        => "netback-e1000", "on-failure", "is for guests";
    more_restarts_than_control_remembers: refusal("max-restarts = 5", "max-restarts = 5000") => "5000", "netback-e1000";
    a_vif_of_control: refusal("ports = [", "vif = [{ backend = \"netback-e1000\", mac = \"52:54:00:00:00:12\" }]\nports = [")
        => "`control`", "no `vif`";
    no_toml_at_all: refusal("[machine]", "[machine") => "sample.toml", "line";
}

#[test]
fn a_bundle_that_leaves_no_room_for_the_domains_is_refused() {
    let system = System::parse(SYSTEM, "sample.toml").unwrap();
    check::bundle(&system, 1 << 20).unwrap();
    let error = check::bundle(&system, 30 << 20).unwrap_err().to_string();
    for part in ["with 30 MiB", "machine.memory is 64MiB", "128MiB or more"] {
        assert!(error.contains(part), "`{part}` is missing in: {error}");
    }
}

#[test]
fn the_control_domain_has_to_come_first() {
    let (control, rest) = SYSTEM.split_once("[[domain]]\nname = \"netback").unwrap();
    let (machine, control) = control.split_once("[[domain]]").unwrap();
    let turned = format!("{machine}\n[[domain]]\nname = \"netback{rest}\n[[domain]]{control}");
    let error = format!("{:#}", System::parse(&turned, "sample.toml").unwrap_err());
    assert!(error.contains("has to be the first"), "{error}");
}

#[test]
fn the_initial_xenstore_has_both_ends_of_a_vif_and_parents_first() {
    let text = store::compile(&System::parse(SYSTEM, "sample.toml").unwrap());
    for line in [
        "/local/domain/2/name\tn0,r2\tweb",
        "/local/domain/2/device/vif/0/backend\tn2,r1\t/local/domain/1/backend/vif/2/0",
        "/local/domain/2/device/vif/0/state\tn2,r1\t1",
        "/local/domain/1/backend/vif/2/0/frontend-id\tn1,r2\t2",
        "/local/domain/1/backend/vif/2/0/mac\tn1,r2\t52:54:00:00:00:10",
        "/local/domain/1/backend/vif/2/0/rules\tn1,r2\tallow in tcp 80;deny in",
        "/xenolith/right/1\tn0,r1\t",
        "/xenolith/right/2/crash\tn0,r2\tnetback-e1000",
        "/xenolith/policy/1/on-failure\tn0\trestart",
        "/xenolith/policy/1/back-off-ms\tn0\t50",
        "/xenolith/policy/1/window-ms\tn0\t10000",
        "/xenolith/request/2\tn2\t",
    ] {
        assert!(text.lines().any(|l| l == line), "`{line}` is missing in\n{text}");
    }
    let mut seen = std::collections::BTreeSet::from([String::new()]);
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields.len(), 3, "{line}");
        let (parent, _) = fields[0].rsplit_once('/').unwrap();
        assert!(seen.contains(parent), "{line} comes before its parent");
        assert!(seen.insert(fields[0].to_string()), "{line} is there twice");
    }
}

#[test]
fn a_missing_image_or_system_lists_what_there_is() {
    let error = image::Image::load("netback-e1001").unwrap_err().to_string();
    assert!(error.contains("`netback-e1001`") && error.contains("netback-e1000,"), "{error}");
    let error = System::load("nosuch").unwrap_err().to_string();
    assert!(error.contains("`nosuch`") && error.contains("default"), "{error}");
}

#[test]
fn every_manifest_in_the_tree_is_sound() {
    for name in names(&paths::images()) {
        image::Image::load(&name).unwrap();
    }
    for name in names(&paths::images().join("systems")) {
        let system = System::load(&name).unwrap();
        for image in system.images() {
            image::Image::load(image).unwrap();
        }
    }
}
