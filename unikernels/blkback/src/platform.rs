//! The domain's side of the backend: frontends' pages under libxenrt.

use abi::grant::status;
use alloc::vec::Vec;
use blkback::{MapError, MapRequest, Mapped, Platform};
use driver_domain::Channels;
use libxenrt::SharedPage;
use libxenrt::grant::{self, Access, GrantError};

/// Pages mapped by one hypercall: the hypervisor takes no more.
const BATCH: usize = 512;

/// Hypercalls.
#[derive(Debug, Default)]
pub(crate) struct Hypercalls {
    channels: Channels,
}

impl Hypercalls {
    pub(crate) const fn channels(&mut self) -> &mut Channels {
        &mut self.channels
    }
}

driver_domain::runtime_by_channels!(Hypercalls);

fn request(request: &MapRequest) -> grant::MapRequest {
    let access = if request.readonly { Access::ReadOnly } else { Access::ReadWrite };
    grant::MapRequest { dom: request.dom, gref: request.gref, access, device: request.device }
}

fn mapped(page: SharedPage) -> Mapped<SharedPage> {
    let device_addr = page.device_address().unwrap_or_default();
    Mapped { page, device_addr }
}

fn refusal(e: GrantError) -> MapError {
    match e {
        GrantError::Status(status::NO_DEVICE_SPACE) | GrantError::NoRoom | GrantError::TableFull => MapError::NoRoom,
        GrantError::Status(status) => MapError::Refused(status),
        GrantError::BadFrame(_) | GrantError::Busy(_) | GrantError::Hypercall(_) => {
            MapError::Refused(status::GENERAL_ERROR)
        }
    }
}

impl Platform for Hypercalls {
    type Page = SharedPage;

    fn map(&mut self, requests: &[MapRequest], results: &mut Vec<Result<Mapped<SharedPage>, MapError>>) {
        for chunk in requests.chunks(BATCH) {
            let wanted: Vec<_> = chunk.iter().map(request).collect();
            match grant::map_many(&wanted) {
                Ok(pages) => results.extend(pages.into_iter().map(|page| page.map(mapped).map_err(refusal))),
                Err(e) => results.extend(chunk.iter().map(|_| Err(refusal(e)))),
            }
        }
    }

    fn unmap(&mut self, pages: &mut Vec<SharedPage>) {
        grant::unmap_many(pages.drain(..));
    }
}
