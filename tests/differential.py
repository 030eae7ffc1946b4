"""
Feed both backends the same sequences of frames and events, and compare everything they show, byte for byte.

    python tests/differential.py --packets 1000000 --seed 1        # `make differential`
    python tests/differential.py --replay reproducer.json          # a sequence that a failure printed

`generate.py` draws the sequences. After each step both results must be equal, and by themselves keep invariants that
neither backend is asked about: checksums that were right stay right, every frame out bears our MAC address, no
server's address leaks, each frame has one verdict. A failing sequence is made short by leaving out steps while it
still fails, and printed as JSON with frames in hex.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import packets as p
from generate import Generator, Step
from lb.backends.base import astuple
from lb.packet.offload import Offload
from vectors.load import Scene, mac

BACKENDS = ("python", "rust")
START = 10**15
SEQUENCE = 100
FLOW_STATES = (None, "syn-sent", "syn-received", "established", "closing", "udp", "pickup", "udp-unreplied", "one-way")
# Fewer than a sequence may end: what happens to the rest is compared too.
FLOW_EXPORTS = 20
# Longer than any fragment or waiting packet is kept.
DRAIN = 40 * 10**9


class DisagreementError(AssertionError):
    """The backends differ, or an invariant does not hold."""


class Pair:
    """The backends side by side, fed identically."""

    def __init__(self, setup: dict[str, Any], backends: tuple[str, ...] = BACKENDS, scapy_share: float = 0.0) -> None:
        self.scene = Scene(**setup)
        key = bytes.fromhex(self.scene.setup["hash_key"])
        self.backends = backends
        modules = [importlib.import_module(f"lb.backends.{name}") for name in backends]
        self.paths = [
            module.DataPath(self.scene.setup["capacity"], key, self.scene.setup["seed"]) for module in modules
        ]
        # What one backend does not do exactly is no disagreement of the others.
        self.exact = frozenset.intersection(*(module.capabilities().exact for module in modules))
        self.now = START
        self.share, self.dice = scapy_share, random.Random(1)
        self.sent = Counter[str]()
        self.outcomes = Counter[str]()
        self._all("keep_flow_exports", FLOW_EXPORTS)
        self._publish()
        self._all("set_next_hops", self.scene.next_hops())
        self.macs = {one["name"]: mac(one["mac"]) for one in self.scene.setup["interfaces"]}

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every backend; what one raises, panics included, is a disagreement."""
        made = []
        for name, path in zip(self.backends, self.paths, strict=True):
            try:
                made.append(getattr(path, method)(*arguments))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise DisagreementError(f"{name}.{method} raised {error!r}") from error
        return made

    def _same(self, what: str, values: list[Any], aspect: str) -> None:
        if aspect not in self.exact:
            return
        for name, value in zip(self.backends[1:], values[1:], strict=True):
            if value != values[0]:
                one, two = (told(item) for item in apart(values[0], value))
                raise DisagreementError(f"{what}\n  {self.backends[0]}: {one}\n  {name}: {two}")

    def _publish(self) -> None:
        self._all("publish", self.scene.snapshot())
        self.servers = {
            (bytes(server.address.packed), server.port)
            for server in self.scene.snapshot().servers
            if server is not None
        }
        self.vips = {service["address"] for service in self.scene.setup["services"]}

    def apply(self, step: Step) -> Any:
        """Carry out a step on every backend, compare, and return the first one's result for a frame."""
        kind = step[0]
        if kind == "frame":
            return self._frame(*step[1:])
        if kind == "tick":
            self._tick(step[1])
        elif kind == "publish":
            self.scene.change(**step[1])
            self._publish()
        elif kind == "next_hops":
            self.scene.change(**step[1])
            self._all("set_next_hops", self.scene.next_hops())
        elif kind == "reset":
            self._same("reset_flows", self._all("reset_flows", *step[1:], self.now), "flows")
        elif kind == "unresolved":
            self._same("take_unresolved", [sorted(pairs, key=str) for pairs in self._all("take_unresolved")], "frames")
        else:
            self.check()
        return None

    def _frame(self, dt_ns: int, interface: int, frame: bytes, offload: list[int] | None) -> Any:
        self.now += dt_ns
        results = self._all("process", frame, interface, self.now, None if offload is None else Offload(*offload))
        tuples = [astuple(result) for result in results]
        self._same("process", tuples, "frames")
        verdict, reason, direction, _, _, out, offloads = tuples[0]
        self.outcomes[verdict if reason is None else f"{verdict}.{reason}"] += 1
        self._out([(*one, work) for one, work in zip(out, offloads, strict=True)])
        if verdict == "forward" and offload is None:
            self._translated(frame, [one for _, one in out], direction)
        elif verdict == "reply":
            for _, one in out:
                self._right(one)
        return results[0]

    def _tick(self, dt_ns: int) -> None:
        self.now += dt_ns
        made = [
            [(name, frame, offload and tuple(offload)) for name, frame, offload in one]
            for one in self._all("tick", self.now)
        ]
        self._same("tick", made, "frames")
        self._out(made[0])

    def _out(self, made: list[tuple[str, bytes, Any]]) -> None:
        """Count what goes out, and look at its source MAC."""
        for name, frame, _ in made:
            self.sent["packets"] += 1
            self.sent["bytes"] += len(frame)
            if frame[6:12] != self.macs[name]:
                raise DisagreementError(f"a frame leaves {name} with the source MAC {frame[6:12].hex()}")

    def _right(self, frame: bytes) -> None:
        seen = p.look(frame)
        if seen is not None and not (seen.offset or seen.more):
            self._l4(seen, frame)

    def _l4(self, seen: p.Seen, frame: bytes) -> None:
        if not seen.header_ok or p.l4_right(seen) is False:
            raise DisagreementError(f"a wrong checksum leaves: {frame.hex()}")
        if self.dice.random() < self.share and p.l4_right_by_scapy(seen) is False:
            raise DisagreementError(f"scapy finds a wrong checksum: {frame.hex()}")

    def _translated(self, frame: bytes, out: list[bytes], direction: str | None) -> None:
        """Check a forwarded frame: checksums that were right are right, addresses of servers stay behind the VIP."""
        before = p.look(frame)
        after = [seen for seen in map(p.look, out) if seen is not None]
        if before is None or not after:
            raise DisagreementError("a frame that is no IP packet was forwarded")
        if any(not seen.header_ok for seen in after):
            raise DisagreementError("an IPv4 header checksum is wrong on the way out")
        if (
            direction == "reply"
            and before.protocol in (p.TCP, p.UDP)
            and any(seen.src != vip_of(self, seen) for seen in after)
        ):
            raise DisagreementError(f"a server's address leaks: {out[0].hex()}")
        if before.offset or before.more or not p.l4_right(before):
            return
        whole = after[0] if len(after) == 1 else joined(after)
        self._l4(whole, b"".join(out))

    def check(self) -> None:
        """Compare counters and flows, and balance the counters."""
        counters = self._all("counters")
        self._same("counters", counters, "counters")
        self._same("measurements", self._all("measurements", self.now), "measurements")
        self._same("flows", [[tuple(row) for row in rows] for rows in self._all("flows", self.now)], "flows")
        offset, limit, state = self.dice.randrange(9), self.dice.randrange(9), self.dice.choice(FLOW_STATES)
        servers = [number for number in range(12) if self.dice.random() < 0.8]
        found = self._all("find_flows", self.now, offset, limit, None, servers, state)
        self._same("find_flows", [(total, [tuple(row) for row in rows]) for total, rows in found], "flows")
        self._same(
            "flow ends",
            [[tuple(row) for row in rows] + [missed] for rows, missed in self._all("take_flow_exports")],
            "flows",
        )
        verdicts = counters[0]["verdicts"]
        held = sum(count for name, count in verdicts.items() if name.startswith("hold."))
        final = sum(verdicts.values()) - held
        if not final <= counters[0]["rx_packets"] <= final + held:
            raise DisagreementError(
                f"{counters[0]['rx_packets']} frames came in, {final} have a verdict, at most {held} are held"
            )
        if (counters[0]["tx_packets"], counters[0]["tx_bytes"]) != (self.sent["packets"], self.sent["bytes"]):
            raise DisagreementError(
                f"tx counters {counters[0]['tx_packets']}, {counters[0]['tx_bytes']} but sent {dict(self.sent)}"
            )

    def finish(self) -> None:
        """Let all that is held run out: then every frame has its one verdict."""
        self.check()
        self._tick(DRAIN)
        self._tick(DRAIN)
        self.check()
        counters = self.paths[0].counters()
        final = sum(count for name, count in counters["verdicts"].items() if not name.startswith("hold."))
        if final != counters["rx_packets"]:
            raise DisagreementError(f"{counters['rx_packets']} frames came in, {final} verdicts")


def apart(one: Any, two: Any) -> tuple[Any, Any]:
    """Return only what differs of two values: of dicts the keys, of sequences of equal length the places."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = [key for key in {**one, **two} if one.get(key) != two.get(key)]
        pairs = {key: apart(one.get(key), two.get(key)) for key in keys}
        return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}
    return one, two


def told(value: Any) -> str:
    """Write a value down, frames as hex."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(told(one) for one in value) + "]"
    return value.hex() if isinstance(value, bytes) else repr(value)


def vip_of(pair: Pair, seen: p.Seen) -> bytes:
    """Return the packet's source when it is a VIP of the scene, else the empty string."""
    from ipaddress import ip_address

    return seen.src if str(ip_address(seen.src)) in pair.vips else b""


def joined(parts: list[p.Seen]) -> p.Seen:
    """Put the fragments of one packet together; they must be whole and in order."""
    at, data = parts[0].offset, b""
    for number, part in enumerate(parts):
        if part.offset != at + len(data) or part.more != (number < len(parts) - 1) or part.ident != parts[0].ident:
            raise DisagreementError("a packet was cut wrongly")
        data += part.l4
    return parts[0]._replace(l4=data, more=False)


def sequence(
    seed: int, length: int, backends: tuple[str, ...] = BACKENDS, scapy_share: float = 0.0
) -> tuple[int, Counter[str]]:
    """
    Play one drawn sequence.

    Args:
        seed: of the generator. length: frames to send. scapy_share: of forwarded packets, checked by scapy as well.

    Returns:
        Frames sent, and how often there was which outcome.

    Raises:
        DisagreementError: with a short reproducer in its message.
    """
    generator = Generator(random.Random(seed))
    setup = json.loads(json.dumps(generator.setup))
    pair = Pair(setup, backends, scapy_share)
    steps: list[Step] = []
    sent = 0
    try:
        while sent < length:
            steps.append(generator.step())
            result = pair.apply(steps[-1])
            if result is not None:
                sent += 1
                generator.observe(result.server)
        steps.append(("finish",))
        pair.finish()
    except DisagreementError as found:
        kept = shrink(setup, steps, backends)
        raise DisagreementError(
            f"seed {seed}: {found}\nreproducer ({len(kept)} steps of {len(steps)}), for --replay:\n{dump(setup, kept)}"
        ) from found
    return sent, pair.outcomes


def fails(setup: dict[str, Any], steps: list[Step], backends: tuple[str, ...]) -> str | None:
    """Play steps on fresh data paths; return what is wrong."""
    try:
        pair = Pair(setup, backends, 1.0)
        for step in steps:
            if step[0] == "finish":
                pair.finish()
            else:
                pair.apply(step)
    except DisagreementError as found:
        return str(found)
    except Exception:
        # Left out steps can make others meaningless, as a route through an interface that is not there.
        return None
    return None


def shrink(setup: dict[str, Any], steps: list[Step], backends: tuple[str, ...]) -> list[Step]:
    """Leave out steps, in ever smaller runs, while the rest still fails."""
    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if fails(setup, fewer, backends):
                steps = fewer
            else:
                at += size
        size //= 2
    return steps


def dump(setup: dict[str, Any], steps: list[Step]) -> str:
    """Write a sequence as JSON, one step per line."""
    lines = [json.dumps([one.hex() if isinstance(one, bytes) else one for one in step]) for step in steps]
    return f'{{"setup": {json.dumps(setup)},\n "steps": [\n  ' + ",\n  ".join(lines) + "\n ]}"


def replay(text: str, backends: tuple[str, ...]) -> str | None:
    """Play a dumped sequence; return what is wrong."""
    loaded = json.loads(text)
    steps = [
        tuple(bytes.fromhex(one) if step[0] == "frame" and i == 3 else one for i, one in enumerate(step))
        for step in loaded["steps"]
    ]
    return fails(loaded["setup"], steps, backends)


def run(packets: int, seed: int, backends: tuple[str, ...] = BACKENDS, scapy_share: float = 0.0) -> Counter[str]:
    """Play sequences until a number of frames were processed; return the outcomes with their counts."""
    seeds = random.Random(seed)
    outcomes: Counter[str] = Counter()
    done, began, told = 0, time.monotonic(), 0
    while done < packets:
        sent, seen = sequence(seeds.getrandbits(63), min(SEQUENCE, packets - done), backends, scapy_share)
        done += sent
        outcomes += seen
        if done // 50_000 > told:
            told = done // 50_000
            print(f"{done} packets, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return outcomes


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Compare two backends byte for byte on drawn sequences of frames.")
    parser.add_argument("--packets", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--scapy-share", type=float, default=0.02, help="share of forwarded packets that scapy checks too"
    )
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--replay", type=Path, help="play a dumped sequence instead")
    arguments = parser.parse_args()
    backends = tuple(arguments.backends.split(","))
    if arguments.replay:
        wrong = replay(arguments.replay.read_text(), backends)
        print(wrong or "the backends agree")
        return 1 if wrong else 0
    began = time.monotonic()
    try:
        outcomes = run(arguments.packets, arguments.seed, backends, arguments.scapy_share)
    except DisagreementError as found:
        print(found)
        return 1
    print(f"{arguments.packets} packets, seed {arguments.seed}, {time.monotonic() - began:.0f} s: the backends agree")
    for name, count in outcomes.most_common():
        print(f"  {name:32} {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
