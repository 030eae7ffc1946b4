"""
TCP state of a flow whose replies may come to another balancer (`docs/rules.md` rule 8.23, replies through any
balancer): the client alone is followed, by what it sends.

What the server sends may not be seen, so nothing can be held against it, and no segment is dropped. A client's segment
is believed near the last one that was. A guess that finds it changes little: a flow that closes continues for those
who continue, and a SYN moves no flow that both sides have not closed.
"""

from __future__ import annotations

from lb.backends.python.connection import (
    Step,
    answers_first_syn,
    answers_syn,
    answers_syn_again,
    believed,
    first_syn,
    judge_syn_ack,
    judge_syn_again,
    pick_up,
)
from lb.backends.python.entry import Entry, Window
from lb.backends.python.flow_states import CLOSING, ESTABLISHED, ONE_WAY, PICKUP, SYN_RECEIVED, SYN_SENT
from lb.model.verdict import Direction
from lb.packet.segment import MODULUS, Segment, is_between, is_within, later
from lb.packet.tcp import ACK, FIN, RST, SYN

# How far a client's next segment may be from the last one: 1 MiB, more than a network loses at a time. And how far what
# it acknowledges may be from what it did last: 16 MiB, more than arrives between two of its segments.
NEAR, NEAR_ACKNOWLEDGED = 1 << 20, 1 << 24
# How far a server's segment may be from what its client acknowledged, to tell of it: 64 KiB, what is sent at once at
# first. A server may answer a stranger's segment by a number that the stranger knows, but not by its own.
AT_HAND = 65535


def judge_any(entry: Entry, direction: Direction, seg: Segment) -> Step:
    """Judge a segment of a known flow; arguments as of `judge`. None is dropped."""
    if seg.has(RST):
        return judge_reset(entry, direction, seg)
    return judge_client(entry, seg) if direction == "forward" else judge_server(entry, seg)


def judge_reset(entry: Entry, direction: Direction, seg: Segment) -> Step:
    """Judge a RST: believed exactly where its sender is known to be. Else its receiver decides."""
    answers = answers_first_syn if entry.state == SYN_SENT else answers_syn
    if direction == "reply" and seg.has(ACK) and answers(entry, seg.ack):
        return believed(CLOSING)
    exact = entry.snd_nxt["forward"] if direction == "forward" else entry.rcv_nxt["forward"]
    return believed(CLOSING) if exact == seg.seq else Step(entry.state)


def judge_client(entry: Entry, seg: Segment) -> Step:
    """Judge a client's segment without RST."""
    if seg.has(SYN):
        return judge_syn(entry, seg)
    if not seg.has(ACK):
        return Step(entry.state)
    if entry.state in (SYN_SENT, SYN_RECEIVED):
        return judge_opening(entry, seg)
    if entry.state in (ONE_WAY, CLOSING) and syn_again(entry) == seg.seq:
        return begin_at(entry, seg, None, ONE_WAY)
    if entry.state == PICKUP:
        return judge_pickup(entry, seg)
    if continues(entry, seg):
        return go_on(entry, seg, entry.state)
    # It may have continued by another way: then it cannot be told where it is, only that it is there.
    return Step(entry.state, refreshes=seg.can_pick_up)


def judge_syn(entry: Entry, seg: Segment) -> Step:
    """
    Judge a SYN of the client, which may be forged: it is kept apart while the flow opens, and when a side has closed
    it. The first of a new connection refreshes what is closing, so that it is there still when the client continues.
    """
    if seg.has(ACK):
        return Step(entry.state)
    if entry.state == SYN_SENT:
        return judge_syn_again(entry, seg)
    is_new = seg.after_syn not in (entry.snd_nxt["forward"], syn_again(entry))
    if not is_new or entry.state not in (SYN_RECEIVED, CLOSING):
        return Step(entry.state)
    remember(entry, seg.after_syn)
    return Step(entry.state, refreshes=entry.state == CLOSING)


def judge_opening(entry: Entry, seg: Segment) -> Step:
    """Judge an ACK of a client before its flow is established: exactly behind its SYN, or another that it sent."""
    if entry.state == SYN_SENT:
        if answers_first_syn(entry, seg.seq):
            return begin_at(entry, seg, None, ONE_WAY)
        if answers_syn_again(entry, seg.seq):
            return begin_at(entry, seg, first_syn(entry), ONE_WAY)
    elif is_third(entry, seg):
        return begin_at(entry, seg, None, ESTABLISHED)
    elif syn_again(entry) == seg.seq:
        return begin_at(entry, seg, entry.snd_nxt["forward"], ONE_WAY)
    return Step(entry.state)


def is_third(entry: Entry, seg: Segment) -> bool:
    """Tell whether a segment is the client's answer to the SYN+ACK that was seen, or what follows that."""
    expected = entry.expected
    assert expected is not None, "the server's SYN was seen"
    return entry.rcv_nxt["reply"] == seg.seq and is_between(seg.ack, expected, (expected + AT_HAND) % MODULUS)


def judge_pickup(entry: Entry, seg: Segment) -> Step:
    """Judge a segment of a client that was picked up: it continues exactly where that ended, or is picked up anew."""
    if entry.snd_nxt["forward"] == seg.seq:
        return go_on(entry, seg, ONE_WAY)
    if seg.can_pick_up:
        forget_reply(entry)
        pick_up(entry, "forward", seg)
    return Step(PICKUP)


def judge_server(entry: Entry, seg: Segment) -> Step:
    """Judge a server's segment without RST: it confirms the client's numbers where it acknowledges them."""
    opening = entry.state in (SYN_SENT, SYN_RECEIVED)
    if seg.has(SYN) and seg.has(ACK) and opening and answers_syn(entry, seg.ack):
        return judge_syn_ack(entry, seg)
    near = is_near(entry.snd_nxt["forward"], seg.ack, NEAR) and is_near(entry.rcv_nxt["forward"], seg.seq, AT_HAND)
    if seg.flags & (SYN | ACK) != ACK or opening or not near:
        return Step(entry.state)
    forget_reply(entry)
    entry.fin["reply"] = entry.fin["reply"] or seg.has(FIN)
    return close_or(entry, ESTABLISHED if entry.state in (ONE_WAY, PICKUP) else entry.state)


def syn_again(entry: Entry) -> int | None:
    """Return the number after a SYN that is kept apart, None when none is."""
    return entry.syn if entry.syn_again and not entry.answered else None


def remember(entry: Entry, number: int) -> None:
    """Keep a number apart, at which the client may continue."""
    entry.syn, entry.syn_again, entry.syn_scale = number, True, None
    entry.answered = False


def begin_at(entry: Entry, seg: Segment, other: int | None, state: str) -> Step:
    """
    Note that the client continues exactly behind a SYN: its numbers count from now on. `other`: where it would if that
    SYN was forged.
    """
    entry.forget_sides()
    if other is not None:
        remember(entry, other)
    return go_on(entry, seg, state)


def continues(entry: Entry, seg: Segment) -> bool:
    """Tell whether a client's segment is near the last one that was believed."""
    sent, acknowledged = entry.snd_nxt["forward"], entry.rcv_nxt["forward"]
    return is_near(sent, seg.seq, NEAR) and is_near(acknowledged, seg.ack, NEAR_ACKNOWLEDGED)


def is_near(known: int | None, number: int, reach: int) -> bool:
    """Tell whether a number is within reach of one that is known."""
    return known is not None and is_within(number, known, reach)


def go_on(entry: Entry, seg: Segment, state: str) -> Step:
    """Note the end of a client's segment that is believed, and what it acknowledges. Of the server nothing is known."""
    sent, acknowledged = entry.snd_nxt["forward"], entry.rcv_nxt["forward"]
    forget_reply(entry)
    entry.snd_nxt["forward"] = seg.end if sent is None else later(sent, seg.end)
    entry.rcv_nxt["forward"] = seg.ack if acknowledged is None else later(acknowledged, seg.ack)
    entry.fin["forward"] = entry.fin["forward"] or seg.has(FIN)
    return close_or(entry, state)


def forget_reply(entry: Entry) -> None:
    """Note that nothing is known of the server's side any more, nor what is ahead of the client's."""
    if entry.answered:
        entry.syn_again = entry.answered = False
    entry.snd_nxt["reply"] = entry.rcv_nxt["reply"] = None
    entry.windows["reply"] = Window()
    entry.fin_ahead = {"forward": False, "reply": False}
    entry.data_ahead = {"forward": False, "reply": False}


def close_or(entry: Entry, state: str) -> Step:
    """
    Return what a segment that is believed makes of a flow: the FIN of either side closes it, for the other's may never
    be seen.
    """
    if not any(entry.fin.values()):
        return believed(state)
    entry.closed_by_one = True
    return believed(CLOSING)
