//! What is stored of a flow, in three parts by how often packets need it: plain data without pointers.
//!
//! Each part is there twice: as a value (`Entry`), and as it lies in the table (`EntryCells`), where the kernel's
//! program may change it meanwhile: there each field is read and written on its own, and nothing is borrowed mutably.

use super::arena::Line;
use crate::base::{Direction, IngressNeighbour, Ip, Nanos, SeqNumber};
use crate::flow::key::{Key, KeySide};
use crate::flow::side::{SideCells, TcpSide};
use crate::flow::state::FlowState;
use crate::sys::cells::{Cell32, Cell64, cells};

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
    /// How long before that it was linked, nanoseconds: below `RELINK_NS`, else it would have been linked again. Of one
    /// that another walker has refreshed since, `RELINK_NS` at most.
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
    /// The bits of a [`super::list::Place`].
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

cells! {
    /// [`Entry`] in its place.
    pub struct EntryCells {
        #[cfg(feature = "next-layout")]
        ingress: Cell64,
        client: [Cell64; 2],
        standing: Cell32,
        service: Cell32,
        server: Cell32,
        endpoint: Cell32,
        last_seen: Cell64,
        lag: Cell32,
        bytes: [Cell32; 2],
        measured: Cell32,
        #[cfg(not(feature = "next-layout"))]
        ingress: Cell64,
    }
}

/// The part of an entry that changes as a whole.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Standing {
    client_port: u16,
    state: u8,
    marks: u8,
}

cells! {
    /// [`FlowCold`] in its place.
    pub struct ColdCells {
        pub(super) previous: Cell32,
        pub(super) following: Cell32,
        pub(super) sides: [SideCells; 2],
    }
}

cells! {
    /// [`FlowRare`] in its place.
    pub struct RareCells {
        syn: Cell32,
        bytes: Cell32,
    }
}

/// Cold halves are kept in pairs.
pub(super) type ColdLine = [ColdCells; 2];
/// And what hardly any packet needs in eights.
pub(super) type RareLine = [RareCells; 8];

const _: () = assert!(size_of::<Entry>() == size_of::<Line>());
const _: () = assert!(size_of::<[FlowCold; 2]>() == size_of::<Line>());
const _: () = assert!(size_of::<[FlowRare; 8]>() == size_of::<Line>());

/// What `Entry::marks` holds: FIN seen, SND.NXT known, RCV.NXT known; each for both directions. And whether the
/// first frame had a VLAN tag.
pub(super) mod mark {
    pub const FIN: u8 = 0x01;
    pub const SND_NXT: u8 = 0x04;
    pub const RCV_NXT: u8 = 0x10;
    pub const TAGGED: u8 = 0x40;
    pub const CLOSED: u8 = 0x80;
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
    #[must_use]
    pub fn client(&self) -> Ip {
        Ip::from_halves(self.client)
    }

    /// Where the flow stands.
    #[must_use]
    pub fn state(&self) -> FlowState {
        FlowState::from_byte(self.state)
    }

    /// Note where a forward packet came from.
    pub fn set_ingress(&mut self, ingress: IngressNeighbour) {
        self.ingress = ingress.bits();
    }

    /// Where the last forward packet came from.
    #[must_use]
    pub fn ingress(&self) -> IngressNeighbour {
        IngressNeighbour::from_bits(self.ingress)
    }

    /// Where another walker has refreshed it, and nobody has moved it in its list since: it counts as put at its list's
    /// tail when it was seen last.
    pub(super) fn settle(&mut self) {
        if u64::from(self.lag) >= RELINK_NS {
            self.lag = 0;
        }
    }

    /// When it was put at its list's tail, nanoseconds.
    pub(super) fn linked_at(&self) -> u64 {
        self.last_seen.since(Nanos::new(u64::from(self.lag)))
    }

    /// Note that its first frame had a VLAN tag.
    pub fn mark_tagged(&mut self) {
        self.marks |= mark::TAGGED;
    }

    /// The same entry with the IP bytes of its first packet counted.
    #[must_use]
    pub fn with_bytes(mut self, direction: Direction, len: u32) -> Self {
        self.bytes[direction as usize] = len;
        self
    }

    /// Whether it counts for its server.
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
}

impl EntryCells {
    /// Its value.
    #[must_use]
    pub fn load(&self) -> Entry {
        let Standing {
            client_port,
            state,
            marks,
        } = self.standing();
        Entry {
            client: self.client.each_ref().map(Cell64::get),
            client_port,
            state,
            marks,
            service: self.service(),
            server: self.server(),
            endpoint: self.endpoint.get(),
            last_seen: self.last_seen(),
            lag: self.lag.get(),
            bytes: self.bytes.each_ref().map(Cell32::get),
            measured: self.measured.get(),
            ingress: self.ingress.get(),
        }
    }

    /// Give it another value.
    pub fn store(&self, entry: &Entry) {
        for (cell, half) in self.client.iter().zip(entry.client) {
            cell.set(half);
        }
        self.service.set(entry.service);
        self.server.set(entry.server);
        self.endpoint.set(entry.endpoint);
        self.last_seen.set(entry.last_seen.get());
        self.lag.set(entry.lag);
        for (cell, count) in self.bytes.iter().zip(entry.bytes) {
            cell.set(count);
        }
        self.measured.set(entry.measured);
        self.ingress.set(entry.ingress);
        self.set_standing(Standing {
            client_port: entry.client_port,
            state: entry.state,
            marks: entry.marks,
        });
    }

    /// The client's address.
    #[inline]
    #[must_use]
    pub fn client(&self) -> Ip {
        Ip::from_halves(self.client.each_ref().map(Cell64::get))
    }

    /// The client's port; 0 of an entry that was removed.
    #[inline(always)]
    #[must_use]
    pub fn client_port(&self) -> u16 {
        self.standing().client_port
    }

    /// Service id.
    #[inline(always)]
    #[must_use]
    pub fn service(&self) -> u32 {
        self.service.get()
    }

    /// Server id.
    #[inline(always)]
    #[must_use]
    pub fn server(&self) -> u32 {
        self.server.get()
    }

    /// Time of the last packet.
    #[inline(always)]
    #[must_use]
    pub fn last_seen(&self) -> Nanos {
        Nanos::new(self.last_seen.get())
    }

    #[inline(always)]
    fn standing(&self) -> Standing {
        bytemuck::cast(self.standing.get())
    }

    #[inline(always)]
    fn set_standing(&self, standing: Standing) {
        self.standing.set(bytemuck::cast(standing));
    }

    /// Where the flow stands.
    #[inline(always)]
    #[must_use]
    pub fn state(&self) -> FlowState {
        FlowState::from_byte(self.standing().state)
    }

    /// Set where the flow stands, without moving it between lists: [`super::Table::touch`] does that.
    #[inline]
    pub fn set_state(&self, state: FlowState) {
        let state = state as u8;
        self.set_standing(Standing {
            state,
            ..self.standing()
        });
    }

    #[inline(always)]
    pub(super) fn marks(&self) -> u8 {
        self.standing().marks
    }

    #[inline(always)]
    pub(super) fn set_marks(&self, marks: u8) {
        self.set_standing(Standing {
            marks,
            ..self.standing()
        });
    }

    #[inline(always)]
    pub(super) fn measured(&self) -> u32 {
        self.measured.get()
    }

    #[inline(always)]
    pub(super) fn set_measured(&self, measured: u32) {
        self.measured.set(measured);
    }

    /// Note where a forward packet came from.
    #[inline(always)]
    pub fn set_ingress(&self, ingress: IngressNeighbour) {
        self.ingress.set(ingress.bits());
    }

    /// Where the last forward packet came from.
    #[inline(always)]
    #[must_use]
    pub fn ingress(&self) -> IngressNeighbour {
        IngressNeighbour::from_bits(self.ingress.get())
    }

    /// How long ago it was put at its list's tail.
    #[inline(always)]
    pub(super) fn lag_at(&self, now: Nanos) -> u64 {
        now.wrapping_plus(self.lag.get()).since(self.last_seen())
    }

    /// Whether it was heard of since it was put at its list's tail.
    #[must_use]
    pub fn is_heard_since_linked(&self) -> bool {
        self.lag.get() > 0
    }

    /// Whether another walker has refreshed it, and left it to us to move it to its list's tail.
    pub(super) fn wants_to_move(&self) -> bool {
        u64::from(self.lag.get()) >= RELINK_NS
    }

    /// Whether both sides have said that they are done, in sequence.
    #[must_use]
    pub fn has_both_fins(&self) -> bool {
        self.marks() & mark::BOTH_FINS == mark::BOTH_FINS
    }

    /// Whether the FIN of one side has closed it.
    #[must_use]
    pub fn is_closed_by_one(&self) -> bool {
        self.marks() & mark::CLOSED != 0
    }

    /// Whether its first frame had a VLAN tag.
    #[must_use]
    pub fn is_tagged(&self) -> bool {
        self.marks() & mark::TAGGED != 0
    }

    /// Whether it counts for its server.
    #[inline]
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state().is_active()
    }

    /// Count IP bytes: the low half of their number. `true`: it went over, [`super::Table::carry_bytes`] is to be
    /// told.
    #[inline(always)]
    #[must_use]
    pub fn count_bytes(&self, direction: Direction, len: u32) -> bool {
        let low = &self.bytes[direction as usize];
        let (sum, carry) = low.get().overflowing_add(len);
        low.set(sum);
        carry
    }

    /// IP bytes: the low half of their number.
    pub(super) fn low_bytes(&self, direction: Direction) -> u32 {
        self.bytes[direction as usize].get()
    }

    /// Refresh it, if a packet at `now` after which it has `state` leaves it in its place. `false`: nothing was
    /// done, that is [`super::Table::touch`]'s work.
    #[inline(always)]
    #[must_use]
    pub fn refresh(&self, state: FlowState, now: Nanos) -> bool {
        let lag = self.lag_at(now);
        let stays = self.standing().state == state as u8 && lag < RELINK_NS;
        if stays {
            self.set_seen(now, lag as u32);
        }
        stays
    }

    /// Note that a packet came at `now`, and how long before it was put at its list's tail: below `RELINK_NS`.
    #[inline(always)]
    pub(super) fn set_seen(&self, now: Nanos, lag: u32) {
        self.last_seen.set(now.get());
        self.lag.set(lag);
    }

    /// Note that it is at its list's tail, and counts as put there when it was seen last.
    pub(super) fn set_linked(&self) {
        self.lag.set(0);
    }

    #[inline(always)]
    pub(super) fn matches(&self, key: &Key) -> bool {
        let (ours, id) = match key.side {
            KeySide::Service(id) => (&self.service, id),
            KeySide::Endpoint(id) => (&self.endpoint, id),
        };
        ours.get() == id && self.client_port() == key.client_port && self.client() == key.client
    }
}

impl ColdCells {
    /// Its value.
    pub fn load(&self) -> FlowCold {
        FlowCold {
            previous: self.previous.get(),
            following: self.following.get(),
            sides: self.sides.each_ref().map(SideCells::load),
        }
    }

    /// Give it another value.
    pub fn store(&self, cold: &FlowCold) {
        self.previous.set(cold.previous);
        self.following.set(cold.following);
        for (cells, side) in self.sides.iter().zip(cold.sides) {
            cells.store(side);
        }
    }
}

impl RareCells {
    /// Its value.
    pub fn load(&self) -> FlowRare {
        FlowRare {
            syn: self.syn(),
            bytes: bytemuck::cast(self.bytes.get()),
        }
    }

    /// Give it another value.
    pub fn store(&self, rare: &FlowRare) {
        self.set_syn(rare.syn);
        self.bytes.set(bytemuck::cast(rare.bytes));
    }

    #[inline]
    pub(super) fn syn(&self) -> SeqNumber {
        SeqNumber::new(self.syn.get())
    }

    #[inline]
    pub(super) fn set_syn(&self, number: SeqNumber) {
        self.syn.set(number.get());
    }

    /// IP bytes: the high part of their number.
    pub(super) fn high_bytes(&self, direction: Direction) -> u16 {
        self.load().bytes[direction as usize]
    }

    /// Count 2^32 of them.
    pub(super) fn carry_bytes(&self, direction: Direction) {
        let mut rare = self.load();
        let high = &mut rare.bytes[direction as usize];
        *high = high.wrapping_add(1);
        self.bytes.set(bytemuck::cast(rare.bytes));
    }
}
