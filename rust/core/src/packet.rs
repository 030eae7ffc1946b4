//! One packet on its way through the pipeline: the frame, rewritten in place, and what the stages found in it.

use crate::base::{IngressNeighbour, InterfaceId, Offload};
use crate::parse::{IpHeader, L2Header, Transport};
use crate::wire::ethernet;

/// Whose packet it is: rule 7, L4 headers. Said of whole packets and of first fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A client's, for this service.
    Service(u32),
    /// From this endpoint of a server.
    Endpoint(u32),
    /// A control message, to a VIP or not.
    Icmp {
        /// To a VIP.
        to_vip: bool,
    },
    /// Of no service and no server.
    Transit,
}

/// What is known of a packet beside its bytes. Filled field by field where it lies and passed by reference from
/// there on: copied right after it was written, the copy would wait for stores of other widths to reach the cache.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Id of the interface it came in by.
    pub interface: InterfaceId,
    /// Work left to the network card.
    pub offload: Offload,
    /// Source MAC it came with, and the interface.
    pub ingress: IngressNeighbour,
    /// Whether it came to a multicast or broadcast MAC.
    pub to_group: bool,
    /// Ethernet header and tags.
    pub l2: L2Header,
    /// IP header(s), as they came.
    pub ip: IpHeader,
    /// Offset of the TCP or UDP data; the L4 offset for other protocols.
    pub payload: usize,
    /// Whose it is.
    pub target: Target,
    /// The TCP or UDP header, for the targets `Service` and `Endpoint`.
    pub transport: Transport,
    /// The flow table's hash of its key, for these targets.
    pub hash: u32,
    /// The entry that was its flow's when the batch was read: a first guess.
    pub guess: Option<u32>,
}

impl Meta {
    /// Nothing known yet.
    pub const EMPTY: Self = Self {
        interface: InterfaceId::new(0),
        offload: Offload::NONE,
        ingress: IngressNeighbour::NONE,
        to_group: false,
        l2: L2Header {
            ethertype: 0,
            l3: 0,
        },
        ip: IpHeader::EMPTY,
        payload: 0,
        target: Target::Transit,
        transport: Transport::EMPTY,
        hash: 0,
        guess: None,
    };
}

/// A packet with a readable IP header.
pub struct Packet<'a> {
    /// The whole frame.
    pub frame: &'a mut [u8],
    /// What is known of it.
    pub meta: &'a Meta,
}

impl Packet<'_> {
    /// Whether VLAN tags travel with it.
    #[must_use]
    pub fn is_tagged(&self) -> bool {
        self.meta.l2.l3 > ethernet::LEN
    }

    /// The IP packet, without padding.
    #[inline(always)]
    #[must_use]
    pub fn ip_bytes(&self) -> &[u8] {
        self.frame
            .get(self.meta.ip.l3..self.meta.ip.end)
            .unwrap_or_default()
    }

    /// The IP packet, without padding, for writing.
    #[inline(always)]
    pub fn ip_bytes_mut(&mut self) -> &mut [u8] {
        self.frame
            .get_mut(self.meta.ip.l3..self.meta.ip.end)
            .unwrap_or_default()
    }

    /// What follows the IP header(s).
    #[inline(always)]
    #[must_use]
    pub fn l4_bytes(&self) -> &[u8] {
        self.frame
            .get(self.meta.ip.l4..self.meta.ip.end)
            .unwrap_or_default()
    }

    /// What follows the IP header(s), for writing.
    #[inline(always)]
    pub fn l4_bytes_mut(&mut self) -> &mut [u8] {
        self.frame
            .get_mut(self.meta.ip.l4..self.meta.ip.end)
            .unwrap_or_default()
    }
}
