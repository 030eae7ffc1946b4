//! What is stored of a flow, in three parts by how often packets need it: plain data without pointers.

use super::arena::Line;
use crate::base::{Direction, IngressNeighbour, Ip, Nanos, SeqNumber};
use crate::flow::key::{Key, KeySide};
use crate::flow::side::TcpSide;
use crate::flow::state::FlowState;

/// An entry moves within its list at most this often.
pub(super) const RELINK_NS: u64 = 1_000_000_000;

/// One flow: who, where, and when. 64 bytes, plain data: one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Entry {
    #[cfg(feature = "next-layout")]
    pub(super) ingress: u64,
    pub(super) client: [u64; 2],
    /// The client's port.
    pub client_port: u16,
    pub(super) state: u8,
    pub(super) marks: u8,
    /// Service id.
    pub service: u32,
    /// Server id.
    pub server: u32,
    /// Endpoint id of the server: kept here so that a key can be rebuilt after the server has left the snapshot.
    pub endpoint: u32,
    /// Time of the last packet, nanoseconds.
    pub last_seen: Nanos,
    /// How long before that it was linked, nanoseconds: below `RELINK_NS`, else it would have been linked again.
    pub(super) lag: u32,
    /// IP bytes per direction: the low halves.
    pub(super) bytes: [u32; 2],
    /// What is measured of it: the low two bits a phase, the rest a stamp.
    pub(super) measured: u32,
    /// Where the last forward packet came from: the bits of a [`IngressNeighbour`].
    #[cfg(not(feature = "next-layout"))]
    pub(super) ingress: u64,
}

/// Beside the entry: its place in its list, and what is known of both sides' TCP. 32 bytes, plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FlowCold {
    pub(super) previous: u32,
    pub(super) following: u32,
    pub(super) sides: [TcpSide; 2],
}

/// What hardly any packet needs. 8 bytes, plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FlowRare {
    /// The sequence number after the client's last SYN, or after the server's that has answered it.
    pub(super) syn: SeqNumber,
    /// IP bytes per direction: the high parts. 2^48 bytes are counted.
    pub(super) bytes: [u16; 2],
}

/// Cold halves are kept in pairs.
pub(super) type ColdLine = [FlowCold; 2];
/// And what hardly any packet needs in eights.
pub(super) type RareLine = [FlowRare; 8];

const _: () = assert!(size_of::<Entry>() == size_of::<Line>());
const _: () = assert!(size_of::<ColdLine>() == size_of::<Line>());
const _: () = assert!(size_of::<RareLine>() == size_of::<Line>());

/// What `Entry::marks` holds: FIN seen, SND.NXT known, RCV.NXT known; each for both directions. And whether the
/// first frame had a VLAN tag.
pub(super) mod mark {
    pub const FIN: u8 = 0x01;
    pub const SND_NXT: u8 = 0x04;
    pub const RCV_NXT: u8 = 0x10;
    pub const TAGGED: u8 = 0x40;
    pub const BOTH_FINS: u8 = FIN | FIN << 1;
}

impl Entry {
    /// A new flow, linked nowhere yet, that no packet has been counted on.
    #[must_use]
    pub fn new(
        client: Ip,
        client_port: u16,
        ids: (u32, u32, u32),
        state: FlowState,
        now: Nanos,
    ) -> Self {
        let (service, server, endpoint) = ids;
        Self {
            client: client.halves(),
            client_port,
            state: state as u8,
            service,
            server,
            endpoint,
            last_seen: now,
            ingress: IngressNeighbour::NONE.bits(),
            ..Self::default()
        }
    }

    /// The client's address.
    #[inline]
    #[must_use]
    pub fn client(&self) -> Ip {
        Ip::from_halves(self.client)
    }

    /// Where the flow stands.
    #[inline]
    #[must_use]
    pub fn state(&self) -> FlowState {
        FlowState::from_byte(self.state)
    }

    /// Set where the flow stands, without moving it between lists: [`Table::touch`] does that.
    #[inline]
    pub fn set_state(&mut self, state: FlowState) {
        self.state = state as u8;
    }

    /// Note where a forward packet came from.
    #[inline(always)]
    pub fn set_ingress(&mut self, ingress: IngressNeighbour) {
        self.ingress = ingress.bits();
    }

    /// Where the last forward packet came from.
    #[inline(always)]
    #[must_use]
    pub fn ingress(&self) -> IngressNeighbour {
        IngressNeighbour::from_bits(self.ingress)
    }

    /// How long ago it was put at its list's tail.
    #[inline(always)]
    pub(super) fn lag_at(&self, now: Nanos) -> u64 {
        now.wrapping_plus(self.lag).since(self.last_seen)
    }

    /// When it was put at its list's tail, nanoseconds.
    pub(super) fn linked_at(&self) -> u64 {
        self.last_seen.since(Nanos::new(u64::from(self.lag)))
    }

    /// Whether it was heard of since it was put at its list's tail.
    #[must_use]
    pub fn is_heard_since_linked(&self) -> bool {
        self.lag > 0
    }

    /// Whether both sides have said that they are done, in sequence.
    #[must_use]
    pub fn has_both_fins(&self) -> bool {
        self.marks & mark::BOTH_FINS == mark::BOTH_FINS
    }

    /// Note that its first frame had a VLAN tag.
    pub fn mark_tagged(&mut self) {
        self.marks |= mark::TAGGED;
    }

    /// Whether its first frame had a VLAN tag.
    #[must_use]
    pub fn is_tagged(&self) -> bool {
        self.marks & mark::TAGGED != 0
    }

    /// Count IP bytes: the low half of their number. `true`: it went over, [`Table::carry_bytes`] is to be told.
    #[inline(always)]
    #[must_use]
    pub fn count_bytes(&mut self, direction: Direction, len: u32) -> bool {
        let low = &mut self.bytes[direction as usize];
        let (sum, carry) = low.overflowing_add(len);
        *low = sum;
        carry
    }

    /// Refresh it, if a packet at `now` after which it has `state` leaves it in its place. `false`: nothing was
    /// done, that is [`Table::touch`]'s work.
    #[inline(always)]
    #[must_use]
    pub fn refresh(&mut self, state: FlowState, now: Nanos) -> bool {
        let lag = self.lag_at(now);
        let stays = self.state == state as u8 && lag < RELINK_NS;
        if stays {
            self.last_seen = now;
            self.lag = lag as u32;
        }
        stays
    }

    /// Whether it counts for its server.
    #[inline]
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state().is_active()
    }

    /// The key of forward packets.
    #[must_use]
    pub fn forward_key(&self) -> Key {
        Key {
            client: self.client(),
            client_port: self.client_port,
            side: KeySide::Service(self.service),
        }
    }

    /// The key of reply packets.
    #[must_use]
    pub fn reply_key(&self) -> Key {
        Key {
            client: self.client(),
            client_port: self.client_port,
            side: KeySide::Endpoint(self.endpoint),
        }
    }

    #[inline(always)]
    pub(super) fn matches(&self, key: &Key) -> bool {
        let (ours, id) = match key.side {
            KeySide::Service(id) => (self.service, id),
            KeySide::Endpoint(id) => (self.endpoint, id),
        };
        ours == id && self.client_port == key.client_port && self.client() == key.client
    }
}
