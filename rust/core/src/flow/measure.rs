//! What servers are like, seen from between them and their clients (`docs/rules.md` rule 16, measurements): how long
//! they take to connect and to answer, what they have left to do, what they fail at.
//!
//! Sums, counts and gauges per server, changed when something changes about a flow: most packets of a flow only
//! compare a few numbers that the TCP rules have at hand. What is kept per flow is four bytes: a stamp and a phase.

use super::state::FlowState;
use super::table::Flow;
use super::transition::Transition;
use crate::base::{Direction, Nanos, SeqNumber, carried};
use crate::flow::state::Phase;
use crate::wire::segment::Segment;
use crate::wire::tcp::flag;

/// A peak is forgotten, but for what samples since then say, after this long: 8.6 s.
const PEAK_MEMORY_NS: u64 = 1 << 33;
/// No sample is longer: 18 minutes. Keeps the arithmetic of peaks within 64 bits.
const LONGEST_NS: u64 = (1 << 40) - 1;
/// Stamps count 1024 ns, in this many bits: they come round after 18 minutes.
const STAMP_SHIFT: u32 = 10;
const STAMP_MASK: u32 = (1 << 30) - 1;

/// Of a pause in the middle of an answer, no more than this counts: longer ones are a server's that has nothing to
/// say.
const LONGEST_PAUSE_NS: u64 = 1 << 30;

/// The stamp of an instant.
const fn stamp(now: Nanos) -> u32 {
    (now.get() >> STAMP_SHIFT) as u32 & STAMP_MASK
}

/// A time that was measured again and again: how often, how long in all, and a smoothed value that rises at once
/// and falls slowly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Samples.
    pub count: u64,
    /// Their sum, nanoseconds.
    pub sum_ns: u64,
    /// Peak-sensitive average, nanoseconds.
    pub peak_ns: u64,
    peak_at: Nanos,
}

impl Timing {
    fn add(&mut self, sample: u64, now: Nanos) {
        let sample = sample.min(LONGEST_NS);
        self.count += 1;
        self.sum_ns += sample;
        if sample >= self.peak_ns {
            self.peak_ns = sample;
        } else {
            // The older the value, the more of its distance to the sample it goes: all of it after PEAK_MEMORY_NS.
            let age = now.since(self.peak_at).min(PEAK_MEMORY_NS) >> 13;
            self.peak_ns -= ((self.peak_ns - sample) * age) >> 20;
        }
        self.peak_at = now;
    }
}

/// What is known of one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// SYN to SYN+ACK.
    pub connect: Timing,
    /// A request's first byte to its answer's.
    pub first_byte: Timing,
    /// SYNs sent again before an answer.
    pub syn_retransmitted: u64,
    /// Segments of the server with data that it had sent before.
    pub retransmitted: u64,
    /// SYNs answered by RST.
    pub refused: u64,
    /// Flows whose SYN was never answered.
    pub unanswered: u64,
    /// Flows that ended while a request had no answer.
    pub failed: u64,
    /// Requests: data from a client that had not sent any since the server spoke.
    pub requests: u64,
    /// The sum of the server's active flows at each request.
    pub requests_active: u64,
    /// The time that answers took, from request to last byte, nanoseconds, all flows together.
    pub answer_ns: u64,
    /// Flows whose request has no answer yet.
    pub waiting_flows: u64,
    /// Bytes that the server has sent and the client not acknowledged.
    pub in_flight_bytes: u64,
    /// When the server last sent data, or began to be waited for.
    progress_at: Nanos,
}

impl Measures {
    /// Nanoseconds for which clients have waited while the server sent nothing, until `now`.
    #[must_use]
    pub fn stalled_ns(&self, now: Nanos) -> u64 {
        if self.waiting_flows > 0 {
            now.since(self.progress_at)
        } else {
            0
        }
    }

    fn begin_waiting(&mut self, active: u64, now: Nanos) {
        if self.waiting_flows == 0 {
            self.progress_at = now;
        }
        self.waiting_flows += 1;
        self.requests += 1;
        self.requests_active += active;
    }
}

// What flows have at hand (`waiting_flows`, `in_flight_bytes`) is counted anew with them: [`resume`].
carried!(Measures {
    "connects" = connect.count,
    "connect_ns" = connect.sum_ns,
    "connect_peak_ns" = connect.peak_ns,
    "connect_peak_at" = connect.peak_at,
    "first_bytes" = first_byte.count,
    "first_byte_ns" = first_byte.sum_ns,
    "first_byte_peak_ns" = first_byte.peak_ns,
    "first_byte_peak_at" = first_byte.peak_at,
    "syn_retransmitted" = syn_retransmitted,
    "retransmitted" = retransmitted,
    "refused" = refused,
    "unanswered" = unanswered,
    "failed" = failed,
    "requests" = requests,
    "requests_active" = requests_active,
    "answer_ns" = answer_ns,
    "progress_at" = progress_at,
});

/// A flow as it was before a segment.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    in_flight: u32,
    /// The end of what each side is known to have sent.
    snd_nxt: [Option<SeqNumber>; 2],
}

impl Before {
    /// Note it.
    #[inline(always)]
    #[must_use]
    pub fn of(flow: &Flow) -> Self {
        Self {
            in_flight: flow.in_flight(),
            snd_nxt: [Direction::Forward, Direction::Reply].map(|side| flow.known_snd_nxt(side)),
        }
    }

    /// Note a flow that a plain segment belongs to ([`super::tcp::is_plain`]): all numbers are known.
    #[inline(always)]
    #[must_use]
    pub fn of_plain(flow: &Flow) -> Self {
        Self {
            in_flight: flow.in_flight_plain(),
            snd_nxt: [Direction::Forward, Direction::Reply]
                .map(|side| Some(flow.side_cells(side).snd_nxt())),
        }
    }
}

/// A believed segment, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// What it says.
    pub segment: &'a Segment,
    /// Active flows of the server.
    pub active: u64,
    /// When it came.
    pub now: Nanos,
}

/// Note what a segment tells that is believed. The flow, which was not closing before, was advanced by it.
pub fn follow(
    measures: &mut Measures,
    flow: &mut Flow,
    before: &Before,
    observed: Observed,
    transition: Transition,
) {
    follow_in_flight(measures, flow.in_flight(), before);
    if observed.segment.flags & (flag::SYN | flag::RST) != 0 {
        follow_control(measures, flow, observed, transition);
    } else if observed.segment.has_data() {
        follow_data(measures, flow, before, observed);
    }
    if transition.closes() {
        leave(measures, flow);
    }
}

/// The same where answers may take another way: nothing is waited for. The flow may have been closing.
pub fn follow_any(
    measures: &mut Measures,
    flow: &mut Flow,
    before: &Before,
    transition: Transition,
) {
    if transition.from.is_active() {
        follow_in_flight(measures, flow.in_flight(), before);
        measures.waiting_flows -= u64::from(flow.phase() == Phase::Asked);
    }
    flow.set_phase(Phase::Fresh, 0);
    if transition.closes() {
        leave(measures, flow);
    }
}

/// [`follow`] for a plain segment, `before` as [`Before::of_plain`] makes it.
#[inline(always)]
pub fn follow_plain(measures: &mut Measures, flow: &mut Flow, before: &Before, observed: Observed) {
    follow_in_flight(measures, flow.in_flight_plain(), before);
    if observed.segment.has_data() {
        follow_data(measures, flow, before, observed);
    }
}

#[inline(always)]
fn follow_in_flight(measures: &mut Measures, in_flight: u32, before: &Before) {
    measures.in_flight_bytes = measures
        .in_flight_bytes
        .wrapping_add(u64::from(in_flight))
        .wrapping_sub(u64::from(before.in_flight));
}

#[cold]
fn follow_control(
    measures: &mut Measures,
    flow: &mut Flow,
    observed: Observed,
    transition: Transition,
) {
    let now = observed.now;
    match (transition.from, observed.direction, transition.to) {
        (FlowState::SynSent, Direction::Reply, FlowState::SynReceived) => {
            measures.connect.add(waited(flow, now), now);
        }
        (FlowState::SynSent, Direction::Forward, _) if observed.segment.is_opening() => {
            measures.syn_retransmitted += 1;
            begin(flow, now);
        }
        (FlowState::SynSent | FlowState::SynReceived, Direction::Reply, FlowState::Closing) => {
            measures.refused += 1;
        }
        _ => {}
    }
}

#[inline(always)]
fn follow_data(measures: &mut Measures, flow: &mut Flow, before: &Before, observed: Observed) {
    let Observed {
        direction,
        segment,
        active,
        now,
    } = observed;
    let snd_nxt = before.snd_nxt[direction as usize];
    let again = snd_nxt.is_some_and(|snd_nxt| !segment.end.is_after(snd_nxt));
    match (direction, flow.phase()) {
        (Direction::Reply, _) if again => measures.retransmitted += 1,
        (Direction::Reply, phase) => answer(measures, flow, phase, now),
        (Direction::Forward, Phase::Fresh | Phase::Answering) if !again => {
            measures.begin_waiting(active, now);
            flow.set_phase(Phase::Asked, stamp(now));
        }
        (Direction::Forward, _) => {}
    }
}

/// New data from the server: the first of an answer, or more of one.
#[inline(always)]
fn answer(measures: &mut Measures, flow: &mut Flow, phase: Phase, now: Nanos) {
    let waited = waited(flow, now);
    match phase {
        Phase::Asked => {
            measures.first_byte.add(waited, now);
            measures.answer_ns += waited;
            measures.waiting_flows -= 1;
        }
        Phase::Answering => measures.answer_ns += waited.min(LONGEST_PAUSE_NS),
        Phase::Fresh | Phase::Over => {}
    }
    measures.progress_at = now;
    flow.set_phase(Phase::Answering, stamp(now));
}

/// Nanoseconds since the stamp of a flow.
#[inline(always)]
fn waited(flow: &Flow, now: Nanos) -> u64 {
    let ticks = stamp(now).wrapping_sub(flow.stamp()) & STAMP_MASK;
    u64::from(ticks) << STAMP_SHIFT
}

/// Note that a client has sent a SYN: it waits for the server's.
pub fn begin(flow: &mut Flow, now: Nanos) {
    flow.set_phase(Phase::Fresh, stamp(now));
}

/// Count what a flow that another process left was in the middle of: a request without an answer, bytes on the way. The
/// flow is active.
pub fn resume(measures: &mut Measures, flow: &Flow, now: Nanos) {
    if flow.phase() == Phase::Asked {
        if measures.waiting_flows == 0 {
            measures.progress_at = now;
        }
        measures.waiting_flows += 1;
    }
    measures.in_flight_bytes += u64::from(flow.in_flight());
}

/// Note that another connection takes the place of a flow's before: what that one has sent is nothing to this one.
pub fn restart(measures: &mut Measures, flow: &mut Flow, before: &mut Before) {
    before.snd_nxt = [None; 2];
    if flow.phase() == Phase::Asked {
        measures.failed += 1;
        measures.waiting_flows -= 1;
    }
    flow.set_phase(Phase::Fresh, 0);
}

/// Note that an active flow becomes closing, or is removed.
pub fn leave(measures: &mut Measures, flow: &mut Flow) {
    if flow.phase() == Phase::Asked {
        measures.failed += 1;
        measures.waiting_flows -= 1;
    }
    flow.set_phase(Phase::Over, 0);
    measures.in_flight_bytes = measures
        .in_flight_bytes
        .wrapping_sub(u64::from(flow.in_flight()));
}

/// Note that a flow whose SYN had no answer has timed out.
pub fn time_out(measures: &mut Measures) {
    measures.unanswered += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timing_rises_at_once_and_falls_with_time() {
        let mut timing = Timing::default();
        timing.add(1000, Nanos::new(5));
        assert_eq!(
            (timing.count, timing.sum_ns, timing.peak_ns),
            (1, 1000, 1000)
        );
        timing.add(500, Nanos::new(5));
        assert_eq!(timing.peak_ns, 1000);
        timing.add(500, Nanos::new(5 + PEAK_MEMORY_NS / 2));
        assert_eq!(timing.peak_ns, 750);
        timing.add(500, Nanos::new(5 + 2 * PEAK_MEMORY_NS));
        assert_eq!(timing.peak_ns, 500);
        timing.add(u64::MAX, Nanos::new(5));
        assert_eq!(timing.peak_ns, LONGEST_NS);
        timing.add(0, Nanos::NEVER);
        assert_eq!(timing.peak_ns, 0);
    }

    #[test]
    fn stall_lasts_while_a_flow_waits_and_nothing_comes() {
        let mut measures = Measures::default();
        assert_eq!(measures.stalled_ns(Nanos::new(50)), 0);
        measures.begin_waiting(1, Nanos::new(100));
        measures.begin_waiting(2, Nanos::new(150));
        assert_eq!(measures.stalled_ns(Nanos::new(160)), 60);
        measures.progress_at = Nanos::new(200);
        assert_eq!(
            (
                measures.stalled_ns(Nanos::new(260)),
                measures.requests_active
            ),
            (60, 3)
        );
    }
}
