//! Control messages: pings to a VIP, and errors about our flows, translated with the packet they quote (rule 10, RFC 5508, RFC 7915 for what IPv6 needs).

use super::direct::is_guarded;
use super::{Departure, Stage, Walk};
use crate::base::{Direction, LastHop, Reason, Verdict};
use crate::flow::{Key, Side};
use crate::packet::{Meta, Packet};
use crate::parse::{Fragment, Ip};
use crate::wire::icmp::{self, Kind};
use crate::wire::{checksum, ipv4, ipv6, protocol};
use crate::{limit, reply, rewrite};

/// RFC 792: at least this much of the quoted L4 header is there.
const LEAST_QUOTED: usize = 8;

/// The packet that an error quotes. Offsets are within the ICMP message.
#[derive(Clone, Copy)]
struct Quoted {
    ip: Ip,
    source_port: u16,
    destination_port: u16,
}

/// The flow that an error is about.
#[derive(Clone, Copy)]
struct Flow {
    service: u32,
    server: u32,
    /// Where the client's packets came from, if that is known.
    last_hop: Option<LastHop>,
}

fn key_of((client, client_port): (u128, u16), side: Side) -> Key {
    Key {
        client,
        client_port,
        side,
    }
}

impl Walk<'_> {
    /// Rule 10. `packet` is whole: fragments never come here.
    #[inline(never)]
    pub(super) fn icmp(&mut self, packet: &mut Packet, to_vip: bool) -> Stage<Departure> {
        let Ip {
            v4, destination, ..
        } = packet.meta.ip;
        let header = icmp::Header::new(packet.l4_bytes()).ok_or(Reason::L4Truncated)?;
        let kind = icmp::kind(v4, header.message_type());
        if to_vip {
            check_checksum(packet)?;
            return match kind {
                Kind::EchoRequest => Err(self.echo(packet)),
                Kind::Redirect => Err(Reason::IcmpRedirect.into()),
                Kind::Other => Err(Reason::IcmpType.into()),
                Kind::Error => self.error_to_vip(packet),
            };
        }
        match kind {
            Kind::EchoRequest if self.world.role(v4, destination).server.is_some() => {
                Err(Reason::ServerEcho.into())
            }
            Kind::EchoRequest | Kind::Other => self.transit(packet),
            Kind::Redirect => Err(Reason::IcmpRedirect.into()),
            Kind::Error => self.error_past_us(packet),
        }
    }

    fn echo(&mut self, packet: &Packet) -> Verdict {
        if !self.world.snapshot.answer_echo {
            return Reason::VipEcho.into();
        }
        let Meta {
            interface,
            link,
            ip,
            ..
        } = *packet.meta;
        let Some(port) = self.world.port(interface) else {
            return Reason::VipEcho.into();
        };
        if !self.take_token(limit::Kind::Echo) {
            return Reason::RateLimited.into();
        }
        let ends = (ip.destination, ip.source);
        let frame = reply::echo_reply(packet.frame, link, port.mac, ends, packet.l4_bytes());
        self.answer(interface, frame);
        Verdict::Reply(Reason::Echo)
    }

    /// An error about a packet that a server sent through us: it quotes the VIP as its source.
    fn error_to_vip(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let quoted = quoted(packet.meta.ip.v4, packet.l4_bytes())?;
        let Ip {
            v4,
            source,
            destination,
            protocol,
            ..
        } = quoted.ip;
        if source != packet.meta.ip.destination {
            return Err(Reason::IcmpInner.into());
        }
        let vip = self.world.place(v4, source);
        let service = self
            .world
            .listener(vip, quoted.source_port, protocol)
            .service;
        let service = service.ok_or(Reason::IcmpNoFlow)?;
        let client = (destination, quoted.destination_port);
        let flow = self
            .stored_flow(client, Side::Service(service))
            .or_else(|| self.hashed_flow_to_vip(client, service))
            .ok_or(Reason::IcmpNoFlow)?;
        self.translate_error(packet, &quoted, &flow, Direction::Forward)
    }

    /// An error that is not for a VIP: about a packet we sent to a server, or of no concern to us.
    fn error_past_us(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let v4 = packet.meta.ip.v4;
        let quoted = match quoted(v4, packet.l4_bytes()) {
            Ok(quoted) => quoted,
            Err(reason) => {
                let about = quoted_destination(v4, packet.l4_bytes());
                let about_server =
                    about.is_some_and(|address| self.world.role(v4, address).server.is_some());
                return if about_server {
                    Err(reason.into())
                } else {
                    self.transit(packet)
                };
            }
        };
        let Ip {
            source: inner_source,
            destination,
            protocol,
            ..
        } = quoted.ip;
        let server = self.world.place(v4, destination);
        let listener = self
            .world
            .listener(server, quoted.destination_port, protocol);
        let Some(endpoint) = listener.endpoint else {
            return self.transit(packet);
        };
        check_checksum(packet)?;
        if packet.meta.ip.destination != inner_source {
            return Err(Reason::IcmpInner.into());
        }
        let client = (inner_source, quoted.source_port);
        let key = key_of(client, Side::Endpoint(endpoint));
        let timeouts = &self.world.snapshot.timeouts;
        let guarded = is_guarded(self.world, &key);
        let direct = &self.state.direct;
        if direct.knows(&key, guarded, timeouts, self.now) {
            return self.transit(packet);
        }
        let flow = self
            .stored_flow(client, Side::Endpoint(endpoint))
            .or_else(|| self.hashed_flow_of_endpoint(client, endpoint))
            .ok_or(Reason::IcmpNoFlow)?;
        self.translate_error(packet, &quoted, &flow, Direction::Reply)
    }

    /// The flow that an entry of the table says.
    fn stored_flow(&self, client: (u128, u16), side: Side) -> Option<Flow> {
        let number = self.peek(&key_of(client, side))?;
        let entry = self.state.table.entry(number);
        Some(Flow {
            service: entry.service,
            server: entry.server,
            last_hop: Some(entry.last_hop()),
        })
    }

    /// The flow that a client has with a hash service, when there is no entry of it: what follows a restart must not lose path-MTU discovery.
    fn hashed_flow_to_vip(&mut self, client: (u128, u16), service: u32) -> Option<Flow> {
        let server = self.hash_choice(service, client)?;
        let facts = self.world.server(server)?;
        // Another service's flow may have these ports at the server: then this one would not have been placed there.
        let other = key_of(client, Side::Endpoint(facts.endpoint));
        if facts.address == client.0 || self.peek(&other).is_some() {
            return None;
        }
        Some(Flow {
            service,
            server,
            last_hop: None,
        })
    }

    /// The same from a server's side: the first hash service that would have placed the client there, and has no entry that says otherwise.
    fn hashed_flow_of_endpoint(&mut self, client: (u128, u16), endpoint: u32) -> Option<Flow> {
        let world = self.world;
        let mut services = world.hash_services(endpoint).iter();
        services.find_map(|&service| {
            let server = self.hash_choice(service, client)?;
            let facts = world.server(server)?;
            let elsewhere = self.peek(&key_of(client, Side::Service(service)));
            let fits = facts.endpoint == endpoint && facts.address != client.0;
            (fits && elsewhere.is_none()).then_some(Flow {
                service,
                server,
                last_hop: None,
            })
        })
    }

    /// Rule 10.5 and 10.6, from the flow on.
    fn translate_error(
        &mut self,
        packet: &mut Packet,
        quoted: &Quoted,
        flow: &Flow,
        direction: Direction,
    ) -> Stage<Departure> {
        let Flow {
            service,
            server,
            last_hop,
        } = *flow;
        self.found.direction = Some(direction);
        self.found.service = Some(service);
        self.found.server = Some(server);
        self.check_ttl(packet)?;
        self.state
            .counters
            .server_packet(server, direction, packet.meta.ip.total_len());
        self.send_error(packet, &quoted.ip, direction, server, last_hop)
    }
}

fn check_checksum(packet: &Packet) -> Stage<()> {
    let Ip {
        source,
        destination,
        ..
    } = packet.meta.ip;
    let right = icmp::message_checksum(source, destination, packet.l4_bytes()) == 0;
    if right {
        Ok(())
    } else {
        Err(Reason::IcmpChecksum.into())
    }
}

/// Read the packet in an error message: rule 10.4.
fn quoted(v4: bool, message: &[u8]) -> Result<Quoted, Reason> {
    let ip = if v4 {
        quoted_v4(message)?
    } else {
        quoted_v6(message)?
    };
    if ip.is_later_fragment() {
        return Err(Reason::IcmpInner);
    }
    let l4 = message.get(ip.l4..).unwrap_or_default();
    if ip.protocol == icmp::protocol_of(v4) {
        let about = l4.first().map(|&message_type| icmp::kind(v4, message_type));
        let is_error = matches!(about, Some(Kind::Error | Kind::Redirect));
        return Err(if is_error {
            Reason::IcmpAboutIcmp
        } else {
            Reason::IcmpNoFlow
        });
    }
    if !matches!(ip.protocol, protocol::TCP | protocol::UDP) {
        return Err(Reason::IcmpNoFlow);
    }
    let &[a, b, c, d, ..] = l4.first_chunk::<LEAST_QUOTED>().ok_or(Reason::IcmpInner)?;
    Ok(Quoted {
        ip,
        source_port: u16::from_be_bytes([a, b]),
        destination_port: u16::from_be_bytes([c, d]),
    })
}

fn quoted_v4(message: &[u8]) -> Result<Ip, Reason> {
    let packet = message.get(icmp::LEN..).ok_or(Reason::IcmpInner)?;
    let header = ipv4::Header::new(packet).ok_or(Reason::IcmpInner)?;
    let header_len = header.header_len();
    let bytes = packet
        .get(..header_len)
        .filter(|bytes| bytes.len() >= ipv4::LEN)
        .ok_or(Reason::IcmpInner)?;
    if header.version() != 4 || checksum::sum(bytes) != 0xffff {
        return Err(Reason::IcmpInner);
    }
    let offset = u32::from(header.flags_offset() & ipv4::OFFSET_MASK) * 8;
    Ok(Ip {
        v4: true,
        source: header.source(),
        destination: header.destination(),
        ttl: header.ttl(),
        protocol: header.protocol(),
        l3: icmp::LEN,
        l4: icmp::LEN + header_len,
        end: message.len(),
        fragment: Some(Fragment {
            identification: 0,
            offset,
            more: false,
            protocol: header.protocol(),
        }),
    })
}

fn quoted_v6(message: &[u8]) -> Result<Ip, Reason> {
    let packet = message.get(icmp::LEN..).ok_or(Reason::IcmpInner)?;
    let header = ipv6::Header::new(packet)
        .filter(|header| header.version() == 6)
        .ok_or(Reason::IcmpInner)?;
    let walk = ipv6::walk_extensions(header.next_header(), &packet[ipv6::LEN..])
        .map_err(|_| Reason::IcmpInner)?;
    let offset = walk.fragment.map_or(0, |fragment| fragment.offset);
    Ok(Ip {
        v4: false,
        source: header.source(),
        destination: header.destination(),
        ttl: header.hop_limit(),
        protocol: walk.protocol,
        l3: icmp::LEN,
        l4: icmp::LEN + ipv6::LEN + walk.len,
        end: message.len(),
        fragment: Some(Fragment {
            identification: 0,
            offset,
            more: false,
            protocol: walk.protocol,
        }),
    })
}

/// The destination of a quoted packet that cannot be read otherwise: only its fixed header must be there.
fn quoted_destination(v4: bool, message: &[u8]) -> Option<u128> {
    let packet = message.get(icmp::LEN..)?;
    if v4 {
        ipv4::Header::new(packet).map(|header| header.destination())
    } else {
        ipv6::Header::new(packet).map(|header| header.destination())
    }
}

/// Change addresses and ports of an error (`outer`) and of the packet it quotes, lower its TTL, and compute its checksum anew.
pub(super) fn rewrite_error(
    packet: &mut Packet,
    quoted: &Ip,
    translation: &rewrite::Translation,
    outer: &rewrite::Translation,
) {
    let v4 = packet.meta.ip.v4;
    rewrite::rewrite_ip(packet.ip_bytes_mut(), v4, Some(outer));
    rewrite::rewrite_quoted(packet.l4_bytes_mut(), quoted, &translation.swapped());
    // For ICMPv6 the new addresses are part of the sum; for ICMP only the family counts.
    let Ip {
        source,
        destination,
        ..
    } = packet.meta.ip;
    let (source, destination) = if v4 {
        (source, destination)
    } else {
        outer_addresses(packet.ip_bytes())
    };
    let message = packet.l4_bytes_mut();
    if let Some(mut header) = icmp::Header::new_mut(message) {
        header.set_checksum(0);
    }
    let sum = icmp::message_checksum(source, destination, message);
    if let Some(mut header) = icmp::Header::new_mut(message) {
        header.set_checksum(sum);
    }
}

fn outer_addresses(packet: &[u8]) -> (u128, u128) {
    ipv6::Header::new(packet).map_or((0, 0), |header| (header.source(), header.destination()))
}
