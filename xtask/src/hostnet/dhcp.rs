//! The DHCP server: each guest of the manifest has one address, for ever; nobody else gets any (RFC 2131).

use super::frame::{self, HOST_IP, PREFIX_LEN, Target};
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, Ipv4Address, Ipv4Cidr};

/// Lease in seconds; longer than any run.
const LEASE: u32 = 86_400;

/// The answer to a client's message: the frame, and whether it was an acknowledgement.
pub struct Answer {
    /// To send.
    pub frame: Vec<u8>,
    /// Who it is for.
    pub client: EthernetAddress,
    /// The client has its address now.
    pub bound: bool,
}

/// Answers one message; `lease` knows the address of a client.
pub fn answer(message: &[u8], lease: impl Fn(EthernetAddress) -> Option<Ipv4Address>) -> Option<Answer> {
    let packet = DhcpPacket::new_checked(message).ok()?;
    let request = DhcpRepr::parse(&packet).ok()?;
    let client = request.client_hardware_address;
    let address = lease(client)?;
    let wanted = request.requested_ip.or(Some(request.client_ip).filter(|ip| !ip.is_unspecified()));
    let to_us = request.server_identifier.is_none_or(|server| server == HOST_IP);
    let kind = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if !to_us => return None,
        DhcpMessageType::Request if wanted == Some(address) => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        _ => return None,
    };
    let granted = kind != DhcpMessageType::Nak;
    let reply = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: client,
        client_ip: Ipv4Address::UNSPECIFIED,
        your_ip: if granted { address } else { Ipv4Address::UNSPECIFIED },
        server_ip: HOST_IP,
        router: granted.then_some(HOST_IP),
        subnet_mask: granted.then(|| Ipv4Cidr::new(HOST_IP, PREFIX_LEN).netmask()),
        relay_agent_ip: Ipv4Address::UNSPECIFIED,
        broadcast: true,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(HOST_IP),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: granted.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut payload = vec![0; reply.buffer_len()];
    reply.emit(&mut DhcpPacket::new_unchecked(payload.as_mut_slice())).ok()?;
    let everybody = Target { mac: EthernetAddress::BROADCAST, ip: Ipv4Address::BROADCAST };
    Some(Answer { frame: frame::udp(everybody, 67, 68, &payload), client, bound: kind == DhcpMessageType::Ack })
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::iface::{Config, Interface, SocketSet};
    use smoltcp::phy::{Device, Loopback, Medium, RxToken, TxToken};
    use smoltcp::socket::dhcpv4;
    use smoltcp::time::Instant;

    const CLIENT: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 0x10]);
    const ADDRESS: Ipv4Address = Ipv4Address::new(10, 0, 2, 16);

    /// The client of smoltcp, which the web guest uses, against the server.
    #[test]
    fn a_client_gets_its_address_gateway_and_prefix() {
        let mut device = Loopback::new(Medium::Ethernet);
        let mut now = Instant::ZERO;
        let mut iface = Interface::new(Config::new(CLIENT.into()), &mut device, now);
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(dhcpv4::Socket::new());
        for _ in 0..20 {
            iface.poll_egress(now, &mut device, &mut sockets);
            let mut answers = Vec::new();
            while let Some((token, _)) = device.receive(now) {
                token.consume(|bytes| {
                    if let frame::Kind::Dhcp(message) = frame::inspect(bytes) {
                        answers.extend(answer(message, |mac| (mac == CLIENT).then_some(ADDRESS)));
                    }
                });
            }
            for answer in answers {
                device.transmit(now).unwrap().consume(answer.frame.len(), |out| out.copy_from_slice(&answer.frame));
            }
            iface.poll(now, &mut device, &mut sockets);
            if let Some(dhcpv4::Event::Configured(config)) = sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
                assert_eq!(config.address, Ipv4Cidr::new(ADDRESS, PREFIX_LEN));
                assert_eq!(config.router, Some(HOST_IP));
                return;
            }
            now += smoltcp::time::Duration::from_secs(1);
        }
        panic!("no address after 20 seconds");
    }

    #[test]
    fn a_stranger_gets_nothing() {
        let mut device = Loopback::new(Medium::Ethernet);
        let mut iface = Interface::new(Config::new(CLIENT.into()), &mut device, Instant::ZERO);
        let mut sockets = SocketSet::new(vec![]);
        sockets.add(dhcpv4::Socket::new());
        iface.poll_egress(Instant::ZERO, &mut device, &mut sockets);
        let (token, _) = device.receive(Instant::ZERO).unwrap();
        token.consume(|bytes| {
            let frame::Kind::Dhcp(message) = frame::inspect(bytes) else { panic!("no DHCP") };
            assert!(answer(message, |_| None).is_none());
            assert!(answer(&message[..100], |_| Some(ADDRESS)).is_none(), "a cut message is no message");
        });
    }
}
