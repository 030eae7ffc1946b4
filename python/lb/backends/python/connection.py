"""
TCP state of a flow: the one place that decides what a segment may change (`docs/rules.md` rule 8.1, port reuse, to
rule 8.6, segments without ACK).

Between lookup and rewriting. Addresses and ports of a connection are not secret, its sequence numbers are: a segment
is *believed* only where it fits what the other side has acknowledged, and only then it changes numbers, state, idle
timer and ingress neighbour. Any other is forwarded and changes nothing; data is never dropped for its numbers (RFC
5961, RFC 5382). A window has room for guesses, so what ends a flow must be exact: a RST where the other side waits for
it, or at the end of what was sent without a gap behind that (`snd_nxt`, unless data or a FIN is noted ahead of it); a
FIN between the two, or at a number that the other side acknowledges. An ACK of unsent data is not believed, so guesses
do not chain. Sequence numbers are compared modulo 2**32 (RFC 9293 3.4).
"""

from __future__ import annotations

from typing import NamedTuple

from lb.backends.python import measure
from lb.backends.python.entry import Entry, Window
from lb.backends.python.flow_states import ACTIVE, CLOSING, ESTABLISHED, PICKUP, SYN_RECEIVED, SYN_SENT
from lb.backends.python.flow_table import FlowTable
from lb.model.verdict import Direction
from lb.packet.segment import MODULUS, Segment, is_between, is_later, is_within, later
from lb.packet.tcp import (
    ACK,
    FIN,
    RST,
    SYN,
)

MOST_WINDOW = 65535
OTHER: dict[Direction, Direction] = {"forward": "reply", "reply": "forward"}


class Step(NamedTuple):
    """
    The effect of a segment. `believed`: it may set the ingress neighbour, and is measured. `refreshes`: it refreshes
    the flow, too. `restarted`: another connection has taken the place of the one before.
    """

    state: str
    believed: bool = False
    refreshes: bool = False
    restarted: bool = False


def believed(state: str) -> Step:
    """Return the step of a segment that is believed."""
    return Step(state, True, True)


def follow(table: FlowTable, entry: Entry, direction: Direction, seg: Segment, now_ns: int) -> Step | None:
    """
    Judge a segment of a known flow, let it change what it may, and measure it.

    Args:
        table: holds the entry.
        entry: the flow; not to be reopened by this segment, which the caller has tested.
        direction: of the segment.
        seg: its numbers.
        now_ns: monotonic nanoseconds.

    Returns:
        What it did; None for a RST outside the window (`rst_window`), then nothing has changed.
    """
    was = measure.before(entry)
    step = judge(entry, direction, seg)
    if step is None or not step.believed or was.state == CLOSING:
        return step
    table.set_state(entry, step.state, now_ns)
    if step.state == CLOSING:
        table.counters.event("flow_closed")
    if was.state in ACTIVE or step.state in ACTIVE:
        measures = table.counters.measures[entry.server]
        # The flow itself counts: it did before, or does now.
        active = table.counters.servers[entry.server].flows_active + (step.state == CLOSING)
        if step.restarted:
            was = measure.restart(measures, entry, was)
        measure.follow(measures, entry, was, direction, seg, active, now_ns)
    return step


def judge(entry: Entry, direction: Direction, seg: Segment) -> Step | None:
    """Let a believed segment change the numbers; arguments and result as of `follow`."""
    if seg.has(RST):
        return judge_reset(entry, direction, seg)
    if seg.opens:
        return judge_syn(entry, direction, seg)
    if seg.has(SYN):
        return judge_syn_ack(entry, seg) if direction == "reply" else judge_crossed_syn_ack(entry, seg)
    if not seg.has(ACK):
        return Step(entry.state)
    if direction == "forward" and has_answer(entry) and seg.ack == entry.syn:
        return restart(entry, seg)
    if entry.state == SYN_SENT:
        return judge_early_ack(entry, direction, seg)
    if entry.state == SYN_RECEIVED and direction == "forward":
        return judge_third(entry, seg)
    if entry.state == PICKUP:
        return judge_pickup(entry, direction, seg)
    if not fits(entry, direction, seg):
        return Step(entry.state)
    return note(entry, direction, seg, entry.state)


def expected_of(entry: Entry, direction: Direction) -> int | None:
    """Return the next number that the receiver of a direction expects: acknowledged last, or after a SYN."""
    if entry.state == SYN_RECEIVED and direction == "reply":
        return entry.expected
    return entry.rcv_nxt[OTHER[direction]]


def known(entry: Entry, direction: Direction) -> int:
    """Return what a side sends next, where that is known for sure."""
    number = entry.snd_nxt[direction]
    assert number is not None, "a SYN was seen"
    return number


def sent_for_sure(entry: Entry, direction: Direction) -> int | None:
    """
    Return the end of what a side has sent without a gap, None where it may be forged: in a pickup, or with data noted
    ahead.
    """
    return entry.snd_nxt[direction] if entry.is_active and not entry.has_gap(direction) else None


def answers_syn(entry: Entry, number: int) -> bool:
    """Tell whether a number acknowledges the SYN of a handshake: the client's first, its last, or data with it."""
    if entry.state == SYN_SENT:
        return answers_first_syn(entry, number) or answers_syn_again(entry, number)
    return entry.state == SYN_RECEIVED and entry.rcv_nxt["reply"] == number


def answers_syn_again(entry: Entry, number: int) -> bool:
    """
    Tell whether a number acknowledges another SYN than the one that counts, or in syn-sent than the first: that SYN may
    be forged.
    """
    end = entry.syn_end if entry.state == SYN_SENT else entry.syn
    return entry.syn_again and not entry.answered and is_between(number, entry.syn, end)


def has_answer(entry: Entry) -> bool:
    """
    Tell whether the server has answered another SYN than the one that counts, and the client may acknowledge that
    still.
    """
    return entry.answered and entry.state in (SYN_RECEIVED, ESTABLISHED)


def answers_first_syn(entry: Entry, number: int) -> bool:
    """Tell whether a number acknowledges the SYN of a client in syn-sent that is its own for sure, or data with it."""
    first = first_syn(entry)
    return is_between(number, entry.syn if first is None else first, known(entry, "forward"))


def first_syn(entry: Entry) -> int | None:
    """
    Return the sequence number after the client's first SYN, or after the one that the server has acknowledged alone,
    while the client has answered nothing.
    """
    if entry.state != SYN_SENT or entry.rcv_nxt["forward"] is not None:
        return None
    return entry.expected


def judge_reset(entry: Entry, direction: Direction, seg: Segment) -> Step | None:
    """Judge a RST: believed exactly where the other side expects it, or will (RFC 5961 3.2), else forwarded."""
    opening = entry.state == SYN_SENT
    # Of unanswered SYNs only the first is certainly the client's.
    answers = answers_first_syn if opening else answers_syn
    if direction == "reply" and seg.has(ACK) and answers(entry, seg.ack):
        return believed(CLOSING)
    # A server that has acknowledged nothing: any number may be a guess.
    unheard = opening and direction == "reply"
    expected = expected_of(entry, direction)
    # Behind data that is not acknowledged yet its end is as good.
    if not unheard and seg.seq in (expected, sent_for_sure(entry, direction), first_syn(entry)):
        return believed(CLOSING)
    base = entry.snd_nxt[direction] if expected is None else expected
    inside = base is not None and (seg.seq - base) % MODULUS <= entry.windows[OTHER[direction]].size
    # A server may know a connection that the client and we have forgotten: it answers the SYN by an ACK, and the client
    # that by a RST at a number that only they know (RFC 9293 3.5.1). What is over has nothing to lose.
    passes = ((opening or inside) and not unheard) or entry.state == CLOSING
    return Step(entry.state) if passes or ends_another(entry, direction, seg) else None


def ends_another(entry: Entry, direction: Direction, seg: Segment) -> bool:
    """
    Tell whether a RST may be of the connection that another SYN asks for: the server refuses it, or one of both gives
    it up before it counts. Their ends judge by numbers that are not known here.
    """
    if has_answer(entry):
        return direction == "forward" or seg.seq == entry.syn
    return direction == "reply" and seg.has(ACK) and answers_syn_again(entry, seg.ack)


def judge_syn(entry: Entry, direction: Direction, seg: Segment) -> Step:
    """Judge a SYN without ACK. It refreshes nothing; one that repeats the first is its sender's."""
    if entry.state == SYN_SENT:
        return judge_syn_again(entry, seg) if direction == "forward" else judge_crossing_syn(entry, seg)
    other = entry.state in (SYN_RECEIVED, ESTABLISHED) and expected_of(entry, direction) != seg.after_syn
    if other and direction == "forward":
        entry.syn, entry.syn_again, entry.syn_scale = seg.after_syn, True, seg.scale
        entry.answered = False
    return Step(entry.state)


def judge_crossing_syn(entry: Entry, seg: Segment) -> Step:
    """
    Judge a SYN of the server, which may cross the client's: a simultaneous or split handshake (RFC 9293 3.5, RFC 5382
    REQ-2). The last counts, till the client has acknowledged one: then no other.
    """
    if entry.snd_nxt["reply"] != seg.end:
        if entry.rcv_nxt["forward"] is not None:
            return Step(SYN_SENT)
        entry.snd_nxt["reply"] = seg.end
        entry.windows["reply"] = Window()
    entry.windows["reply"].offer(seg.window, seg.scale)
    return Step(SYN_SENT)


def judge_syn_again(entry: Entry, seg: Segment) -> Step:
    """
    Judge another SYN of a client that was not answered: the same again, or one of another connection. That one may be
    forged: it is kept apart from the first, and the server's answer decides which of the two counts.
    """
    if seg.after_syn == first_syn(entry):
        entry.snd_nxt["forward"] = later(known(entry, "forward"), seg.end)
        entry.windows["forward"].offer(seg.window, seg.scale)
        entry.syn_again = False
        return Step(SYN_SENT, True)
    if entry.rcv_nxt["forward"] is None and entry.rcv_nxt["reply"] is None:
        repeats = entry.syn_again and entry.syn == seg.after_syn
        entry.syn_end = later(entry.syn_end, seg.end) if repeats else seg.end
        entry.syn, entry.syn_again, entry.syn_scale = seg.after_syn, True, seg.scale
    return Step(SYN_SENT)


def choose_syn(entry: Entry, number: int) -> None:
    """Note that one of the client's SYNs was answered: it counts from now on, and the other is forgotten."""
    if not answers_first_syn(entry, number):
        entry.expected, entry.snd_nxt["forward"] = entry.syn, entry.syn_end
        entry.windows["forward"] = renewed(entry.syn_scale)
    entry.syn_again = False


def renewed(scale: int | None) -> Window:
    """
    Return the window of another SYN than the one that counted, which offers a shift: it was not kept, and counts as
    the largest that a SYN can have.
    """
    window = Window()
    window.offer(MOST_WINDOW, scale)
    return window


def judge_syn_ack(entry: Entry, seg: Segment) -> Step:
    """Judge the server's SYN+ACK: believed if it acknowledges the SYN that counts, or one while none does yet."""
    if answers_syn(entry, seg.ack):
        if entry.state == SYN_SENT:
            return open_flow(entry, seg)
        answer_again(entry, seg)
        return believed(SYN_RECEIVED)
    if entry.state in (SYN_RECEIVED, ESTABLISHED):
        note_answer(entry, seg)
    return Step(entry.state)


def note_answer(entry: Entry, seg: Segment) -> None:
    """
    Note that the server answers another SYN than the one that counts. It may come from a client that has lost its
    connection, or be forged: a server that uses SYN cookies answers each. So nothing changes until the client
    acknowledges the answer, by a number that only it knows.
    """
    answers = answers_syn_again(entry, seg.ack) or entry.answered
    if answers and expected_of(entry, "forward") != seg.ack:
        entry.syn, entry.answered, entry.answer_scale = seg.after_syn, True, seg.scale


def answer_again(entry: Entry, seg: Segment) -> None:
    """Note that the server answers the SYN again. Only another answer than before says something new."""
    if entry.expected != seg.after_syn:
        entry.snd_nxt["reply"] = seg.end
        entry.fin_ahead["reply"] = entry.data_ahead["reply"] = False
        entry.expected = seg.after_syn


def open_flow(entry: Entry, seg: Segment) -> Step:
    """Note that the server has answered a SYN. It may answer the other, too: that is remembered."""
    again, offered = entry.syn_again, entry.windows["forward"]
    other = entry.syn, entry.syn_scale
    if not answers_first_syn(entry, seg.ack) and entry.expected is not None:
        other = entry.expected, offered.scale if offered.offers_scale else None
    choose_syn(entry, seg.ack)
    if again:
        (entry.syn, entry.syn_scale), entry.syn_again = other, True
    # The client's part of a simultaneous open may have come first.
    acknowledged = entry.rcv_nxt["forward"] == seg.after_syn
    entry.snd_nxt = {"forward": seg.ack, "reply": seg.end}
    entry.rcv_nxt["reply"] = seg.ack
    entry.windows["reply"] = Window()
    entry.windows["reply"].offer(seg.window, seg.scale)
    settle_scales(entry)
    if acknowledged:
        return believed(ESTABLISHED)
    entry.rcv_nxt["forward"] = None
    entry.expected = seg.after_syn
    return believed(SYN_RECEIVED)


def settle_scales(entry: Entry) -> None:
    """Note that both SYNs were seen: windows are scaled if both offered it (RFC 7323 2.2)."""
    scaled = all(window.offers_scale for window in entry.windows.values())
    for window in entry.windows.values():
        window.settle(scaled)


def restart(entry: Entry, seg: Segment) -> Step:
    """
    Let another connection take the place of the one before: the client acknowledges a SYN+ACK that it can only have
    seen itself. Both have forgotten that one.
    """
    entry.forget_sides()
    entry.snd_nxt["reply"], entry.rcv_nxt["reply"] = seg.ack, seg.seq
    entry.windows = {"forward": renewed(entry.syn_scale), "reply": renewed(entry.answer_scale)}
    settle_scales(entry)
    # What the client is waited to acknowledge: it does.
    entry.expected = seg.ack
    return note(entry, "forward", seg, ESTABLISHED)._replace(restarted=True)


def judge_crossed_syn_ack(entry: Entry, seg: Segment) -> Step:
    """Judge a SYN+ACK of the client, whose SYN has crossed the server's: it must repeat its own and answer that."""
    if not answers_syn(entry, seg.after_syn) or entry.snd_nxt["reply"] != seg.ack:
        return Step(entry.state)
    was = entry.state
    first_of_server = entry.rcv_nxt["reply"] is None
    if was == SYN_SENT:
        choose_syn(entry, seg.after_syn)
        entry.syn = seg.after_syn
        entry.windows["forward"].offer(seg.window, seg.scale)
    entry.snd_nxt["forward"] = later(known(entry, "forward"), seg.end)
    entry.rcv_nxt["forward"] = seg.ack
    if was == SYN_RECEIVED:
        return believed(ESTABLISHED)
    if first_of_server:
        return believed(SYN_SENT)
    settle_scales(entry)
    return believed(ESTABLISHED)


def judge_early_ack(entry: Entry, direction: Direction, seg: Segment) -> Step:
    """Judge an ACK before the server's SYN: the server's may acknowledge the client's SYN alone (a split handshake)."""
    if direction == "forward" or not answers_syn(entry, seg.ack):
        return Step(SYN_SENT)
    choose_syn(entry, seg.ack)
    entry.rcv_nxt["reply"] = seg.ack
    if entry.rcv_nxt["forward"] is None:
        return believed(SYN_SENT)
    settle_scales(entry)
    return believed(ESTABLISHED)


def judge_third(entry: Entry, seg: Segment) -> Step:
    """Judge the third segment of a handshake: it acknowledges the server's SYN, and at most what has followed it."""
    expected, begins = entry.expected, entry.rcv_nxt["reply"]
    assert expected is not None, "the server's SYN was seen"
    assert begins is not None, "the server has acknowledged the client's"
    acknowledges = is_between(seg.ack, expected, known(entry, "reply"))
    if not acknowledges or not is_within(seg.seq, begins, entry.windows["reply"].size):
        return Step(SYN_RECEIVED)
    entry.rcv_nxt["forward"] = seg.ack
    # It is this SYN that is the client's own.
    entry.syn_again = entry.answered = False
    return note(entry, "forward", seg, ESTABLISHED)


def pick_up(entry: Entry, direction: Direction, seg: Segment) -> None:
    """
    Note a segment that a flow is picked up from, or one more of the side that sent first: it is not acknowledged yet. A
    server's window counts as its numbers do; a client's may be forged, and too narrow for the true segments.
    """
    entry.snd_nxt[direction], entry.rcv_nxt[direction] = seg.end, seg.ack
    if direction == "reply":
        entry.windows["reply"].hear(seg.window)


def judge_pickup(entry: Entry, direction: Direction, seg: Segment) -> Step:
    """
    Judge a segment of a pickup. The side that sent first may continue; an ACK of the other confirms the flow.
    The server's numbers are used for both sides, for a client's may be forged.
    """
    first: Direction = "forward" if entry.snd_nxt["forward"] is not None else "reply"
    if direction == first:
        if seg.can_pick_up:
            pick_up(entry, direction, seg)
        return Step(PICKUP)
    client: int | None = seg.ack
    server: int | None = seg.seq
    if direction == "forward":
        if not fits(entry, direction, seg):
            return Step(PICKUP)
        client, server = entry.rcv_nxt["reply"], entry.snd_nxt["reply"]
    entry.snd_nxt = {"forward": client, "reply": server}
    entry.rcv_nxt = {"forward": server, "reply": client}
    return note(entry, direction, seg, ESTABLISHED)


def fits(entry: Entry, direction: Direction, seg: Segment) -> bool:
    """Tell whether a segment with ACK, without SYN and RST, fits what the other side has acknowledged."""
    other = OTHER[direction]
    start, acknowledged = expected_of(entry, direction), expected_of(entry, other)
    start = entry.snd_nxt[direction] if start is None else start
    if start is None or not is_within(seg.seq, start, entry.windows[other].size):
        return False
    sent, window = entry.snd_nxt[other], entry.windows[direction].size
    acknowledged = sent if acknowledged is None else acknowledged
    if acknowledged is None:
        return True
    # What is acknowledged beyond a FIN ahead shows that it was forged.
    if sent is None or entry.fin_ahead[other]:
        return is_within(seg.ack, acknowledged, window)
    return acknowledges(seg.ack, acknowledged, sent, window)


def acknowledges(number: int, acknowledged: int, sent: int, window: int) -> bool:
    """
    Tell whether a number acknowledges what was sent, from a window, and one, before what was acknowledged last: no host
    acknowledges unsent data (RFC 5961 5).
    """
    return (sent - number) % MODULUS <= (sent - acknowledged) % MODULUS + window + 1


def is_exact(entry: Entry, seg: Segment) -> bool:
    """
    Tell whether a client's segment has numbers that are hard to guess: it begins in what the server expects or has
    not acknowledged yet, and acknowledges what the server has sent last. To be asked before the segment is followed.
    """
    # What is believed in syn-sent repeats the client's number.
    if entry.state == SYN_SENT or (has_answer(entry) and seg.ack == entry.syn):
        return True
    begins, acknowledged = expected_of(entry, "forward"), expected_of(entry, "reply")
    known = entry.known_snd_nxt("forward")
    ends = begins if known is None else known
    sent = entry.snd_nxt["reply"]
    if entry.state == PICKUP or begins is None or ends is None or acknowledged is None or sent is None:
        return False
    return is_between(seg.seq, begins, ends) and is_between(seg.ack, acknowledged, sent)


def note(entry: Entry, direction: Direction, seg: Segment, state: str) -> Step:
    """Take the numbers of a segment that is believed, and see whether the flow is over; `state`: where it stands."""
    note_sent(entry, direction, seg)
    note_acknowledged(entry, direction, seg)
    return believed(CLOSING if all(entry.fin.values()) else state)


def note_sent(entry: Entry, direction: Direction, seg: Segment) -> None:
    """Note what a segment adds to what its side has sent."""
    expected, sent = expected_of(entry, direction), entry.snd_nxt[direction]
    begins = sent if expected is None else expected
    assert begins is not None, "it fits"
    entry.snd_nxt[direction] = begins if sent is None else sent
    if seg.has(FIN):
        note_fin(entry, direction, begins, seg)
    elif not entry.fin_ahead[direction]:
        note_end(entry, direction, begins, seg)


def note_end(entry: Entry, direction: Direction, begins: int, seg: Segment) -> None:
    """
    Note the end of a segment without FIN, where the other side waits for `begins`. What does not start there, or in
    what follows that without a gap, may be a guess.
    """
    sent = known(entry, direction)
    if is_between(seg.seq, begins, sent) and not entry.data_ahead[direction]:
        entry.snd_nxt[direction] = later(sent, seg.end)
    elif seg.seq == begins and not is_later(sent, seg.end):
        entry.snd_nxt[direction], entry.data_ahead[direction] = seg.end, False
    elif is_later(seg.end, sent):
        entry.snd_nxt[direction], entry.data_ahead[direction] = seg.end, True


def note_fin(entry: Entry, direction: Direction, begins: int, seg: Segment) -> None:
    """Note a FIN: it counts in sequence."""
    sent, ahead = known(entry, direction), entry.fin_ahead[direction]
    # Where the data behind what is ahead ends is not known.
    contiguous = begins if entry.has_gap(direction) else sent
    if is_between(seg.seq, begins, contiguous):
        entry.fin[direction] = True
        entry.fin_ahead[direction] = entry.data_ahead[direction] = False
        entry.snd_nxt[direction] = later(contiguous, seg.end)
        return
    # Of several the first in order: a forged one would have to hit what is not acknowledged to hide the true one, and
    # is overtaken by it else.
    counts = is_later(seg.end, begins) and (not ahead or is_later(sent, seg.end))
    if counts and not entry.fin[direction]:
        entry.snd_nxt[direction] = seg.end
        entry.fin_ahead[direction], entry.data_ahead[direction] = True, False


def note_acknowledged(entry: Entry, direction: Direction, seg: Segment) -> None:
    """Note what a segment acknowledges, and its window."""
    other = OTHER[direction]
    expected, sent = expected_of(entry, other), entry.snd_nxt[other]
    # A guess that found room in the unknown window tells nothing about it.
    exact = expected is not None and sent is not None and is_between(seg.ack, expected, sent)
    if exact or not entry.windows[direction].unheard:
        entry.windows[direction].hear(seg.window)
    known_before = entry.rcv_nxt[direction]
    acknowledged = seg.ack if known_before is None else later(known_before, seg.ack)
    entry.rcv_nxt[direction] = acknowledged
    if sent is None or is_later(sent, acknowledged):
        return
    if entry.fin_ahead[other]:
        entry.fin_ahead[other] = False
        # What is acknowledged beyond it was sent after it: it was forged.
        entry.fin[other] = entry.fin[other] or sent == acknowledged
    entry.data_ahead[other] = False
    entry.snd_nxt[other] = acknowledged


def begin(entry: Entry, seg: Segment) -> None:
    """Note the first SYN of a client, at which its flow begins."""
    entry.syn = entry.expected = seg.after_syn
    entry.snd_nxt["forward"] = seg.end
    entry.windows["forward"].offer(seg.window, seg.scale)
