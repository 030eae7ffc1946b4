//! A batch of frames: all are read first, what their flows need is fetched together, then each is acted upon.

use std::ops::ControlFlow::Continue;

use crate::base::{Frame, InterfaceId, Nanos, Offload, Outcome, Output};
use crate::flow::table::Table;
use crate::forwarding::ForwardingState;
use crate::packet::Meta;
use crate::pipeline;
use crate::pipeline::read::{self, Content, Ingress};
use crate::pipeline::state::PathState;
use crate::pipeline::walk::{Stage, Walk};

/// Frames that are read before the first of them is acted upon: enough to keep all of a core's line fill buffers
/// busy.
const LOOK_AHEAD: usize = 64;

/// A frame that was read and waits to be acted upon.
#[derive(Clone, Copy)]
struct Ahead {
    meta: Meta,
    read: Stage<Content>,
}

impl Ahead {
    const EMPTY: Self = Self {
        meta: Meta::EMPTY,
        read: Continue(Content::NotIp),
    };

    /// Read a frame into this place. Says whether a flow will be looked up for it.
    #[inline]
    fn read(
        &mut self,
        forwarding: &ForwardingState,
        ingress: &Ingress,
        table: &Table,
        frame: &[u8],
        offload: Offload,
    ) -> bool {
        self.meta.guess = None;
        match read::frame(forwarding, ingress, frame, offload, &mut self.meta) {
            Continue(Content::Packet) => {
                self.read = Continue(Content::Packet);
                read::hash(table, &mut self.meta)
            }
            other => {
                self.read = other;
                false
            }
        }
    }
}

/// Takes what comes of a batch, packet by packet.
pub trait Sink {
    /// Where frames of their own are appended.
    fn extra(&mut self) -> &mut Vec<Output>;
    /// What became of the frame at `index`, after it appended what it had to.
    fn done(&mut self, index: usize, outcome: &Outcome);
}

/// Where and when frames came in.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    /// Interface id.
    pub interface: InterfaceId,
    /// Nanoseconds.
    pub now: Nanos,
}

/// The frames that were read, up to [`LOOK_AHEAD`] of them.
pub(super) struct LookAhead(Box<[Ahead; LOOK_AHEAD]>);

impl Default for LookAhead {
    fn default() -> Self {
        Self(Box::new([Ahead::EMPTY; LOOK_AHEAD]))
    }
}

impl LookAhead {
    /// Process one frame in place. Frames of their own are appended to `extra`.
    pub fn process(
        &mut self,
        (forwarding, state): (&ForwardingState, &mut PathState),
        frame: Frame<'_>,
        arrival: Arrival,
        extra: &mut Vec<Output>,
    ) -> Outcome {
        let place = &mut self.0[0];
        let ingress = Ingress::new(forwarding, arrival.interface);
        let Frame { bytes, offload } = frame;
        place.read(forwarding, &ingress, &state.table, bytes, offload);
        act(forwarding, state, place, bytes, arrival.now, extra)
    }

    /// Process frames of one interface in place, in order.
    pub fn process_batch(
        &mut self,
        (forwarding, state): (&ForwardingState, &mut PathState),
        frames: &mut [Frame<'_>],
        arrival: Arrival,
        sink: &mut impl Sink,
    ) {
        let mut index = 0;
        for frames in frames.chunks_mut(LOOK_AHEAD) {
            self.read(forwarding, &state.table, frames, arrival);
            for (frame, place) in frames.iter_mut().zip(self.0.iter()) {
                let bytes = &mut *frame.bytes;
                let outcome = act(forwarding, state, place, bytes, arrival.now, sink.extra());
                sink.done(index, &outcome);
                index += 1;
            }
        }
    }

    /// Read frames, and fetch what acting upon them will need: buckets of the index, then entries, then their cold
    /// halves, then those of their neighbours in the list. Each step only asks for memory, and uses what the step
    /// before asked for.
    fn read(
        &mut self,
        forwarding: &ForwardingState,
        table: &Table,
        frames: &[Frame<'_>],
        arrival: Arrival,
    ) {
        let ahead = &mut self.0;
        let ingress = Ingress::new(forwarding, arrival.interface);
        let mut flows = [0; LOOK_AHEAD];
        let mut count = 0;
        for (at, (frame, place)) in frames.iter().zip(ahead.iter_mut()).enumerate() {
            if place.read(forwarding, &ingress, table, frame.bytes, frame.offload) {
                table.prefetch_bucket(place.meta.hash);
                flows[count] = at;
                count += 1;
            }
        }
        for &at in &flows[..count] {
            let meta = &mut ahead[at].meta;
            meta.guess = table.prefetch_entry(meta.hash);
        }
        self.fetch_moving(table, &flows[..count], arrival.now);
    }

    /// Fetch what flows need that move to the tail of their list, of the frames at these places.
    #[inline(always)]
    fn fetch_moving(&self, table: &Table, flows: &[usize], now: Nanos) {
        let mut moving = [0; LOOK_AHEAD];
        let mut moves = 0;
        for &at in flows {
            if let Some(number) = self.0[at].meta.guess {
                if table.prefetch_cold(number, now) {
                    moving[moves] = number;
                    moves += 1;
                }
            }
        }
        for &number in &moving[..moves] {
            table.prefetch_neighbours(number);
        }
    }

    /// Have the packets go on whose answer is there, or too late: rule 8.21, asking a policy.
    pub fn resume(
        &mut self,
        forwarding: &ForwardingState,
        state: &mut PathState,
        now: Nanos,
        extra: &mut Vec<Output>,
    ) {
        while let Some(mut packet) = state.asking.next(now) {
            let (place, frame) = (&mut self.0[0], &mut packet.frame);
            let ingress = Ingress::new(forwarding, packet.interface);
            place.read(forwarding, &ingress, &state.table, frame, packet.offload);
            let mut walk = Walk::new(forwarding, state, extra, now);
            let outcome = pipeline::resume(&mut walk, frame, &place.meta, place.read);
            state.asking.finish();
            if let Some(sent) = outcome.sent {
                packet.frame.truncate(sent.len);
                extra.push(Output {
                    interface: sent.interface,
                    frame: packet.frame,
                    offload: sent.offload,
                });
            }
        }
    }
}

/// Act upon a frame that was read.
#[inline]
fn act(
    forwarding: &ForwardingState,
    state: &mut PathState,
    place: &Ahead,
    frame: &mut [u8],
    now: Nanos,
    extra: &mut Vec<Output>,
) -> Outcome {
    let mut walk = Walk::new(forwarding, state, extra, now);
    pipeline::process(&mut walk, frame, &place.meta, place.read)
}
