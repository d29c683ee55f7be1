//! Layout of a shared ring page (`public/io/ring.h`): four indices, padding to 64 bytes, then a power of two of slots.

/// `req_prod`: written by the frontend.
pub const REQ_PROD: usize = 0;
/// `req_event`: written by the backend; it wants a notification when `req_prod` passes it.
pub const REQ_EVENT: usize = 4;
/// `rsp_prod`: written by the backend.
pub const RSP_PROD: usize = 8;
/// `rsp_event`: written by the frontend.
pub const RSP_EVENT: usize = 12;
/// First slot.
pub const SLOTS: usize = 64;

/// Slots of `slot_size` bytes in a ring of `pages` pages: the largest power of two that fits (`__RING_SIZE`).
#[must_use]
pub const fn slots(pages: usize, slot_size: usize) -> u32 {
    let room = pages.saturating_mul(crate::PAGE_SIZE).saturating_sub(SLOTS);
    match room.checked_div(slot_size) {
        Some(n) if n > 0 => 1u32 << n.ilog2(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn netif_rings_have_256_slots() {
        assert_eq!(super::slots(1, 12), 256);
        assert_eq!(super::slots(1, 8), 256);
        assert_eq!(super::slots(1, 112), 32);
    }
}
