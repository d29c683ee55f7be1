//! The guest's addresses: DHCPv4 (RFC 2131) and stateless autoconfiguration (RFC 4862) over one smoltcp interface.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::dhcpv4;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv6Address, Ipv6Cidr};

/// An interface that configures itself.
pub struct Net {
    /// The interface.
    pub interface: Interface,
    dhcp: SocketHandle,
}

/// The link-local address of a MAC (RFC 4291, appendix A: modified EUI-64).
#[must_use]
pub const fn link_local(mac: [u8; 6]) -> Ipv6Address {
    let [a, b, c, d, e, f] = mac;
    Ipv6Address::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

impl Net {
    /// Makes the interface of `mac` on `device`. `seed` randomises ports and sequence numbers.
    pub fn new(
        device: &mut (impl Device + ?Sized),
        sockets: &mut SocketSet<'static>,
        mac: [u8; 6],
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut config = Config::new(EthernetAddress(mac).into());
        config.random_seed = seed;
        config.slaac = true;
        let mut interface = Interface::new(config, device, now);
        interface.update_ip_addrs(|addrs| {
            // The list is empty, so there is room.
            let _ = addrs.push(IpCidr::Ipv6(Ipv6Cidr::new(link_local(mac), 64)));
        });
        let dhcp = sockets.add(dhcpv4::Socket::new());
        Self { interface, dhcp }
    }

    /// Moves packets and takes up what DHCP says; true if anything changed. `look` sees the sockets after each packet received.
    pub fn poll(
        &mut self,
        device: &mut (impl Device + ?Sized),
        sockets: &mut SocketSet<'static>,
        now: Instant,
        mut look: impl FnMut(&mut SocketSet<'static>),
    ) -> bool {
        let mut moved = false;
        self.interface.poll_maintenance(now);
        while self.interface.poll_ingress_single(now, device, sockets) != PollIngressSingleResult::None {
            moved = true;
            look(sockets);
            // What comes in one go with DHCP's last word is for the new address already: a request for it that is not answered is
            // sent again only after a second.
            if self.interface.ipv4_addr().is_none() {
                self.follow_dhcp(sockets);
            }
        }
        while self.interface.poll_egress(now, device, sockets) == PollResult::SocketStateChanged {
            moved = true;
        }
        moved | self.follow_dhcp(sockets)
    }

    /// Takes up what DHCP says; true if anything changed.
    fn follow_dhcp(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        match sockets.get_mut::<dhcpv4::Socket<'_>>(self.dhcp).poll() {
            None => return false,
            Some(dhcpv4::Event::Configured(lease)) => {
                log::info!("net: DHCP gave {}", lease.address);
                self.set_ipv4(Some(IpCidr::Ipv4(lease.address)));
                if let Some(router) = lease.router {
                    let _ = self.interface.routes_mut().add_default_ipv4_route(router);
                } else {
                    self.interface.routes_mut().remove_default_ipv4_route();
                }
            }
            Some(dhcpv4::Event::Deconfigured) => {
                self.set_ipv4(None);
                self.interface.routes_mut().remove_default_ipv4_route();
            }
        }
        true
    }

    fn set_ipv4(&mut self, address: Option<IpCidr>) {
        self.interface.update_ip_addrs(|addrs| {
            addrs.retain(|a| matches!(a, IpCidr::Ipv6(_)));
            if let Some(address) = address
                && addrs.push(address).is_err()
            {
                log::warn!("net: no room for address {address}");
            }
        });
    }

    /// All addresses, as text.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.interface.ip_addrs().iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_follows_modified_eui_64() {
        let address = link_local([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
        assert_eq!(address.to_string(), "fe80::5054:ff:fe12:3456");
    }
}
