//! What each kind of segment may change.

use super::*;
use crate::base::SplitMix64;
use crate::flow::table::{ColdCells, EntryCells, FlowCold, RareCells};
use crate::wire::segment::{MOST_SCALE, NO_SCALE};
use Direction::{Forward, Reply};
use FlowState::{Closing, Established, Pickup, SynReceived, SynSent};

const SYN: u8 = flag::SYN;
const ACK: u8 = flag::ACK;
const FIN: u8 = flag::FIN;
const RST: u8 = flag::RST;
const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = FIN | ACK;

/// (direction, control bits, sequence, acknowledgement, bytes of data)
type Step5 = (Direction, u8, u32, u32, usize);

/// A segment without a window.
fn segment(sequence: u32, acknowledgement: u32, flags: u8, len: usize) -> Segment {
    Segment::new(sequence.into(), acknowledgement.into(), flags, len)
}

/// As the pipeline does it. What is plain must be judged alike by both.
fn judge(flow: &mut Flow, direction: Direction, segment: &Segment) -> Result<Transition, Reason> {
    if !is_plain(flow, segment) {
        return follow(flow, direction, segment);
    }
    let sides = [flow.side(Forward), flow.side(Reply)];
    let believed = follow_plain(flow, direction, segment);
    let after = [flow.side(Forward), flow.side(Reply)];
    flow.set_side(Forward, sides[0]);
    flow.set_side(Reply, sides[1]);
    let step = follow(flow, direction, segment)?;
    assert_eq!((step.is_believed, step.to), (believed, Established));
    assert_eq!([flow.side(Forward), flow.side(Reply)], after);
    Ok(step)
}

struct Scene {
    entry: EntryCells,
    cold: ColdCells,
    rare: RareCells,
}

impl Clone for Scene {
    fn clone(&self) -> Self {
        let copy = Self::new(self.entry.state());
        copy.entry.store(&self.entry.load());
        copy.cold.store(&self.cold.load());
        copy.rare.store(&self.rare.load());
        copy
    }
}

impl Scene {
    fn flow(&mut self) -> Flow<'_> {
        Flow::new(&self.entry, &self.cold, &self.rare)
    }

    fn new(state: FlowState) -> Self {
        let scene = Self {
            entry: EntryCells::default(),
            cold: ColdCells::default(),
            rare: RareCells::default(),
        };
        scene.entry.set_state(state);
        scene.cold.store(&FlowCold::default());
        scene
    }

    /// The client's SYN: 100.
    fn opened() -> Self {
        let mut scene = Self::new(SynSent);
        let syn = segment(100, 0, SYN, 0).with_window(1000, NO_SCALE);
        scene.flow().begin(&syn);
        scene
    }

    /// And the handshake: 101, 501.
    fn established() -> Self {
        let mut scene = Self::opened();
        let states = scene.run(&[(Reply, SYN_ACK, 500, 101, 0), (Forward, ACK, 101, 501, 0)]);
        assert_eq!(states, [SynReceived, Established]);
        scene
    }

    fn take(
        &mut self,
        (direction, flags, sequence, ack, len): Step5,
    ) -> Result<Transition, Reason> {
        let segment = segment(sequence, ack, flags, len).with_window(1000, NO_SCALE);
        let step = judge(&mut self.flow(), direction, &segment)?;
        self.entry.set_state(step.to);
        Ok(step)
    }

    /// Take segments that are not dropped; the state after each.
    fn run(&mut self, steps: &[Step5]) -> Vec<FlowState> {
        let state = |&step| self.take(step).expect("it is forwarded").to;
        steps.iter().map(state).collect()
    }

    fn believes(&mut self, step: Step5) -> bool {
        self.take(step).is_ok_and(|step| step.is_believed)
    }
}

/// Rule 8.8, states: established after SYN/ACK and the ACK of it, closing after both FINs.
#[test]
fn follow_whole_connection_passes_states() {
    let states = Scene::opened().run(&[
        (Forward, SYN, 100, 0, 0),
        (Reply, SYN_ACK, 500, 101, 0),
        (Reply, SYN_ACK, 500, 101, 0),
        (Forward, ACK, 101, 501, 0),
        (Forward, ACK, 101, 501, 10),
        (Reply, FIN_ACK, 501, 111, 0),
        (Reply, FIN_ACK, 501, 111, 0),
        (Forward, FIN_ACK, 111, 502, 0),
        (Reply, ACK, 502, 112, 0),
    ]);
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
    assert_eq!(states, expected);
}

/// Rule 8.8, states, RFC 5382 REQ-2: both SYNs may cross, in any order in which they and their answers can pass us; a
/// server may answer in two segments.
#[test]
fn follow_crossed_handshakes_are_established() {
    let (server_syn, client_answers) = ((Reply, SYN, 500, 0, 0), (Forward, SYN_ACK, 100, 501, 0));
    let server_answers = (Reply, SYN_ACK, 500, 101, 0);
    let orders: [&[Step5]; 4] = [
        &[server_syn, client_answers, server_answers],
        &[server_syn, server_answers, client_answers],
        &[server_syn, client_answers, (Reply, ACK, 501, 101, 0)],
        &[(Reply, ACK, 500, 101, 0), server_syn, client_answers],
    ];
    for order in orders {
        let mut scene = Scene::opened();
        assert_eq!(scene.run(order).last(), Some(&Established), "{order:?}");
        assert!(scene.believes((Forward, ACK, 101, 501, 5)), "{order:?}");
        assert!(scene.believes((Reply, ACK, 501, 106, 5)), "{order:?}");
    }
}

/// Rule 8.8, states: the third segment acknowledges that very SYN/ACK, and at most what followed it.
#[test]
fn follow_third_segment_needs_both_numbers() {
    for (sequence, ack, expected) in [
        (101, 501, Established),
        (101, 500, SynReceived),
        (101, 502, SynReceived),
        (101, 0x5555_5555, SynReceived),
        (101 + 5000, 501, SynReceived),
    ] {
        let mut scene = Scene::opened();
        scene.run(&[(Reply, SYN_ACK, 500, 101, 0)]);
        let states = scene.run(&[(Forward, ACK, sequence, ack, 0)]);
        assert_eq!(states, [expected], "{sequence} {ack}");
    }
}

/// Rule 8.10, believed segments: the client's first SYN and its last may be answered, no other number; nothing else
/// than a SYN/ACK opens.
#[test]
fn follow_syn_ack_needs_number_of_a_syn() {
    for (ack, expected) in [
        (101, SynReceived),
        (9001, SynReceived),
        (7001, SynSent),
        (102, SynSent),
    ] {
        let mut scene = Scene::opened();
        scene.run(&[(Forward, SYN, 7000, 0, 0), (Forward, SYN, 9000, 0, 0)]);
        assert_eq!(scene.run(&[(Reply, SYN_ACK, 500, ack, 0)]), [expected]);
    }
}

/// Rule 8.2, reset acceptance: a reset is believed exactly where it is waited for, forwarded in the window, dropped
/// elsewhere.
#[test]
fn follow_reset_table() {
    let believed = Ok((Closing, true));
    let handed_on = Ok((Established, false));
    let dropped = Err(Reason::RstWindow);
    let cases = [
        ((Forward, RST, 101, 0), believed), // What the server acknowledged last.
        ((Forward, RST, 111, 0), believed), // What follows the data, which it has not acknowledged.
        ((Forward, RST, 110, 0), handed_on),
        ((Forward, RST, 112, 0), handed_on),
        ((Forward, RST, 101 + 1000, 0), handed_on),
        ((Forward, RST, 101 + 1001, 0), dropped),
        ((Forward, RST, 100, 0), dropped),
        ((Forward, RST, 0x8000_0000, 0), dropped),
        ((Reply, RST, 501, 0), believed),
        ((Reply, RST | ACK, 0, 111), dropped),
    ];
    for ((direction, flags, sequence, ack), expected) in cases {
        let mut scene = Scene::established();
        scene.run(&[(Forward, ACK, 101, 501, 10)]);
        let step = scene.take((direction, flags, sequence, ack, 0));
        let step = step.map(|step| (step.to, step.is_believed));
        assert_eq!(step, expected, "{direction:?} {sequence}");
    }
}

/// Rule 8.2, reset acceptance: a refused connection: RST+ACK to the SYN, also to one sent again after its SYN+ACK was
/// lost.
#[test]
fn follow_reset_of_syn_needs_right_ack() {
    let mut answered = Scene::opened();
    answered.run(&[(Reply, SYN_ACK, 500, 101, 0)]);
    assert!(answered.believes((Reply, RST | ACK, 0, 101, 0)));
    assert!(Scene::opened().believes((Reply, RST | ACK, 0, 101, 0)));
    for (flags, ack) in [(RST | ACK, 100), (RST, 101)] {
        let step = Scene::opened().take((Reply, flags, 0, ack, 0));
        assert_eq!(step, Err(Reason::RstWindow));
    }
}

/// Rule 8.2, reset acceptance: the reset of the second side passes after that of the first.
#[test]
fn follow_reset_of_second_side_is_handed_on() {
    let mut scene = Scene::established();
    assert!(scene.believes((Forward, RST, 101, 0, 0)));
    assert!(scene.take((Reply, RST, 7, 0, 0)).is_ok());
}

/// Rule 8.10, believed segments: the five spoofed segments, and brothers of theirs.
#[test]
fn follow_guesses_change_nothing() {
    let far = [0xffff_0000, 101 + 0x1000_0000, 101 + 0x7fff_ff00, 1 << 31];
    for guess in far {
        for flags in [ACK, FIN_ACK, SYN, SYN_ACK, 0x08] {
            let mut scene = Scene::established();
            let before = (scene.flow().side(Forward), scene.flow().side(Reply));
            let step = scene.take((Forward, flags, guess, 0x6000_0000, 0)).unwrap();
            assert_eq!((step.to, step.is_believed), (Established, false));
            let after = (scene.flow().side(Forward), scene.flow().side(Reply));
            if flags & SYN == 0 {
                assert_eq!(before, after);
            }
            assert!(scene.take((Forward, RST, guess, 0, 0)).is_err());
            assert!(scene.believes((Forward, ACK, 101, 501, 100)));
        }
    }
}

/// Rule 8.10, believed segments: a window reaches as far as was advertised, scaled, and a number more; and as far
/// back.
#[test]
fn follow_scaled_window_table() {
    for (scale, reach) in [(NO_SCALE, 1000), (2, 4000), (MOST_SCALE, 1000 << 14)] {
        let opened = || {
            let mut scene = Scene::new(SynSent);
            let syn = segment(100, 0, SYN, 0).with_window(1000, scale);
            scene.flow().begin(&syn);
            let answer = segment(500, 101, SYN_ACK, 0).with_window(1000, scale);
            let step = follow(&mut scene.flow(), Reply, &answer).unwrap();
            scene.entry.set_state(step.to);
            scene.run(&[(Forward, ACK, 101, 501, 0), (Reply, ACK, 501, 101, 0)]);
            scene
        };
        for (offset, expected) in [
            (0, true),
            (reach + 1, true),
            (reach + 2, false),
            (0u32.wrapping_sub(reach + 1), true),
            (0u32.wrapping_sub(reach + 2), false),
        ] {
            let step = (Forward, ACK, 101u32.wrapping_add(offset), 501, 0);
            assert_eq!(opened().believes(step), expected, "{scale} {offset}");
            // An endpoint acknowledges only what was sent.
            let expected = expected && offset.cast_signed() <= 0;
            let step = (Forward, ACK, 101, 501u32.wrapping_add(offset), 0);
            assert_eq!(opened().believes(step), expected, "{scale} {offset}");
        }
    }
}

/// RFC 7323 2.2: a shift counts if both sides offer one, and never for the windows of SYNs.
#[test]
fn follow_scale_of_one_side_is_none() {
    let mut scene = Scene::new(SynSent);
    let syn = segment(100, 0, SYN, 0).with_window(1001, 2);
    scene.flow().begin(&syn);
    scene.run(&[(Reply, SYN_ACK, 500, 101, 0)]);
    assert_eq!(scene.flow().side(Forward).window(), 1001);
    let mut both = Scene::new(SynSent);
    both.flow().begin(&syn);
    let answer = segment(500, 101, SYN_ACK, 0).with_window(999, 3);
    follow(&mut both.flow(), Reply, &answer).unwrap();
    let windows = [Forward, Reply].map(|side| both.flow().side(side).window());
    assert_eq!(windows, [1004, 1000], "rounded up to what can be said");
}

/// Rule 8.8, states: a FIN counts in sequence, or once it is acknowledged; elsewhere it is none of the peer's.
#[test]
fn follow_fins_close_in_sequence_or_acknowledged() {
    let mut scene = Scene::established();
    let states = scene.run(&[
        (Reply, FIN_ACK, 501, 101, 0),
        (Forward, FIN_ACK, 301, 502, 0),
        (Forward, ACK, 101, 502, 200),
        (Reply, ACK, 502, 301, 0),
        (Reply, ACK, 502, 302, 0),
    ]);
    let expected = [Established, Established, Established, Established, Closing];
    assert_eq!(states, expected);
    let mut blind = Scene::established();
    let states = blind.run(&[
        (Forward, FIN_ACK, 0x7000_0000, 501, 0),
        (Reply, FIN_ACK, 501, 101, 0),
    ]);
    assert_eq!(states, [Established, Established]);
}

/// Rule 8.10, believed segments: a SYN inside an established flow and its SYN/ACK change nothing; the numbers begin
/// anew when the client acknowledges that.
#[test]
fn follow_new_incarnation_restarts_numbers() {
    let mut scene = Scene::established();
    assert!(!scene.believes((Forward, SYN, 0x4000_0000, 0, 0)));
    assert!(scene.believes((Forward, ACK, 101, 501, 7)));
    assert!(!scene.believes((Reply, SYN_ACK, 0x7000_0000, 0x4000_0002, 0)));
    assert!(!scene.believes((Forward, ACK, 0x4000_0001, 0x7000_0001, 0)));
    assert!(!scene.believes((Reply, SYN_ACK, 0x7000_0000, 0x4000_0001, 0)));
    assert!(scene.believes((Reply, ACK, 501, 108, 0)));
    assert!(!scene.believes((Forward, ACK, 0x4000_0001, 0x7000_0000, 0)));
    let step = scene.take((Forward, ACK, 0x4000_0001, 0x7000_0001, 10));
    assert!(step.is_ok_and(|step| step.restarts && step.to == Established));
    assert!(scene.take((Forward, RST, 108, 0, 0)).is_err());
    assert!(scene.believes((Reply, RST, 0x7000_0001, 0, 0)));
}

/// Rule 8.8, states, and rule 8.10, believed segments: a server with SYN cookies answers every SYN; whichever came
/// first, the one that the client acknowledges counts.
#[test]
fn follow_cookie_counts_once_acknowledged() {
    let (forged, cookie) = ((Forward, SYN, 7000, 0, 0), (Reply, SYN_ACK, 900, 7001, 0));
    let (own, answer) = ((Forward, SYN, 100, 0, 0), (Reply, SYN_ACK, 500, 101, 0));
    let mut begun = Scene::new(SynSent);
    begun.flow().begin(&segment(7000, 0, SYN, 0));
    let orders: [(Scene, &[Step5]); 5] = [
        (Scene::opened(), &[answer, forged, cookie]),
        (Scene::opened(), &[forged, answer, cookie]),
        (Scene::opened(), &[forged, cookie, answer]),
        (Scene::opened(), &[forged, cookie, own, answer]),
        (begun, &[own, cookie, answer]),
    ];
    for (mut scene, order) in orders {
        assert_eq!(scene.run(order).last(), Some(&SynReceived), "{order:?}");
        assert!(!scene.believes((Forward, ACK, 7001, 901 + 5000, 0)));
        let states = scene.run(&[(Forward, ACK, 101, 501, 0)]);
        assert_eq!(states, [Established], "{order:?}");
        assert!(scene.believes((Reply, ACK, 501, 101, 5)), "{order:?}");
    }
}

/// Rule 8.2, reset acceptance: a refusal of another SYN than the one that counts is forwarded and closes nothing.
#[test]
fn follow_refusal_of_syn_again_is_handed_on() {
    let mut received = Scene::opened();
    received.run(&[(Reply, SYN_ACK, 500, 101, 0)]);
    for mut scene in [Scene::opened(), received, Scene::established()] {
        let refusal = (Reply, RST | ACK, 0, 7001, 0);
        assert!(scene.take(refusal).is_err());
        scene.run(&[(Forward, SYN, 7000, 0, 0)]);
        let state = scene.entry.state();
        assert_eq!(scene.take(refusal), Ok(Transition::unbelieved(state)));
    }
}

/// Rule 8.14, client packets of no flow: a pickup is confirmed by the other side alone, and by its numbers.
#[test]
fn follow_pickup_is_confirmed_by_the_other_side() {
    let picked = |direction| {
        let mut scene = Scene::new(Pickup);
        scene.flow().set_snd_nxt(direction, 5000.into());
        scene.flow().set_rcv_nxt(direction, 9000.into());
        scene
    };
    let mut client = picked(Forward);
    assert!(!client.believes((Forward, ACK, 0x7000_0000, 1, 0)));
    assert!(client.believes((Reply, ACK, 9000, 5000, 100)));
    assert_eq!(client.entry.state(), Established);
    assert!(client.believes((Forward, ACK, 5000, 9100, 10)));
    let mut server = picked(Reply);
    assert!(!server.believes((Forward, ACK, 9000 + 0x5000_0000, 5000, 0)));
    assert!(server.believes((Forward, ACK, 9000, 5000, 0)));
    assert_eq!(server.entry.state(), Established);
}

/// Rule 8.8, states, and rule 8.10, believed segments: an abort right behind data that the other side has not
/// acknowledged is as good as one where it acknowledged.
#[test]
fn follow_reset_behind_data_without_acknowledgement_is_believed() {
    for numbers in [[101, 111], [102, 112]] {
        let mut scene = Scene::established();
        scene.run(&[(Forward, ACK, 101, 501, 10)]);
        if numbers[1] == 112 {
            scene.run(&[(Forward, ACK, 111, 501, 1)]);
        }
        assert!(!scene.believes((Forward, RST, 102, 0, 0)));
        assert!(scene.believes((Forward, RST, numbers[1], 0, 0)));
        let mut server = Scene::established();
        server.run(&[(Reply, ACK, 501, 101, 700), (Reply, ACK, 1201, 101, 1)]);
        assert!(!server.believes((Reply, RST, 1201, 0, 0)));
        assert!(server.believes((Reply, RST, 1202, 0, 0)));
    }
}

/// Rule 8.2, reset acceptance: data beyond a gap moves no number that a reset is believed at; an acknowledgement of it
/// does.
#[test]
fn follow_data_beyond_gap_counts_once_acknowledged() {
    let mut scene = Scene::established();
    // A guess that finds room in the window, behind it and before it.
    for guess in [102, 700, 1100, 90, u32::MAX] {
        assert!(scene.believes((Forward, ACK, guess, 501, 5)));
        assert!(!scene.believes((Forward, RST, guess.wrapping_add(5), 0, 0)));
    }
    let mut scene = Scene::established();
    scene.run(&[(Forward, ACK, 101, 501, 10), (Forward, ACK, 121, 501, 10)]);
    assert!(!scene.believes((Forward, RST, 111, 0, 0)));
    assert!(!scene.believes((Forward, RST, 131, 0, 0)));
    scene.run(&[(Reply, ACK, 501, 111, 0)]);
    // What was lost before us comes by again, and the server has had the rest.
    scene.run(&[(Forward, ACK, 111, 501, 10)]);
    assert!(!scene.believes((Reply, ACK, 501, 132, 0)));
    assert!(scene.believes((Reply, ACK, 501, 131, 0)));
    assert_eq!(scene.flow().snd_nxt(Forward), Some(131.into()));
    assert!(scene.believes((Forward, RST, 131, 0, 0)));
}

/// Rule 8.10, believed segments: several gaps at once, with more and more under way, keep neither end from being
/// believed.
#[test]
fn follow_losses_before_us_leave_both_ends_believed() {
    let mut scene = Scene::established();
    let (mut acknowledged, mut sent) = (501, 501);
    for round in 0..50 {
        // Of ten segments two were lost before us. The client acknowledges up to the first, then up to the second,
        // then all.
        for number in 0..10 {
            let is_lost = number == 2 || number == 5;
            assert!(
                is_lost || scene.believes((Reply, ACK, sent, 101, 100)),
                "{round}"
            );
            sent += 100;
        }
        for number in [2, 5, 10] {
            let again = acknowledged + 100 * number;
            assert!(scene.believes((Forward, ACK, 101, again, 0)), "{round}");
            assert!(number == 10 || scene.believes((Reply, ACK, again, 101, 100)));
        }
        acknowledged = sent;
    }
}

/// Rule 8.10, believed segments: an acknowledgement of what was not sent is none, so guesses do not lead on to each
/// other.
#[test]
fn follow_acknowledgements_of_what_was_not_sent_change_nothing() {
    let mut scene = Scene::established();
    for window in 1..100 {
        assert!(!scene.believes((Forward, ACK, 101, 501 + 900 * window, 0)));
    }
    assert!(scene.believes((Reply, ACK, 501, 101, 10)));
    assert!(scene.believes((Forward, ACK, 101, 511, 0)));
}

/// Rule 8.8, states, and rule 8.10, believed segments: a FIN at a number that was acknowledged long ago is none, and
/// leaves none behind.
#[test]
fn follow_fin_behind_what_was_acknowledged_is_none() {
    let mut scene = Scene::established();
    scene.run(&[(Forward, ACK, 101, 501, 500), (Reply, ACK, 501, 601, 0)]);
    let states = scene.run(&[
        (Forward, FIN_ACK, 300, 501, 0),
        (Forward, FIN_ACK, 600, 501, 0),
        (Reply, FIN_ACK, 501, 601, 0),
        (Reply, ACK, 502, 601, 0),
    ]);
    assert_eq!(states, [Established; 4]);
    assert_eq!(scene.run(&[(Forward, FIN_ACK, 601, 502, 0)]), [Closing]);
}

/// Rule 8.8, states, and rule 8.10, believed segments: of FINs beyond a gap the first in order counts, at its own
/// number: a forged one neither counts nor hides the true one.
#[test]
fn follow_forged_fin_ahead_is_forgotten() {
    let forged = (Forward, FIN_ACK, 401, 501, 0);
    // Acknowledged beyond: it was forged, and the number is none of the client's.
    let mut passed = Scene::established();
    let states = passed.run(&[
        forged,
        (Reply, FIN_ACK, 501, 101, 0),
        (Forward, ACK, 101, 501, 400),
        (Reply, ACK, 502, 501, 0),
    ]);
    assert_eq!(states, [Established; 4]);
    assert!(!passed.believes((Forward, RST, 402, 0, 0)));
    assert!(passed.believes((Forward, RST, 501, 0, 0)));
    // While it is noted no reset is believed at its number.
    let mut noted = Scene::established();
    noted.run(&[forged]);
    assert!(!noted.believes((Forward, RST, 402, 0, 0)));
    assert!(noted.believes((Forward, RST, 101, 0, 0)));
    // The true FIN behind outstanding data, the forged one before and after it.
    let mut hidden = Scene::established();
    let states = hidden.run(&[
        forged,
        (Forward, ACK, 101, 501, 100),
        (Forward, FIN_ACK, 201, 501, 0),
        forged,
        (Reply, ACK, 501, 202, 0),
        (Reply, FIN_ACK, 501, 202, 0),
    ]);
    assert_eq!(states[..5], [Established; 5]);
    assert_eq!(states[5], Closing);
}

/// Rule 8.8, states: a FIN that was marked and comes again changes nothing, wherever it comes from.
#[test]
fn follow_fin_again_changes_nothing() {
    let mut scene = Scene::established();
    scene.run(&[(Forward, FIN_ACK, 101, 501, 0), (Reply, ACK, 501, 102, 0)]);
    let before = [scene.flow().side(Forward), scene.flow().side(Reply)];
    scene.run(&[
        (Forward, FIN_ACK, 101, 501, 0),
        (Forward, FIN_ACK, 700, 501, 0),
    ]);
    assert_eq!(
        [scene.flow().side(Forward), scene.flow().side(Reply)],
        before
    );
    assert_eq!(scene.run(&[(Reply, FIN_ACK, 501, 102, 0)]), [Closing]);
}

/// Rule 8.10, believed segments: a window of unknown scale reaches as far as the largest scale lets it, and that of a
/// side that was not heard 2^30.
#[test]
fn follow_unknown_scale_counts_as_the_largest() {
    const REACH: u32 = 1000 << MOST_SCALE;
    let confirmed = || {
        let mut scene = Scene::new(Pickup);
        scene.flow().set_snd_nxt(Forward, 5000.into());
        scene.flow().set_rcv_nxt(Forward, 9000.into());
        assert_eq!(scene.flow().side(Forward).window(), 1 << 30);
        scene.run(&[(Reply, ACK, 9000, 5000, 10)]);
        scene
    };
    for (offset, fits) in [(REACH + 1, true), (REACH + 2, false), (1 << 29, false)] {
        for offset in [offset, 0u32.wrapping_sub(offset)] {
            let sequence = 5000u32.wrapping_add(offset);
            let step = (Forward, ACK, sequence, 9010, 0);
            assert_eq!(confirmed().believes(step), fits, "{offset}");
            let mut scene = confirmed();
            scene.run(&[(Forward, ACK, 5000, 9010, 0)]);
            let step = (Reply, ACK, 9010u32.wrapping_add(offset), 5000, 0);
            assert_eq!(scene.believes(step), fits, "{offset}");
        }
    }
}

/// Rule 8.10, believed segments: a guess into the window of a side that was not heard tells nothing of its window:
/// neither wider nor too narrow.
#[test]
fn follow_guess_leaves_unknown_window_unknown() {
    for guess in [1 << 29, 1 << 20, 0u32.wrapping_sub(1 << 29)] {
        let mut scene = Scene::new(Pickup);
        scene.flow().set_snd_nxt(Forward, 5000.into());
        scene.flow().set_rcv_nxt(Forward, 9000.into());
        scene.run(&[(Reply, ACK, 9000, 5000, 10)]);
        let forged = segment(5000, 9000u32.wrapping_add(guess), ACK, 0);
        let step = judge(&mut scene.flow(), Forward, &forged).unwrap();
        assert_eq!(step.is_believed, guess.cast_signed() < 0);
        assert_eq!(scene.flow().side(Forward).window(), 1 << 30);
        assert!(scene.believes((Reply, ACK, 9010, 5000, 2000)), "{guess}");
        assert!(scene.believes((Forward, ACK, 5000, 11010, 5)), "{guess}");
    }
}

/// Rule 8.14, client packets of no flow, and rule 8.10, believed segments: a client that confirms a pickup may be
/// forged: its server's numbers are taken.
#[test]
fn follow_client_that_confirms_vouches_for_no_number() {
    let mut scene = Scene::new(Pickup);
    scene.flow().set_snd_nxt(Reply, 9000.into());
    scene.flow().set_rcv_nxt(Reply, 5000.into());
    let guess = 5000 + (1 << 28);
    assert!(scene.believes((Forward, FIN_ACK, guess, 9000, 7)));
    assert_eq!(scene.entry.state(), Established);
    for number in [guess, guess + 7, guess + 8] {
        assert!(!scene.believes((Forward, RST, number, 0, 0)));
    }
    assert_eq!(scene.run(&[(Reply, FIN_ACK, 9000, 5000, 0)]), [Established]);
    assert!(scene.believes((Forward, RST, 5000, 0, 0)));
}

/// Rule 8.10, believed segments: of the client's SYNs only the one that the server answers tells its window and its
/// scale.
#[test]
fn follow_forged_syn_widens_no_window() {
    let forged = segment(7000, 0, SYN, 0).with_window(u16::MAX, MOST_SCALE);
    let answer = |ack| segment(500, ack, SYN_ACK, 0).with_window(1000, 1);
    let opened = |ack| {
        let mut scene = Scene::new(SynSent);
        let syn = segment(100, 0, SYN, 0).with_window(1000, 2);
        scene.flow().begin(&syn);
        judge(&mut scene.flow(), Forward, &forged).unwrap();
        assert_eq!(scene.flow().side(Forward).window(), 4000);
        let step = judge(&mut scene.flow(), Reply, &answer(ack)).unwrap();
        assert_eq!(step.to, SynReceived);
        scene.flow().side(Forward).window()
    };
    assert_eq!(opened(101), 1000);
    assert_eq!(opened(7001), 65536);
    // An offer of the last alone scales nothing if the first answered has none.
    let mut scene = Scene::opened();
    judge(&mut scene.flow(), Forward, &forged).unwrap();
    judge(&mut scene.flow(), Reply, &answer(101)).unwrap();
    let windows = [Forward, Reply].map(|side| scene.flow().side(side).window());
    assert_eq!(windows, [1000, 1000]);
}

/// Rule 8.10, believed segments, RFC 7413: a forged SYN does not take the place of the data that the client's first
/// had.
#[test]
fn follow_forged_syn_hides_no_data_of_the_first() {
    let mut scene = Scene::new(SynSent);
    scene.flow().begin(&segment(100, 0, SYN, 10));
    scene.run(&[(Forward, SYN, 7000, 0, 20)]);
    assert!(scene.believes((Forward, SYN, 100, 0, 10)));
    scene.run(&[(Forward, SYN, 7000, 0, 20), (Forward, SYN, 7000, 0, 0)]);
    let mut other = scene.clone();
    assert_eq!(scene.run(&[(Reply, SYN_ACK, 500, 111, 0)]), [SynReceived]);
    assert_eq!(other.run(&[(Reply, SYN_ACK, 500, 7021, 0)]), [SynReceived]);
}

/// Rule 8.2, reset acceptance: a server's SYN without an answer makes no number that a reset is believed at, nor one
/// that crosses an answered one.
#[test]
fn follow_forged_syn_of_server_makes_no_number() {
    let forged = (Reply, SYN, 0x7000_0000, 0, 0);
    let mut scene = Scene::opened();
    scene.run(&[
        (Reply, SYN, 500, 0, 0),
        (Forward, SYN_ACK, 100, 501, 0),
        forged,
    ]);
    assert_eq!(scene.run(&[(Forward, SYN, 7000, 0, 0)]), [SynSent]);
    assert_eq!(scene.run(&[(Reply, ACK, 501, 101, 0)]), [Established]);
    assert!(scene.take((Reply, RST, 0x7000_0001, 0, 0)).is_err());
    assert!(scene.believes((Reply, RST, 501, 0, 0)));
}

/// Rule 8.8, states: the SYN+ACK that comes again leaves what its side has sent since.
#[test]
fn follow_syn_ack_again_leaves_fin_ahead() {
    let mut scene = Scene::opened();
    let answer = (Reply, SYN_ACK, 500, 101, 0);
    let states = scene.run(&[answer, (Reply, FIN_ACK, 601, 101, 0), answer]);
    assert_eq!(states, [SynReceived; 3]);
    assert_eq!(scene.run(&[(Forward, FIN_ACK, 101, 501, 0)]), [Established]);
    assert_eq!(scene.run(&[(Forward, ACK, 102, 602, 0)]), [Closing]);
}

/// Rule 8.10, believed segments: whatever comes, no number is before what the other side has acknowledged, and what is
/// plain is judged alike by both.
#[test]
fn follow_any_segments_keep_numbers_in_order() {
    const FLAGS: [u8; 8] = [ACK, ACK, ACK, FIN_ACK, SYN, SYN_ACK, RST, FIN_ACK];
    let mut random = SplitMix64::new(11);
    let mut draw = move |bound: u64| random.draw() % bound;
    let begun = [Scene::opened(), Scene::established(), Scene::new(Pickup)];
    for number in 0..30_000 {
        let mut scene = begun[number % 3].clone();
        if number % 3 == 2 {
            let first = [Forward, Reply][draw(2) as usize];
            pick_up(&mut scene.flow(), first, &segment(100, 500, ACK, 1));
        }
        for _ in 0..24 {
            let direction = [Forward, Reply][draw(2) as usize];
            let flags = FLAGS[draw(8) as usize];
            let mut near =
                |base: u64| (base + [draw(4), draw(900), draw(40)][draw(3) as usize]) as u32;
            let (client, server) = (near(98), near(498));
            let (sequence, ack) = match direction {
                Forward => (client, server),
                Reply => (server, client),
            };
            let _ = scene.take((direction, flags, sequence, ack, draw(60) as usize));
            let flow = scene.flow();
            for side in [Forward, Reply] {
                let numbers = flow.expected_of(side).zip(flow.snd_nxt(side));
                let in_order = numbers.is_none_or(|(expected, sent)| !expected.is_after(sent));
                assert!(
                    in_order || !flow.state().is_active(),
                    "{number} {numbers:?}"
                );
            }
        }
    }
}
