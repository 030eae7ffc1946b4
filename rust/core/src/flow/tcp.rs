//! The state of a flow, as far as a balancer must follow it (RFC 9293 3.3.2, RFC 5382, RFC 5961).
//!
//! Only what decides about timeouts, active-flow counts and the validity of a reset is tracked. Data is never judged by its sequence numbers.

use super::table::Flow;
use crate::verdict::{Direction, Reason};
use crate::wire::tcp::flag;

/// Where a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The client's SYN was seen.
    SynSent,
    /// The server's SYN+ACK was seen.
    SynReceived,
    /// And the client's ACK.
    Established,
    /// Both FINs, or a valid RST.
    Closing,
    /// Not TCP.
    Udp,
}

/// Flows with the same timeout, kept in one list each. In the order in which they expire and, partly, are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// `SynSent` and `SynReceived`.
    HalfOpen,
    /// `Established`.
    Established,
    /// `Closing`.
    Closing,
    /// `Udp`.
    Udp,
}

impl Class {
    /// One of the states it has: all of them have its timeout.
    #[must_use]
    pub const fn state(self) -> State {
        match self {
            Class::HalfOpen => State::SynSent,
            Class::Established => State::Established,
            Class::Closing => State::Closing,
            Class::Udp => State::Udp,
        }
    }

    /// All, in the order of expiry.
    pub const ALL: [Class; 4] = [
        Class::HalfOpen,
        Class::Established,
        Class::Closing,
        Class::Udp,
    ];
}

impl State {
    /// All, by the byte that stands for each.
    pub const ALL: [State; 5] = [
        State::SynSent,
        State::SynReceived,
        State::Established,
        State::Closing,
        State::Udp,
    ];

    /// The list and the timeout it has.
    #[inline]
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            State::SynSent | State::SynReceived => Class::HalfOpen,
            State::Established => Class::Established,
            State::Closing => Class::Closing,
            State::Udp => Class::Udp,
        }
    }

    /// The name people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            State::SynSent => "syn-sent",
            State::SynReceived => "syn-received",
            State::Established => "established",
            State::Closing => "closing",
            State::Udp => "udp",
        }
    }

    /// From the byte an entry keeps. Unknown bytes, which we never write, are read as `Closing`: the safest to lose.
    #[inline]
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => State::SynSent,
            1 => State::SynReceived,
            2 => State::Established,
            4 => State::Udp,
            _ => State::Closing,
        }
    }
}

/// What the state machine reads from one TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number; means something only with ACK.
    pub acknowledgement: u32,
    /// Control bits.
    pub flags: u8,
    /// Sequence number after this segment: SYN and FIN count one each.
    pub end: u32,
}

impl Segment {
    /// Make one of `payload_len` bytes of data.
    #[inline]
    #[must_use]
    pub const fn new(sequence: u32, acknowledgement: u32, flags: u8, payload_len: usize) -> Self {
        let control = (flags & flag::SYN != 0) as u32 + (flags & flag::FIN != 0) as u32;
        let end = sequence
            .wrapping_add(payload_len as u32)
            .wrapping_add(control);
        Self {
            sequence,
            acknowledgement,
            flags,
            end,
        }
    }

    /// Whether a control bit is set.
    #[inline]
    #[must_use]
    pub const fn has(&self, bit: u8) -> bool {
        self.flags & bit != 0
    }

    /// Whether it carries data.
    #[inline(always)]
    #[must_use]
    pub const fn has_data(&self) -> bool {
        let control = (self.has(flag::SYN)) as u32 + (self.has(flag::FIN)) as u32;
        self.end.wrapping_sub(self.sequence) != control
    }

    /// A first SYN: the start of a connection.
    #[inline]
    #[must_use]
    pub const fn is_opening(&self) -> bool {
        self.has(flag::SYN) && !self.has(flag::ACK)
    }

    /// A segment from the middle of a connection: it may be placed by a hash alone.
    #[inline]
    #[must_use]
    pub const fn is_midstream(&self) -> bool {
        self.flags & (flag::ACK | flag::SYN | flag::RST | flag::FIN) == flag::ACK
    }
}

/// Sequence numbers seen so far, per direction; `None` until known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Next sequence number this side will send.
    pub next: Option<u32>,
    /// Last acknowledgement number this side sent.
    pub ack: Option<u32>,
}

/// Move an entry on by one segment, which is no first SYN of a closing flow: that one is a new flow.
///
/// # Errors
/// `RstWindow` for a reset that is not at the next expected number (RFC 5961 3.2); nothing has changed then.
pub fn advance(flow: &mut Flow, direction: Direction, segment: &Segment) -> Result<State, Reason> {
    let state = flow.state();
    if segment.has(flag::RST) {
        return if is_valid_reset(flow, direction, segment) {
            Ok(State::Closing)
        } else {
            Err(Reason::RstWindow)
        };
    }
    if segment.has(flag::SYN) {
        return Ok(advance_by_syn(flow, direction, segment));
    }
    let mut seen = flow.seen(direction);
    seen.next = Some(later(seen.next, segment.end));
    if segment.has(flag::ACK) {
        seen.ack = Some(later(seen.ack, segment.acknowledgement));
    }
    flow.set_seen(direction, seen);
    let opened =
        state == State::SynReceived && direction == Direction::Forward && segment.has(flag::ACK);
    let state = if opened { State::Established } else { state };
    if segment.has(flag::FIN) && flow.mark_fin(direction) {
        return Ok(State::Closing);
    }
    Ok(state)
}

fn advance_by_syn(flow: &mut Flow, direction: Direction, segment: &Segment) -> State {
    match (flow.state(), direction, segment.has(flag::ACK)) {
        (State::SynSent, Direction::Forward, false) => {
            let ack = flow.seen(direction).ack;
            flow.set_seen(
                direction,
                Seen {
                    next: Some(segment.end),
                    ack,
                },
            );
            State::SynSent
        }
        (State::SynSent | State::SynReceived, Direction::Reply, true) => {
            flow.set_seen(
                direction,
                Seen {
                    next: Some(segment.end),
                    ack: Some(segment.acknowledgement),
                },
            );
            State::SynReceived
        }
        (state, ..) => state,
    }
}

fn is_valid_reset(flow: &Flow, direction: Direction, segment: &Segment) -> bool {
    let other = match direction {
        Direction::Forward => Direction::Reply,
        Direction::Reply => Direction::Forward,
    };
    let expected = flow.seen(direction).next == Some(segment.sequence);
    let acknowledged = flow.seen(other).ack == Some(segment.sequence);
    let refused = direction == Direction::Reply
        && matches!(flow.state(), State::SynSent | State::SynReceived)
        && segment.has(flag::ACK)
        && flow.seen(Direction::Forward).next == Some(segment.acknowledgement);
    expected || acknowledged || refused
}

/// The later of two sequence numbers, by signed difference.
fn later(known: Option<u32>, new: u32) -> u32 {
    const HALF: u32 = 1 << 31;
    match known {
        Some(old) if !(1..HALF).contains(&new.wrapping_sub(old)) => old,
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Forward, Reply};
    use State::{Closing, Established, SynReceived, SynSent};

    const SYN: u8 = flag::SYN;
    const ACK: u8 = flag::ACK;
    const FIN: u8 = flag::FIN;
    const RST: u8 = flag::RST;

    use super::super::table::{Annex, Entry};

    type Halves = (Entry, Annex);

    fn flow((entry, annex): &mut Halves) -> Flow<'_> {
        Flow::new(entry, annex)
    }

    fn opened() -> Halves {
        let mut halves = Halves::default();
        halves.0.set_state(State::SynSent);
        flow(&mut halves).set_seen(
            Forward,
            Seen {
                next: Some(101),
                ack: None,
            },
        );
        halves
    }

    /// (direction, control bits, sequence, acknowledgement, bytes of data)
    type Step = (Direction, u8, u32, u32, usize);

    fn run(halves: &mut Halves, steps: &[Step]) -> Vec<Result<State, Reason>> {
        let step = |&(direction, flags, sequence, ack, len): &Step| {
            let segment = Segment::new(sequence, ack, flags, len);
            let result = advance(&mut flow(halves), direction, &segment);
            if let Ok(state) = result {
                halves.0.set_state(state);
            }
            result
        };
        steps.iter().map(step).collect()
    }

    /// behaviour 3: established after SYN/ACK and ACK, closing after both FINs.
    #[test]
    fn advance_whole_connection_passes_states() {
        let states = run(
            &mut opened(),
            &[
                (Forward, SYN, 100, 0, 0),
                (Reply, SYN | ACK, 500, 101, 0),
                (Reply, SYN | ACK, 500, 101, 0),
                (Forward, ACK, 101, 501, 0),
                (Forward, ACK, 101, 501, 10),
                (Reply, ACK | FIN, 501, 111, 0),
                (Reply, ACK | FIN, 501, 111, 0),
                (Forward, ACK | FIN, 111, 502, 0),
                (Reply, ACK, 502, 112, 0),
            ],
        );
        let expected = [
            SynSent,
            SynReceived,
            SynReceived,
            Established,
            Established,
            Established,
            Established,
            Closing,
            Closing,
        ];
        assert_eq!(states, expected.map(Ok));
    }

    /// behaviour 5: a reset is believed at the next expected number only; else nothing changes.
    #[test]
    fn advance_reset_table() {
        let handshake = [
            (Reply, SYN | ACK, 500, 101, 0),
            (Forward, ACK, 101, 501, 0),
            (Forward, ACK, 101, 501, 10),
        ];
        let cases = [
            ((Forward, RST, 111, 0), Ok(State::Closing)),
            ((Forward, RST, 101, 0), Ok(State::Closing)), // What the server acknowledged last.
            ((Forward, RST, 110, 0), Err(Reason::RstWindow)),
            ((Forward, RST, 112, 0), Err(Reason::RstWindow)),
            ((Reply, RST, 501, 0), Ok(State::Closing)),
            ((Reply, RST | ACK, 0, 111), Err(Reason::RstWindow)),
        ];
        for ((direction, flags, sequence, ack), expected) in cases {
            let mut entry = opened();
            run(&mut entry, &handshake);
            assert_eq!(
                run(&mut entry, &[(direction, flags, sequence, ack, 0)]),
                [expected]
            );
            let state = if expected.is_ok() {
                State::Closing
            } else {
                State::Established
            };
            assert_eq!(entry.0.state(), state);
        }
    }

    /// behaviour 5: a refused connection: RST+ACK to the SYN.
    #[test]
    fn advance_reset_of_syn_needs_right_ack() {
        assert_eq!(
            run(&mut opened(), &[(Reply, RST | ACK, 0, 101, 0)]),
            [Ok(State::Closing)]
        );
        assert_eq!(
            run(&mut opened(), &[(Reply, RST | ACK, 0, 100, 0)]),
            [Err(Reason::RstWindow)]
        );
        assert_eq!(
            run(&mut opened(), &[(Reply, RST, 0, 101, 0)]),
            [Err(Reason::RstWindow)]
        );
    }

    /// behaviour 6: a SYN inside an established flow changes nothing.
    #[test]
    fn advance_syn_inside_established_keeps_state() {
        let mut entry = opened();
        run(
            &mut entry,
            &[(Reply, SYN | ACK, 500, 101, 0), (Forward, ACK, 101, 501, 0)],
        );
        let before = flow(&mut entry).seen(Forward);
        assert_eq!(
            run(&mut entry, &[(Forward, SYN, 9000, 0, 0)]),
            [Ok(State::Established)]
        );
        assert_eq!(flow(&mut entry).seen(Forward), before);
    }

    #[test]
    fn later_wraps_around() {
        assert_eq!(later(None, 5), 5);
        assert_eq!(later(Some(u32::MAX), 3), 3);
        assert_eq!(later(Some(3), u32::MAX), 3);
    }
}
