//! The build script of every unikernel: links it with `images/unikernel.ld` as a static PIE that both hermit-entry's
//! loader and Xen's PVH loader take. On the host (where only the pure parts are tested) it does nothing.

fn main() {
    println!("cargo::rerun-if-changed=../build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    assert!(
        flags.contains("-aggressive-instcombine-max-scan-instrs=0"),
        "compiler flags from the environment replace those of .cargo/config.toml, without which code is known to be \
         compiled wrongly: unset RUSTFLAGS, or add the ones that stand there to it"
    );
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let script = std::path::Path::new(&here).join("../../images/unikernel.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    // Relocations stay plain R_X86_64_RELATIVE in one table, which the PVH entry walks itself.
    println!("cargo::rustc-link-arg-bins=-znocombreloc");
    println!("cargo::rustc-link-arg-bins=-znorelro");
    println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
    println!("cargo::rustc-link-arg-bins=--build-id=none");
}
