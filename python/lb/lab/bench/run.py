"""
A whole run: contestants take turns, each in its own namespaces; the result is a document.

Contestants take turns, so that a drift of the machine hits all alike, in an order that changes (`order.py`). Each turn
of each contestant gets a testbed that was never used: TIME_WAIT entries of another's connections refuse a SYN with
other timestamps (it is answered a second later), and conntrack, route and neighbour entries would be met likewise. What
went wrong beside a value is counted (`load_faults.py`). A contestant that cannot take part is named with the reason;
one that fails in a turn leaves the run, keeps what it has, and is named too. Two topologies: one arm, as in the
course, for everything over TCP; and a straight path for packets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lb.errors import LbError, TestbedError
from lb.lab import kernel_counters, spread
from lb.lab.bench import contestants, load, load_faults, machine, notes, order, targets, web_server
from lb.lab.bench.catalogue import METRICS
from lb.lab.bench.contestants.base import Contestant
from lb.lab.bench.document import Contestant as Entry
from lb.lab.bench.document import Document, Faults, metric_result
from lb.lab.bench.measures import BACKENDS, LOADED, ONCE, OWN_ONLY, memory, packets
from lb.lab.bench.settings import Settings
from lb.lab.testbed import isolation
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.live import stoppable
from lb.lab.testbed.topology import ROUTER, Topology, one_segment, straight_path

# Of the hosts that make connections. All ports: the client must not be what runs out. And nothing learnt about a
# destination: a measure would find the congestion window of the one before.
HOST_SETTINGS = (
    ("ip_local_port_range", "1024 65535"),
    ("tcp_tw_reuse", "1"),
    ("tcp_no_metrics_save", "1"),
)
LOADED_HOSTS = (*load.CLIENTS, ROUTER, web_server.SERVER)
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
        error = LbError("interrupted: the namespaces are removed, and no figures are kept")
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
        self._orders = order.orders(settings.contestants, settings.turns, settings.seed)
        self._missing = {each.name: reason for each in self._contestants if (reason := each.obstacle())}
        self._samples: dict[str, dict[str, list[float | None]]] = {each.name: {} for each in METRICS}
        self._faults: dict[str, dict[str, list[Faults | None]]] = {each.name: {} for each in METRICS}
        self._absent: dict[str, dict[str, str]] = {}
        self._busy: list[float] = []
        self._machine = machine.facts()
        self._alone: list[packets.Alone] = []

    def measure(self) -> None:
        """Go through everything."""
        for name, reason in self._missing.items():
            self._show(f"{name} does not take part: {reason}", False)
        loaded = [name for name in LOADED if name in self._settings.measures]
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
            metric_result(each, self._samples[each.name], self._absences(each.measure), self._faults[each.name])
            for each in METRICS
            if each.measure in settings.measures
        ]
        entries = [
            Entry(name=each.name, title=each.title, version=each.version(), missing=self._missing.get(each.name))
            for each in self._contestants
        ]
        return Document(
            machine=self._machine,
            settings=describe(settings),
            notes=[*self._generator_notes(), *notes.make(results, settings.contestants, self._busy)],
            orders=[list(names) for names in self._orders],
            contestants=entries,
            metrics=results,
            targets=targets.judge(results),
        )

    def _generator_notes(self) -> list[str]:
        rate = spread.summarise([alone.rate for alone in self._alone])
        cost = spread.summarise([alone.cpu_per_packet for alone in self._alone])
        if rate is None or cost is None:
            return []
        return [
            f"packets: the generator alone sends {rate.median / 1e6:.2f} Mpps; at the pace it takes "
            f"{cost.median * 1e9:.0f} ns ({cost.low * 1e9:.0f} to {cost.high * 1e9:.0f}) of each CPU time per packet"
        ]

    def _absences(self, measure: str) -> dict[str, str]:
        reasons = dict(self._absent.get(measure, {}))
        for each in self._contestants:
            if measure in LOADED and "tcp" not in each.protocols:
                reasons[each.name] = "it is measured with packets"
            if measure in OWN_ONLY and each.kind not in BACKENDS:
                reasons[each.name] = "asked of lb's backends only"
        return reasons | self._missing

    def _wants(self, contestant: Contestant, measure: str, turn: int) -> bool:
        if measure in OWN_ONLY and contestant.kind not in BACKENDS:
            return False
        if measure in LOADED and "tcp" not in contestant.protocols:
            return False
        if contestant.name in self._absent.get(measure, {}):
            return False
        return turn == 0 or measure not in ONCE

    def _able(self, turn: int = 0) -> list[Contestant]:
        by_name = {each.name: each for each in self._contestants}
        return [by_name[name] for name in self._orders[turn] if name not in self._missing]

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

    def _add(self, contestant: Contestant, turn: int, figures: dict[str, float], faults: Faults | None) -> None:
        for name, value in figures.items():
            # A turn without a value stays a turn: differences are taken turn by turn.
            for kept, new in ((self._samples, value), (self._faults, faults)):
                values: list[Any] = kept[name].setdefault(contestant.name, [])
                values.extend([None] * (turn - len(values)))
                values.append(new)
        self._say(turn, contestant, figures, faults)

    def _measure_loaded(self, measures: list[str]) -> None:
        for turn in range(self._settings.turns):
            for contestant in self._able(turn):
                left = [name for name in measures if self._wants(contestant, name, turn)]
                if not left:
                    continue
                with serving_testbed(self._settings.prefix) as (testbed, serving):
                    field = self._prepare(testbed, serving)
                    with self._attempt(contestant, turn, left):
                        self._take_turn(field, contestant, turn, left)

    def _prepare(self, testbed: Testbed, serving: str) -> load.Field:
        tool = load.choose_tool()
        self._machine |= {"web server": serving, "offloads": machine.offloads(testbed, ROUTER)}
        self._machine["client"] = "wrk" if tool == "wrk" else "built-in (wrk is not installed)"
        for host in LOADED_HOSTS:
            set_up(testbed, host)
        return load.Field(testbed, testbed.topology.host(web_server.SERVER), self._settings, tool)

    def _take_turn(self, field: load.Field, contestant: Contestant, turn: int, measures: list[str]) -> None:
        with contestant.work(field.testbed, field.server) as working:
            for host in load.CLIENTS:
                load.wait_answer(field.testbed, working, host)
            for name in measures:
                self._show(f"turn {turn + 1}, {contestant.title}: {name}", False)
                self._busy.append(machine.settle())
                with self._attempt(contestant, turn, [name]):
                    before = kernel_counters.read(field.testbed, LOADED_HOSTS)
                    found = LOADED[name](field, working)
                    after = kernel_counters.read(field.testbed, LOADED_HOSTS)
                    crowded = max(load_faults.crowded_ports(field.testbed, host) for host in load.CLIENTS)
                    faults = load_faults.faults(before, after, found.failed, found.slow, crowded)
                    self._add(contestant, turn, found.figures, faults)

    def _measure_packets(self) -> None:
        for each in self._contestants:
            if "udp" not in each.protocols:
                self._absent.setdefault("packets", {})[each.name] = "it carries no UDP"
        if machine.build_profile() == "no extension":
            reason = "the generator is in the extension lb._core, which is not installed"
            self._absent["packets"] = {each.name: reason for each in self._contestants}
            return
        cores = packets.pin_generator()
        try:
            for turn in range(self._settings.turns):
                self._show(f"turn {turn + 1}, the generator alone", False)
                with self._straight_path() as (testbed, generator):
                    packets.pin_generator()
                    self._busy.append(machine.settle())
                    self._alone.append(packets.measure_alone(testbed, self._settings, generator))
                for contestant in self._able(turn):
                    if self._wants(contestant, "packets", turn):
                        with (
                            self._straight_path() as (testbed, generator),
                            self._attempt(contestant, turn, ["packets"]),
                        ):
                            self._take_packet_turn(testbed, contestant, turn, generator, cores)
        finally:
            os.sched_setaffinity(0, cores)

    @contextmanager
    def _straight_path(self) -> Iterator[tuple[Testbed, str]]:
        with Testbed(topology=straight_path(), prefix=self._settings.prefix, servers=False) as testbed:
            self._machine["packet generator"] = generator = packets.prepare(testbed)
            yield testbed, generator

    def _take_packet_turn(
        self, testbed: Testbed, contestant: Contestant, turn: int, generator: str, cores: set[int]
    ) -> None:
        self._show(f"turn {turn + 1}, {contestant.title}: packets", False)
        # It starts on all cores, and would inherit the generator's only one otherwise.
        os.sched_setaffinity(0, cores)
        with contestant.work(testbed, testbed.topology.host(STRAIGHT_SERVER)) as working:
            packets.pin_generator()
            if working.pid is not None:
                for thread in Path(f"/proc/{working.pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), cores - os.sched_getaffinity(0) or cores)
            self._busy.append(machine.settle())
            found = packets.measure(testbed, self._settings, working, generator)
        self._add(contestant, turn, found.figures, Faults(failed=found.failed))
        # Lost at the pace: of the flood, more than arrives is sent on purpose.
        self._faults["packets"][contestant.name][turn] = None

    def _measure_memory(self) -> None:
        for backend, flows in self._settings.memory_flows:
            for contestant in self._able():
                if contestant.kind == backend:
                    self._show(f"{contestant.title}: memory of {flows} flows", False)
                    with self._attempt(contestant, 0, ["memory"]):
                        self._add(contestant, 0, memory.measure(backend, flows), None)

    def _say(self, turn: int, contestant: Contestant, figures: dict[str, float], faults: Faults | None) -> None:
        shown = [
            f"{each.title} {each.show(figures[each.name])} {each.shown_unit}"
            for each in METRICS
            if each.name in figures
        ]
        text = notes.describe({} if faults is None else faults.marking)
        marked = f" (marked: {text})" if text else ""
        self._show(f"turn {turn + 1}, {contestant.name}: {', '.join(shown)}{marked}", True)


@contextmanager
def serving_testbed(prefix: str) -> Iterator[tuple[Testbed, str]]:
    """Build the one-armed testbed, with one server, and a web server on that; yields it and what serves."""
    as_root = isolation.has_capabilities() and not isolation.in_own_user_namespace()
    with Testbed(topology=loaded_topology(), prefix=prefix, servers=False) as testbed:
        try:
            serving = web_server.start(testbed, as_root)
        except TestbedError as error:
            reason = str(error)
        else:
            yield testbed, serving
            return
    with Testbed(topology=loaded_topology(), prefix=prefix) as testbed:
        yield testbed, f"{testbed.facts['web']}; {reason}"


def loaded_topology() -> Topology:
    """Return the course's testbed with the hosts that take part: each turn builds one."""
    whole = one_segment()
    return replace(whole, hosts=tuple(host for host in whole.hosts if host.name in LOADED_HOSTS))


def set_up(testbed: Testbed, host: str) -> None:
    """Give a host all ports for its connections, and no memory of earlier ones."""
    with testbed.inside(host):
        for name, value in HOST_SETTINGS:
            Path("/proc/sys/net/ipv4", name).write_text(value)


def describe(settings: Settings) -> dict[str, str]:
    """Return the settings for people."""
    return {
        "turns": f"{settings.turns}, each contestant in its own namespaces",
        "seed": str(settings.seed),
        "load": f"{settings.load_s} s each, {settings.connections} connections",
        "latency": f"{settings.latency_hz:.0f} exchanges/s",
        "packets": f"60 bytes, {settings.flows} flows; {settings.flood_s:g} s as fast as possible, then "
        f"{settings.paced_s:g} s at {settings.paced_pps / 1e3:.0f} k/s, or half of that rate, for the CPU time",
        "idle": f"{settings.idle_s:g} s",
        "memory": ", ".join(f"{backend} {flows} flows" for backend, flows in settings.memory_flows),
    }
