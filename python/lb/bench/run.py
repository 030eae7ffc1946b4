"""
A whole run: build the namespaces, let contestants take turns, remove everything, make the document.

Turns go A B C A B C, so that a drift of the machine hits all alike. A contestant that cannot take part is named with
the reason; one that fails in a turn leaves the run, keeps what it has, and is named too. Two testbeds, one after the
other: the course's, with one arm, for everything over TCP; and a straight path for packets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lb.bench import contestants, load, machine, spread, targets, web
from lb.bench.contestants.base import Contestant
from lb.bench.document import Contestant as Entry
from lb.bench.document import Document, metric_result
from lb.bench.measures import BACKENDS, LOADED, ONCE, OWN_ONLY, memory, packets
from lb.bench.metrics import METRICS
from lb.bench.settings import Settings
from lb.errors import LbError, TestbedError
from lb.testbed import isolation
from lb.testbed.bed import Testbed
from lb.testbed.live import stoppable
from lb.testbed.topology import ROUTER, straight_path

# Enough ports for all connections of a load, and their reuse: the client must not be what runs out.
PORT_RANGE = "1024 65535"
STRAIGHT_SERVER = "server1"
# What a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130
Show = Callable[[str, bool], None]


def execute(settings: Settings, show: Show) -> Document:
    """
    Measure.

    Args:
        settings: what.
        show: gets a line for people, and whether a step ended with it.

    Raises:
        LbError: the namespaces cannot be built, or it was interrupted. Nothing stays.
    """
    run = Run(settings, show)
    try:
        with stoppable():
            run.measure()
    except KeyboardInterrupt:
        error = LbError("interrupted: the namespaces are removed, the figures so far are dropped")
        error.exit_code = INTERRUPTED
        raise error from None
    return run.document()


def count_steps(settings: Settings) -> int:
    """Return how many steps end in a run at most, for a progress bar."""
    own = sum(name in BACKENDS for name in settings.contestants)
    steps = 0
    for name in settings.measures:
        turns = 1 if name in ONCE else settings.turns
        steps += turns * (own if name in OWN_ONLY else len(settings.contestants))
    return steps


class Run:
    """One run. Values come as they are measured; `document` makes something of them."""

    def __init__(self, settings: Settings, show: Show) -> None:
        self._settings = settings
        self._show = show
        self._contestants = [contestants.make(name) for name in settings.contestants]
        self._missing = {each.name: reason for each in self._contestants if (reason := each.obstacle())}
        self._samples: dict[str, dict[str, list[float | None]]] = {each.name: {} for each in METRICS}
        self._absent: dict[str, dict[str, str]] = {}
        self._machine = machine.facts()
        self._alone: list[packets.Alone] = []

    def measure(self) -> None:
        """Go through everything."""
        for name, reason in self._missing.items():
            self._show(f"{name} does not take part: {reason}", False)
        loaded = [name for name in self._settings.measures if name in LOADED]
        if loaded:
            self._measure_loaded(loaded)
        if "packets" in self._settings.measures:
            self._measure_packets()
        if "memory" in self._settings.measures:
            self._measure_memory()

    def document(self) -> Document:
        """Return what was found."""
        settings = self._settings
        results = [
            metric_result(each, self._samples[each.name], self._absences(each.measure))
            for each in METRICS
            if each.measure in settings.measures
        ]
        entries = [
            Entry(name=each.name, title=each.title, version=each.version(), missing=self._missing.get(each.name))
            for each in self._contestants
        ]
        limit = spread.summarise([alone.rate for alone in self._alone])
        notes = [] if limit is None else [f"packets: the generator alone sends {limit.median / 1e6:.2f} Mpps"]
        return Document(
            machine=self._machine,
            settings=describe(settings),
            notes=notes,
            contestants=entries,
            metrics=results,
            targets=targets.judge(results),
        )

    def _absences(self, measure: str) -> dict[str, str]:
        reasons = dict(self._absent.get(measure, {}))
        for each in self._contestants:
            if measure in LOADED and "tcp" not in each.protocols:
                reasons[each.name] = "it is measured with packets"
            if measure in OWN_ONLY and each.name not in BACKENDS:
                reasons[each.name] = "asked of lb's backends only"
        return reasons | self._missing

    def _wants(self, contestant: Contestant, measure: str, turn: int) -> bool:
        if measure in OWN_ONLY and contestant.name not in BACKENDS:
            return False
        if measure in LOADED and "tcp" not in contestant.protocols:
            return False
        if contestant.name in self._absent.get(measure, {}):
            return False
        return turn == 0 or measure not in ONCE

    def _able(self) -> list[Contestant]:
        return [each for each in self._contestants if each.name not in self._missing]

    @contextmanager
    def _attempt(self, contestant: Contestant, turn: int, measures: Iterable[str]) -> Iterator[None]:
        """Let a contestant that fails end these measures for itself, not the run. Its figures so far stay."""
        try:
            yield
        except LbError as error:
            reason = f"failed in turn {turn + 1}: {error}"
            for measure in measures:
                self._absent.setdefault(measure, {})[contestant.name] = reason
            self._show(f"{contestant.name} {reason}", False)

    def _add(self, contestant: str, turn: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            values = self._samples[name].setdefault(contestant, [])
            # A turn without a value stays a turn: differences are taken turn by turn.
            values.extend([None] * (turn - len(values)))
            values.append(value)

    def _measure_loaded(self, measures: list[str]) -> None:
        self._show("building the one-armed testbed", False)
        with serving_testbed(self._settings.prefix) as (bed, serving):
            tool = load.choose_tool()
            self._machine |= {"web server": serving, "offloads": machine.offloads(bed, ROUTER)}
            self._machine["client"] = "wrk" if tool == "wrk" else "built-in (wrk is not installed)"
            for host in (load.CLIENT, ROUTER):
                open_ports(bed, host)
            field = load.Field(bed, bed.topology.host(web.SERVER), self._settings, tool)
            for turn in range(self._settings.turns):
                for contestant in self._able():
                    left = [name for name in measures if self._wants(contestant, name, turn)]
                    if left:
                        with self._attempt(contestant, turn, left):
                            self._take_turn(field, contestant, turn, left)

    def _take_turn(self, field: load.Field, contestant: Contestant, turn: int, measures: list[str]) -> None:
        with contestant.work(field.bed, field.server) as working:
            load.wait_answer(field.bed, working)
            for name in measures:
                self._show(f"turn {turn + 1}, {contestant.title}: {name}", False)
                with self._attempt(contestant, turn, [name]):
                    figures = LOADED[name](field, working)
                    self._add(contestant.name, turn, figures)
                    self._say(turn, contestant, figures)

    def _measure_packets(self) -> None:
        for each in self._contestants:
            if "udp" not in each.protocols:
                self._absent.setdefault("packets", {})[each.name] = "it carries no UDP"
        if machine.build_profile() == "no extension":
            reason = "the generator is in the extension lb._core, which is not installed"
            self._absent["packets"] = {each.name: reason for each in self._contestants}
            return
        self._show("building the straight path", False)
        cores = packets.pin_generator()
        try:
            with Testbed(topology=straight_path(), prefix=self._settings.prefix, servers=False) as bed:
                self._machine["packet generator"] = generator = packets.prepare(bed)
                for turn in range(self._settings.turns):
                    self._show(f"turn {turn + 1}, the generator alone", False)
                    self._alone.append(packets.measure_alone(bed, self._settings, generator))
                    for contestant in self._able():
                        if self._wants(contestant, "packets", turn):
                            with self._attempt(contestant, turn, ["packets"]):
                                self._take_packet_turn(bed, contestant, turn, generator, cores)
        finally:
            os.sched_setaffinity(0, cores)

    def _take_packet_turn(
        self, bed: Testbed, contestant: Contestant, turn: int, generator: str, cores: set[int]
    ) -> None:
        self._show(f"turn {turn + 1}, {contestant.title}: packets", False)
        with contestant.work(bed, bed.topology.host(STRAIGHT_SERVER)) as working:
            if working.pid is not None:
                # It inherited the one core of the generator, and gets the others.
                for thread in Path(f"/proc/{working.pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), cores - os.sched_getaffinity(0) or cores)
            figures = packets.measure(bed, self._settings, working, generator, self._alone[-1])
        self._add(contestant.name, turn, figures)
        self._say(turn, contestant, figures)

    def _measure_memory(self) -> None:
        for backend, flows in self._settings.memory_flows:
            for contestant in self._able():
                if contestant.name == backend:
                    self._show(f"{contestant.title}: memory of {flows} flows", False)
                    with self._attempt(contestant, 0, ["memory"]):
                        figures = memory.measure(backend, flows)
                        self._add(backend, 0, figures)
                        self._say(0, contestant, figures)

    def _say(self, turn: int, contestant: Contestant, figures: dict[str, float]) -> None:
        shown = [
            f"{each.title} {each.show(figures[each.name])} {each.shown_unit}"
            for each in METRICS
            if each.name in figures
        ]
        self._show(f"turn {turn + 1}, {contestant.name}: {', '.join(shown)}", True)


@contextmanager
def serving_testbed(prefix: str) -> Iterator[tuple[Testbed, str]]:
    """Build the one-armed testbed with a web server on it; yields it and what serves."""
    as_root = isolation.has_capabilities()
    with Testbed(prefix=prefix, servers=False) as bed:
        try:
            serving = web.start(bed, as_root)
        except TestbedError as error:
            reason = str(error)
        else:
            yield bed, serving
            return
    with Testbed(prefix=prefix) as bed:
        yield bed, f"{bed.facts['web']}; {reason}"


def open_ports(bed: Testbed, host: str) -> None:
    """Give a host all ports for its connections."""
    with bed.inside(host):
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(PORT_RANGE)
        Path("/proc/sys/net/ipv4/tcp_tw_reuse").write_text("1")


def describe(settings: Settings) -> dict[str, str]:
    """Return the settings for people."""
    return {
        "turns": str(settings.turns),
        "load": f"{settings.load_s} s each, {settings.connections} connections",
        "latency": f"{settings.latency_hz:.0f} exchanges/s",
        "packets": f"60 bytes, {settings.flows} flows; {settings.flood_s:g} s as fast as possible, then "
        f"{settings.paced_s:g} s at {settings.paced_pps / 1e3:.0f} k/s for the CPU time",
        "idle": f"{settings.idle_s:g} s",
        "memory": ", ".join(f"{backend} {flows} flows" for backend, flows in settings.memory_flows),
    }
