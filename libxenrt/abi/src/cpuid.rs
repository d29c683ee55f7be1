//! CPUID leaves of the hypervisor (`public/arch-x86/cpuid.h`).

/// First hypervisor leaf: EAX = largest leaf, EBX/ECX/EDX = "XenVMMXenVMM".
pub const BASE: u32 = 0x4000_0000;
/// EBX, ECX, EDX of [`BASE`].
pub const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];
/// Largest hypervisor leaf we answer.
pub const MAX_LEAF: u32 = BASE + 5;
/// Leaf +2: EAX = pages of hypercall stubs, EBX = the MSR that writes them.
pub const HYPERCALL_MSR: u32 = 0x4000_0000;
/// Leaf +4, EAX: x2APIC accesses need no emulation by an external model (`XEN_HVM_CPUID_X2APIC_VIRT`).
pub const HVM_X2APIC_VIRT: u32 = 1 << 1;
/// Leaf +4, EAX: vCPU id in EBX (`XEN_HVM_CPUID_VCPU_ID_PRESENT`).
pub const HVM_VCPU_ID_PRESENT: u32 = 1 << 3;
/// Leaf +4, EAX: domain id in ECX (`XEN_HVM_CPUID_DOMID_PRESENT`).
pub const HVM_DOMID_PRESENT: u32 = 1 << 4;

#[cfg(test)]
mod tests {
    #[test]
    fn signature_spells_xen() {
        let bytes: Vec<u8> = super::SIGNATURE.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(bytes, b"XenVMMXenVMM");
    }
}
