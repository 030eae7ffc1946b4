"""`lb chaos`: what is drawn, and what is made of what was seen."""

from __future__ import annotations

import itertools
import json
import socket
import struct
from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from socket import inet_aton, inet_ntoa
from typing import Any

import pytest

from lb.lab.chaos import document, report, table
from lb.lab.chaos.document import Document
from lb.lab.chaos.judge import FLOWS, GivenUp, Happened, Heard, Observed, Outcome, judge
from lb.lab.chaos.resets import parsed, program
from lb.lab.chaos.run import unwanted
from lb.lab.chaos.schedule import COOL_DOWN_S, LANES, RESTARTS, WARM_UP_S, Act, Kind, make
from lb.net.sockets import set_program

SERVERS = ("server1", "server2", "server3")
START = 1000.0


def test_schedule_of_a_seed_is_the_same_and_another_of_another() -> None:
    assert make(1, 300, SERVERS) == make(1, 300, SERVERS)
    assert make(1, 300, SERVERS) != make(2, 300, SERVERS)


def test_schedule_has_all_kinds_alike_within_the_run_and_one_after_another_in_a_lane() -> None:
    acts = make(7, 1800, SERVERS)
    assert min(act.at_s for act in acts) > WARM_UP_S
    assert max(act.end_s for act in acts) <= 1800 - COOL_DOWN_S
    for lane in LANES.values():
        of_lane = [act for act in acts if act.kind in lane]
        assert all(before.end_s < after.at_s for before, after in itertools.pairwise(of_lane))
        counts = Counter(act.kind for act in of_lane)
        assert set(counts) == set(lane)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert {act.server for act in acts if act.kind == "server lost"} == set(SERVERS)


def test_schedule_without_kinds_has_none_of_them() -> None:
    assert not RESTARTS & {act.kind for act in make(1, 600, SERVERS, RESTARTS)}
    everything = frozenset(kind for lane in LANES.values() for kind in lane)
    assert make(1, 600, SERVERS, everything) == ()


def test_schedule_of_a_short_run_is_empty() -> None:
    assert make(1, WARM_UP_S + COOL_DOWN_S, SERVERS) == ()


def happened(kind: Kind, began_s: float, ended_s: float, server: str = "", trouble: str = "") -> Happened:
    """Return an act."""
    return Happened(kind, Act(began_s, ended_s - began_s, kind, server).shown(), server, began_s, ended_s, trouble)


def words(began_s: float, ended_s: float, *, error: str | None = None, **more: Any) -> dict[str, Any]:
    """Return what a client says about a flow."""
    told: dict[str, Any] = {"flow": "long", "port": 40000, "number": 1, "what": "exchange", "heard": False, **more}
    told |= {"error": error} if error else {"stalled_s": ended_s - began_s}
    times = {"since": told.pop("since_s", began_s), "began": began_s, "ended": ended_s}
    return {**told, **{name: START + at_s for name, at_s in times.items()}}


def seen(*statements: dict[str, Any], **more: Any) -> Observed:
    """Return what was seen of one client, with an exchange of each kind beside that."""
    observed = Observed(**more)
    told = (*statements, {"totals": {f"{flow} exchange": 1 for flow in FLOWS}})
    observed.statements += [("client1", each) for each in told]
    return observed


def test_flow_that_broke_is_broken_whatever_happened_meanwhile() -> None:
    """Restarts, crashes and floods break nothing."""
    for kind in (kind for lane in LANES.values() for kind in lane):
        observed = seen(
            {"opened": 1, "port": 40000, "at": START},
            words(10, 12, error="connection reset by peer"),
            acts=[happened(kind, 9, 11, "server1")],
        )
        outcome = judge(observed, START)
        (broken,) = outcome.broken
        assert (broken.error, broken.causes, outcome.is_good) == ("connection reset by peer", (kind,), False)


def taken_out() -> Observed:
    """Return what was seen of a run in which server1 was found down at 10.6 s, until 16 s."""
    observed = seen(acts=[happened("server down", 9, 14, "server1")])
    observed.change_health(10.6, "server1", False, "no answer")
    observed.change_health(16.0, "server1", True, "checks pass")
    return observed


@pytest.mark.parametrize(
    ("server", "began_s", "ended_s", "is_due"),
    [
        ("server1", 7, 12.0, True),
        ("server1", 11.5, 11.6, True),
        ("", 7, 12.0, True),
        ("server2", 7, 12.0, False),
        ("server1", 7, 10.5, False),
        ("server1", 11.7, 12.0, False),
        ("server1", 30, 30.1, False),
        ("", 30, 30.1, False),
        ("server1", 7, 25.5, True),
        ("server1", 7, 25.7, False),
        ("", 7, 25.7, False),
    ],
    ids=[
        "its-own",
        "said-nothing-then",
        "unknown",
        "another",
        "before",
        "while-down",
        "once-it-is-back",
        "unknown-once-it-is-back",
        "told-late",
        "told-too-late",
        "unknown-told-too-late",
    ],
)
def test_flow_of_a_server_had_to_break_when_that_was_taken_out(
    server: str, began_s: float, ended_s: float, is_due: bool
) -> None:
    """Rule 19, health: it is reset then; neither are flows of other servers, nor those that begin later."""
    observed = taken_out()
    told = [
        {"opened": 1, "port": 40000, "at": START + 4},
        words(began_s, ended_s, error="connection reset by peer", since_s=4, heard=True),
        {"closed": 1, "at": START + ended_s},
    ]
    observed.statements += [("client1", each) for each in told]
    # Another flow had its port before, and one has it later.
    observed.place(3, 3, [("client1", 40000, "server3")])
    if server:
        observed.place(5, 5, [("client1", 40000, server)])
    observed.place(ended_s + 0.5, ended_s + 0.5, [("client1", 40000, "server3")])
    outcome = judge(observed, START)
    assert (len(outcome.excused), len(outcome.broken)) == ((1, 0) if is_due else (0, 1))
    assert outcome.is_good == is_due


@pytest.mark.parametrize(
    ("since_s", "began_s", "ended_s", "reset_by", "is_due"),
    [
        (4, 10, 12, "balancer", True),
        (4, 10, 12, "server1", True),
        (4, 10, 12, "server2", False),
        (10.8, 10.8, 10.9, "balancer", True),
        (11.1, 11.1, 11.2, "balancer", False),
        (11.1, 11.1, 24, "balancer", False),
    ],
    ids=["balancer", "its-server", "another-server", "placed-before-it-was-known", "refused-at-once", "refused-late"],
)
@pytest.mark.parametrize("server", ["server1", ""])
def test_flow_of_a_server_that_was_taken_out_is_ended_by_no_other_and_none_that_began_later(
    since_s: float, began_s: float, ended_s: float, reset_by: str, is_due: bool, server: str
) -> None:
    """The server was found down at 10.6 s."""
    observed = taken_out()
    told = words(began_s, ended_s, error="connection reset by peer", flow="short", since_s=since_s)
    observed.statements.append(("client1", told))
    if server:
        observed.place(began_s, began_s, [("client1", 40000, server)])
    # What the client refuses of an earlier flow of its port is another matter.
    own = Heard(began_s, "client1", "balancer", gives_up=True)
    observed.resets["client1", 40000] = [own, Heard(ended_s, reset_by, "client1")]
    assert len(judge(observed, START).excused) == is_due


@pytest.mark.parametrize("server", ["server1", ""])
@pytest.mark.parametrize("error", ["silence", "other bytes came back", "another hash", "closed early"])
def test_nothing_excuses_silence_and_other_bytes(error: str, server: str) -> None:
    """A flow that is gone is reset, and a client that speaks in it is told so."""
    observed = taken_out()
    observed.statements += [
        ("client1", {"opened": 1, "port": 40000, "at": START + 4}),
        ("client1", words(10, 12, error=error)),
    ]
    if server:
        observed.place(5, 5, [("client1", 40000, server)])
    observed.resets["client1", 40000] = [Heard(12.0, "server1", "client1", gives_up=True)]
    assert len(judge(observed, START).broken) == 1


SERVERS_RST, OURS_TO_CLIENT, OURS_TO_SERVER, CLIENTS_RST = (
    ("server1", "client1", True),
    ("balancer", "client1", False),
    ("balancer", "server1", False),
    ("client1", "balancer", True),
)


@pytest.mark.parametrize(
    ("resets", "reset_by", "lost", "is_due"),
    [
        ([], "", "server1", False),
        ([SERVERS_RST, OURS_TO_CLIENT], "server1", "server1", True),
        ([SERVERS_RST, OURS_TO_CLIENT], "server1", "server2", False),
        ([("server1", "client1", False), OURS_TO_CLIENT], "server1", "server1", False),
        ([OURS_TO_CLIENT], "balancer", "server1", False),
        ([OURS_TO_CLIENT, OURS_TO_SERVER, SERVERS_RST], "balancer", "server1", False),
        ([OURS_TO_SERVER, SERVERS_RST], "balancer", "server1", False),
        ([("server2", "client1", True), OURS_TO_CLIENT], "server2", "server1", False),
        ([CLIENTS_RST, OURS_TO_SERVER], "client1", "server1", False),
    ],
    ids=[
        "nobody",
        "its-server",
        "its-server-was-reachable",
        "its-server-knows-none",
        "balancer",
        "balancer-both",
        "server-was-told",
        "another-server",
        "client",
    ],
)
def test_flow_that_its_server_ended_by_itself_had_to_break(
    resets: list[tuple[str, str, bool]], reset_by: str, lost: str, is_due: bool
) -> None:
    """Only that: not one that the balancer ended, nor one of which a segment came to another server."""
    observed = seen(
        {"opened": 1, "port": 40000, "at": START + 4},
        words(10, 12, error="connection reset by peer", since_s=4, heard=True),
        acts=[happened("server lost", 8, 9, lost)],
    )
    observed.place(5, 5, [("client1", 40000, "server1")])
    # What was heard of an earlier flow of the port does not count.
    observed.resets["client1", 40000] = [Heard(2.0, *SERVERS_RST), *(Heard(12.0, *each) for each in resets)]
    outcome = judge(observed, START)
    (trouble,) = (*outcome.excused, *outcome.broken)
    assert (trouble.reset_by, trouble.is_due, outcome.is_good) == (reset_by, is_due, is_due)


@pytest.mark.parametrize(
    ("given_up", "reset", "lost", "heard", "excused"),
    [
        ((), "server1", "server1", False, 0),
        ((GivenUp("server1", 6.0, 6.5, 1),), "server1", "server1", False, 1),
        ((GivenUp("server1", 6.0, 6.5, 5),), "server1", "server1", False, 2),
        ((GivenUp("server1", 6.0, 6.5, 5),), "server1", "server2", False, 0),
        ((GivenUp("server1", 6.0, 6.5, 5),), "server1", "server1", True, 0),
        ((GivenUp("server1", 6.0, 6.5, 1), GivenUp("server1", 7.0, 7.5, 1)), "server1", "server1", False, 2),
        ((GivenUp("server2", 6.0, 6.5, 2),), "server1", "server1", False, 0),
        ((GivenUp("server2", 6.0, 6.5, 2),), "server2", "server2", False, 0),
        ((GivenUp("server1", 3.0, 3.5, 2),), "server1", "server1", False, 0),
        ((GivenUp("server1", 12.1, 12.5, 2),), "server1", "server1", False, 0),
    ],
    ids=["none", "one", "more", "reachable", "heard", "twice", "another-server", "moved", "before", "later"],
)
def test_flow_that_its_server_gave_up_half_open_had_to_break_for_each_that_its_kernel_counted(
    given_up: tuple[GivenUp, ...], reset: str, lost: str, heard: bool, excused: int
) -> None:
    """A RST without ACK: the server knows no such connection. It had one when its SYN+ACK left, at 4 s."""
    observed = seen(given_up=list(given_up), acts=[happened("server down", 3.5, 7, lost)])
    for port in (40000, 40001):
        # What is only late claims nothing.
        late, refused = words(4, 5, port=port), words(5, 12, error="connection reset by peer", since_s=4, port=port)
        observed.statements += [("client1", {**told, "flow": "short", "heard": heard}) for told in (late, refused)]
        observed.place(5, 5, [("client1", port, "server1")])
        observed.resets["client1", port] = [Heard(12.0, reset, "client1")]
    outcome = judge(observed, START)
    assert (len(outcome.excused), len(outcome.broken)) == (excused, 2 - excused)


@pytest.mark.parametrize("flow", ["long", "bulk", "short"])
def test_flow_that_moved_and_that_its_new_server_ended_is_broken(flow: str) -> None:
    observed = seen(
        {"opened": 1, "port": 40000, "at": START}, words(2, 12, error="connection reset by peer", flow=flow)
    )
    for at_s, server in ((3, "server1"), (6, "server2")):
        observed.place(at_s, at_s, [("client1", 40000, server)])
    observed.resets["client1", 40000] = [Heard(12.0, "server2", "client1", gives_up=True)]
    assert len(judge(observed, START).broken) == 1


def frame(source: str, target: str, flags: int, *, offset: int = 0, protocol: int = 6, options: int = 0) -> bytes:
    """Return a frame with a TCP header."""
    addresses = b"".join(map(inet_aton, (source, target)))
    ip = struct.pack("!BBHHHBBH", 0x45 + options, 0, 40, 1, offset, 64, protocol, 0) + addresses + bytes(4 * options)
    tcp = struct.pack("!HHIIBBHHH", 7000, 40000, 1, 2, 0x50, flags, 0, 0, 0)
    return bytes(12) + b"\x08\x00" + ip + tcp


@pytest.mark.parametrize(
    ("sent", "is_heard"),
    [
        (frame("10.0.0.1", "10.0.0.9", 0x04), True),
        (frame("10.0.0.2", "10.9.9.9", 0x14, options=3), True),
        (frame("10.9.9.9", "10.0.0.9", 0x14), True),
        (frame("10.9.9.9", "10.0.0.8", 0x14), True),
        (frame("10.9.9.9", "10.0.0.2", 0x04), True),
        (frame("10.0.0.9", "10.0.0.100", 0x14), True),
        (frame("10.9.9.9", "10.0.0.100", 0x04), False),
        (frame("10.0.0.9", "10.9.9.9", 0x04), False),
        (frame("10.0.0.1", "10.0.0.9", 0x10), False),
        (frame("10.9.9.9", "10.0.0.3", 0x04), False),
        (frame("10.0.0.1", "10.0.0.9", 0x04, offset=5), False),
        (frame("10.0.0.1", "10.0.0.9", 0x04, protocol=17), False),
        (frame("10.0.0.1", "10.0.0.9", 0x04)[:30], False),
        (frame("10.0.0.1", "10.0.0.9", 0x04).replace(b"\x08\x00", b"\x86\xdd", 1), False),
    ],
)
def test_kernel_picks_resets_of_some_hosts(sent: bytes, is_heard: bool) -> None:
    """The program is the kernel's to run, on whatever socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        addresses = [ip_address(f"10.0.0.{number}") for number in (1, 2, 8, 9, 100)]
        set_program(ours, program(addresses[2:4], addresses[:2], addresses[4]))
        if not is_heard:
            theirs.send(sent)
            with pytest.raises(BlockingIOError):
                ours.recv(200)
            return
        theirs.send(sent)
        assert parsed(ours.recv(200), 3.0).at_s == 3.0
        assert parsed(sent, 3.0).source[1] == 7000
        assert parsed(sent, 3.0).gives_up == bool(sent[47 + 4 * (sent[14] & 0xF) - 20] & 0x10)
        assert parsed(sent, 3.0).target == (inet_ntoa(sent[30:34]), 40000)


def test_datagrams_have_no_reason_to_end() -> None:
    """Rule 18.2, servers that leave or fail: they go to another server."""
    observed = taken_out()
    observed.statements.append(("client1", words(10, 12, error="silence", flow="udp")))
    assert len(judge(observed, START).broken) == 1


@pytest.mark.parametrize(
    ("acts", "is_fault"),
    [
        ([("link flap", 16, 16.3, "")], True),
        ([("link flap", 17, 17.3, ""), ("link flap", 18, 18.3, "")], False),
        ([("link flap", 15.2, 15.3, ""), ("link flap", 15.9, 16.0, "")], True),
        ([("server lost", 16, 16.7, "server1"), ("server lost", 18, 18.4, "server1")], False),
        ([("server lost", 18.2, 18.5, "server1")], False),
        ([("link flap", 18.2, 18.5, "")], True),
        ([("server lost", 16, 16.7, "server2"), ("server lost", 18, 18.4, "server2")], True),
        ([("server down", 13, 19, "server1")], False),
        ([("server down", 8, 14, "server1")], True),
    ],
    ids=[
        "one-flap",
        "two-flaps",
        "two-before",
        "lost-twice",
        "lost-and-asked-again",
        "flap",
        "another-lost",
        "down",
        "long-before",
    ],
)
def test_server_is_taken_out_for_a_reason_when_acts_hit_enough_checks(
    acts: list[tuple[Kind, float, float, str]], is_fault: bool
) -> None:
    """Three in a row, of which one may be that clients fail."""
    observed = seen(acts=[happened(*act) for act in acts])
    observed.change_health(20, "server1", False, "no answer")
    assert bool(judge(observed, START).faults) == is_fault


def test_server_that_was_taken_out_and_could_be_reached_is_a_fault() -> None:
    """Checks that fail for no reason would excuse everything."""
    observed = seen(acts=[happened("server down", 9, 14, "server2"), happened("kill", 18, 19)])
    observed.change_health(20, "server1", False, "no answer")
    outcome = judge(observed, START)
    assert outcome.faults == ("server1 was taken out at 20.0 s, and could be reached",)
    assert not outcome.is_good


def test_stall_is_told_with_what_happened_meanwhile() -> None:
    observed = seen(
        {"opened": 1, "port": 40000, "at": START},
        words(10, 10.5),
        words(11, 14),
        words(30, 30.2),
        acts=[happened("kill", 10, 10.2), happened("flood", 13, 15)],
    )
    stalls = judge(observed, START).stalls_by_cause()
    assert {cause: (number, round(longest_s, 3)) for cause, (number, _, longest_s) in stalls.items()} == {
        "flood": (1, 3.0),
        "kill": (2, 3.0),
        "nothing": (1, 0.2),
    }


def test_flow_that_changed_its_server_has_moved_but_not_the_next_one_of_its_port() -> None:
    observed = seen(
        {"opened": 1, "port": 40000, "at": START + 1},
        {"closed": 1, "at": START + 20},
        {"opened": 2, "port": 40000, "at": START + 30},
        {"totals": {"long": 2}},
    )
    for at_s, server in ((2, "server1"), (10, "server1"), (31, "server2"), (40, "server2")):
        observed.place(at_s, at_s, [("client1", 40000, server)])
    assert judge(observed, START).moved == ()
    observed.place(50, 50, [("client1", 40000, "server3")])
    observed.acts += [happened("take-over", 45, 46), happened("kill", 51, 52)]
    outcome = judge(observed, START)
    (moved,) = outcome.moved
    assert (moved.servers, moved.at_s, moved.causes) == (("server2", "server3"), 50, ("take-over",))
    made = Document({"seed": "1", "duration": "60 s"}, 60, outcome, None)
    assert "moved: client1 port 40000 at 50.0 s: server2 -> server3; meanwhile: take-over" in [*table.lines(made)]
    assert document.rows(outcome)[0][5] == 1


def test_flow_on_the_port_of_one_that_was_reset_during_a_look_has_not_moved() -> None:
    """A look takes its time: what it shows may have ended, and its port be in use again, before the answer is there."""
    observed = seen(
        {"opened": 1, "port": 40000, "at": START + 1},
        {"closed": 1, "at": START + 10.03},
        {"opened": 2, "port": 40000, "at": START + 10.05},
        {"totals": {"long": 2}},
    )
    for asked_s, told_s, server in ((9.5, 9.6, "server2"), (10, 10.1, "server2"), (10.5, 10.6, "server3")):
        observed.place(asked_s, told_s, [("client1", 40000, server)])
    assert judge(observed, START).moved == ()


def test_flow_on_the_port_of_one_that_does_not_know_yet_that_it_was_reset_has_not_moved() -> None:
    """The kernel gives its port away with the RST; its client notices when it speaks again."""
    observed = seen(
        {"opened": 1, "port": 40000, "at": START + 1},
        {"opened": 2, "port": 40000, "at": START + 10.2},
        words(10.9, 10.9, error="connection reset by peer", since_s=1),
        {"closed": 1, "at": START + 10.9},
    )
    observed.change_health(10.1, "server1", False, "no answer")
    observed.acts.append(happened("server down", 8, 14, "server1"))
    observed.resets["client1", 40000] = [Heard(10.1, "balancer", "client1")]
    for at_s, server in ((2, "server1"), (10.5, "server2"), (11, "server2")):
        observed.place(at_s, at_s, [("client1", 40000, server)])
    outcome = judge(observed, START)
    assert outcome.is_good
    (excused,) = outcome.excused
    assert excused.server == "server1"


def test_act_that_could_not_be_done_and_fault_of_the_balancer_are_not_good() -> None:
    assert not judge(seen(acts=[happened("drain", 1, 2, trouble="no answer")]), START).is_good
    assert not judge(seen(faults=["task sweep failed 1 times: x"]), START).is_good
    assert judge(seen(acts=[happened("drain", 1, 2)]), START).is_good


@pytest.mark.parametrize(
    ("ends", "kills", "faults"),
    [
        (["was ended by SIGKILL"] * 2, 2, []),
        (["was ended by SIGKILL"] * 3, 2, ["the balancer was ended by SIGKILL 1 times more than it was killed"]),
        (["ended with status 1"], 1, ["the balancer ended with status 1 by itself"]),
        (["was ended by SIGSEGV"], 0, ["the balancer was ended by SIGSEGV by itself"]),
    ],
)
def test_end_that_no_act_made_is_a_fault(ends: list[str], kills: int, faults: list[str]) -> None:
    """It is started again, and no flow may notice: that is no reason to say nothing."""
    assert [*unwanted(ends, kills)] == faults


def test_run_in_which_nothing_was_said_is_not_good() -> None:
    """What does not speak does not break."""
    outcome = judge(Observed(), START)
    assert outcome.faults == tuple(f"there was no exchange of kind {flow}" for flow in FLOWS)
    assert not outcome.is_good


def outcome() -> Outcome:
    """Return one with something of everything."""
    observed = seen(
        {"totals": {"long": 1, "long exchange": 9}},
        {"opened": 1, "port": 40000, "at": START},
        words(10, 12, error="silence"),
        words(20, 21),
        acts=[happened("kill", 9, 11), happened("drain", 20, float("inf"), "server1", "no answer")],
    )
    return judge(observed, START)


def test_document_is_json_that_says_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    facts = document.settings(3, 60, 15, "rust", {"offloads": "on"})
    made = Document(facts, 60, outcome(), judge(seen(), START))
    content = json.loads(document.to_json(made))
    assert (content["good"], content["settings"]["seed"], len(content["chaos"]["broken"])) == (False, "3", 1)
    assert content["chaos"]["acts"][1]["ended_s"] is None
    table.show(made)
    text = capsys.readouterr().out
    assert "broken: long exchange of client1 port 40000, 10.0 to 12.0 s: silence; meanwhile: kill" in text
    assert "drain (server1) at 20.0 s: no answer" in text
    assert text.splitlines()[-1] == "not good: 1 flows broken or moved that should not be, 0 without acts"


def test_page_draws_a_row_for_each_kind(tmp_path: Path) -> None:
    facts = document.settings(3, 60, 0, "rust", {})
    text = report.render(Document(facts, 60, outcome(), None))
    (tmp_path / "page.html").write_text(text)
    assert "not good: 1 flows" in text
    chart = report.timeline(outcome(), 60)
    assert [strip.name for strip in chart.strips] == ["drain", "kill", *(f"{flow} flows" for flow in document.FLOWS)]
    drain, _, long = chart.strips[:3]
    # It had no end: it is drawn to the end of the run.
    assert drain.spans[0].start + drain.spans[0].width == pytest.approx(chart.x.pixels)
    assert [span.look for span in long.spans] == ["startup", "stall"]
