"""
The metrics of the balancer for Prometheus; `lb.control.telemetry.metrics_server` serves them.

Names follow the Prometheus naming guide: one unit per metric, in the name; counts end in `_total`. Labels are services,
servers, reasons and the like, never a client or a flow, so that their number is bounded by the configuration.
`DEFINITIONS` is the whole list. Nothing is stored here: each scrape takes a `Sample` and turns it into families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from lb.compiler.spec import EffectiveServer, EffectiveService
from lb.control.tasks import TaskState
from lb.model.verdict import DROP_REASONS, EVENTS, HOLD_REASONS, REPLY_REASONS
from lb.net.host import NOT_GUARDED, GuardState
from lb.policies.base import STATES

Kind = Literal["gauge", "counter", "summary", "histogram"]
Family = GaugeMetricFamily | CounterMetricFamily | SummaryMetricFamily | HistogramMetricFamily
NS_PER_S = 10**9
VERDICTS = ("forward", "reply", "drop", "pass", "hold")
DIRECTIONS = ("forward", "reply")


class Definition(NamedTuple):
    """One metric. `labels`: the names of its labels, in order."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


_SERVER = ("service", "server")
DEFINITIONS: dict[str, Definition] = {
    "lb_build_info": Definition("gauge", "Always 1; version and backend are in the labels.", ("version", "backend")),
    "lb_start_time_seconds": Definition("gauge", "Unix time at which packets began to flow."),
    "lb_config_generation": Definition("gauge", "Generation of the published snapshot."),
    "lb_config_last_reload_successful": Definition("gauge", "Whether the last reload of the configuration succeeded."),
    "lb_config_last_reload_success_timestamp_seconds": Definition(
        "gauge", "Unix time of the last reload that succeeded."
    ),
    "lb_reloads_total": Definition("counter", "Reloads of the configuration.", ("result",)),
    "lb_task_failures_total": Definition("counter", "Exceptions in background tasks.", ("task",)),
    "lb_task_restarts_total": Definition("counter", "Restarts of background tasks.", ("task",)),
    "lb_publications_total": Definition("counter", "Snapshots published after the first."),
    "lb_health_checks_late_total": Definition(
        "counter", "Health checks that began late: too many were in progress, or lb was held up."
    ),
    "lb_policy_threads_stuck": Definition("gauge", "Threads that hang in calls of users' policies."),
    "lb_receive_packets_total": Definition("counter", "Frames received."),
    "lb_receive_bytes_total": Definition("counter", "Bytes of frames received."),
    "lb_transmit_packets_total": Definition("counter", "Frames sent."),
    "lb_transmit_bytes_total": Definition("counter", "Bytes of frames sent."),
    "lb_verdicts_total": Definition("counter", "Frames, by verdict.", ("verdict",)),
    "lb_drops_total": Definition("counter", "Frames dropped, by reason.", ("reason",)),
    "lb_replies_total": Definition("counter", "Frames that the balancer answered itself, by reason.", ("reason",)),
    "lb_holds_total": Definition("counter", "Frames that had to wait, by reason.", ("reason",)),
    "lb_io_drops_total": Definition("counter", "Frames lost on the sockets, by kind.", ("kind",)),
    "lb_loop_pause_seconds": Definition("histogram", "Time that the packet loop spent away from its sockets."),
    "lb_loop_pause_max_seconds": Definition("gauge", "Longest pause of the packet loop since the start."),
    "lb_loop_control_seconds": Definition("histogram", "Part of the pauses that control commands took."),
    "lb_flow_events_total": Definition("counter", "Events in the flow table.", ("event",)),
    "lb_flow_table_flows": Definition("gauge", "Flows in the table, closing ones included."),
    "lb_flow_table_capacity_flows": Definition("gauge", "Flows that the table holds at most."),
    "lb_flow_log_missed_total": Definition("counter", "Flow exports that found no room on the way to the log."),
    "lb_host_guard_repairs_total": Definition(
        "counter", "Times that the host guard had been changed and was restored."
    ),
    "lb_host_guard_active": Definition(
        "gauge", "Whether the host guard keeps the services' packets from the host's kernel."
    ),
    "lb_ask_fallbacks_total": Definition("counter", "New flows that a user's policy gave no usable answer for."),
    "lb_service_flows_active": Definition("gauge", "Flows of a service that are not closing.", ("service",)),
    "lb_service_flows_created_total": Definition("counter", "Flows of a service so far.", ("service",)),
    "lb_service_packets_total": Definition("counter", "Packets of a service.", ("service", "direction")),
    "lb_service_bytes_total": Definition("counter", "IP bytes of a service.", ("service", "direction")),
    "lb_service_servers": Definition("gauge", "Servers of a service.", ("service",)),
    "lb_service_servers_available": Definition("gauge", "Servers of a service that take new flows.", ("service",)),
    "lb_server_up": Definition("gauge", "Whether the health checks find a server up; 1 without checks.", _SERVER),
    "lb_server_state": Definition("gauge", "1 for the operator's state of a server.", (*_SERVER, "state")),
    "lb_server_weight": Definition("gauge", "Weight of a server, without its slow start.", _SERVER),
    "lb_server_ramp_ratio": Definition("gauge", "Part of its weight that a server has during slow start.", _SERVER),
    "lb_server_flows_active": Definition("gauge", "Active flows of a server.", _SERVER),
    "lb_server_flows_created_total": Definition("counter", "Flows of a server so far.", _SERVER),
    "lb_server_packets_total": Definition("counter", "Packets of a server.", (*_SERVER, "direction")),
    "lb_server_bytes_total": Definition("counter", "IP bytes of a server.", (*_SERVER, "direction")),
    "lb_server_connect_seconds": Definition("summary", "From a client's SYN to a server's SYN/ACK.", _SERVER),
    "lb_server_connect_peak_seconds": Definition("gauge", "Peak-decay average of the connect time.", _SERVER),
    "lb_server_first_byte_seconds": Definition("summary", "From a request to the first byte of its answer.", _SERVER),
    "lb_server_first_byte_peak_seconds": Definition("gauge", "Peak-decay average of the first-byte time.", _SERVER),
    "lb_server_requests_total": Definition(
        "counter", "Requests to a server, as the data of clients shows them.", _SERVER
    ),
    "lb_server_answer_seconds_total": Definition("counter", "Total time of a server's answers.", _SERVER),
    "lb_server_waiting_flows": Definition("gauge", "Flows that wait for a server's first byte.", _SERVER),
    "lb_server_stalled_seconds": Definition(
        "gauge", "Time that flows have waited without a byte from a server.", _SERVER
    ),
    "lb_server_in_flight_bytes": Definition(
        "gauge", "Bytes that a server has sent and the client has not acknowledged.", _SERVER
    ),
    "lb_server_connects_failed_total": Definition("counter", "Failed connects, by reason.", (*_SERVER, "reason")),
    "lb_server_requests_failed_total": Definition("counter", "Flows that ended with a request unanswered.", _SERVER),
    "lb_server_retransmitted_packets_total": Definition("counter", "Retransmitted packets.", (*_SERVER, "kind")),
    "lb_server_health_checks_total": Definition("counter", "Health checks of a server.", (*_SERVER, "result")),
    "lb_server_health_changes_total": Definition("counter", "Changes of a server's health.", (*_SERVER, "health")),
}

# Metrics of measurements: the metric, the values of its labels after those of the server, and the measurements: one, or
# number and sum of a summary.
_MEASURED: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("lb_server_connect_seconds", (), ("connects", "connect_ns")),
    ("lb_server_connect_peak_seconds", (), ("connect_peak_ns",)),
    ("lb_server_first_byte_seconds", (), ("first_bytes", "first_byte_ns")),
    ("lb_server_first_byte_peak_seconds", (), ("first_byte_peak_ns",)),
    ("lb_server_requests_total", (), ("requests",)),
    ("lb_server_answer_seconds_total", (), ("answer_ns",)),
    ("lb_server_waiting_flows", (), ("waiting_flows",)),
    ("lb_server_stalled_seconds", (), ("stalled_ns",)),
    ("lb_server_in_flight_bytes", (), ("in_flight_bytes",)),
    ("lb_server_requests_failed_total", (), ("failed",)),
    ("lb_server_connects_failed_total", ("refused",), ("refused",)),
    ("lb_server_connects_failed_total", ("unanswered",), ("unanswered",)),
    ("lb_server_retransmitted_packets_total", ("syn",), ("syn_retransmitted",)),
    ("lb_server_retransmitted_packets_total", ("data",), ("retransmitted",)),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """
    What the metrics are made of, at one instant.

    Args:
        started_at, reloaded_at: Unix time in seconds.
        reloads: numbers by result, `success` and `failure`. last_reload_ok: of the last one; True before the first.
        services: as `Controller.services` returns them.
        counters: of the data path.
        measured: measurements of the data path, by service and server name.
        not_measured: the names of measurements that the data path does not make.
        checks, changes: numbers by (service, server, result or health).
        flow_log_missed: flow exports that found no room.
        host_guard: how the services' packets are kept from the host's kernel.
        tasks: the state of the background tasks, by name.
        checks_late: health checks that began late.
        publications: snapshots that were published after the first.
        stuck_threads: threads that hang in calls of users' policies.
    """

    version: str
    backend: str
    started_at: float
    reloaded_at: float
    generation: int
    reloads: Mapping[str, int]
    last_reload_ok: bool
    services: tuple[EffectiveService, ...]
    counters: Mapping[str, Any]
    measured: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    not_measured: frozenset[str] = frozenset()
    checks: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    changes: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    flow_log_missed: int = 0
    host_guard: GuardState = NOT_GUARDED
    tasks: Mapping[str, TaskState] = field(default_factory=dict)
    checks_late: int = 0
    publications: int = 0
    stuck_threads: int = 0


class Sum(NamedTuple):
    """The value of a summary."""

    events: int
    total: float


class Buckets(NamedTuple):
    """The value of a histogram: (upper bound, values up to it) in order, and the sum of all values."""

    counts: list[tuple[str, float]]
    total: float


# A metric's name, its labels' values, its value.
Row = tuple[str, tuple[str, ...], float | Sum | Buckets]


class Metrics(Collector):
    """
    Makes the families of a scrape.

    Args:
        sample: returns what they are made of.
    """

    def __init__(self, sample: Callable[[], Sample]) -> None:
        self._sample = sample

    def collect(self) -> Iterable[Family]:
        """Return every family of `DEFINITIONS`, those without a sample too."""
        families = {name: _family(name, definition) for name, definition in DEFINITIONS.items()}
        seen: set[tuple[str, tuple[str, ...]]] = set()
        for name, labels, value in rows(self._sample()):
            # Removed servers may share a name; a series twice would make the whole scrape invalid.
            if (name, labels) in seen:
                continue
            seen.add((name, labels))
            family = families[name]
            if isinstance(value, Sum):
                assert isinstance(family, SummaryMetricFamily)
                family.add_metric(labels, value.events, value.total)
            elif isinstance(value, Buckets):
                assert isinstance(family, HistogramMetricFamily)
                family.add_metric(labels, value.counts, value.total)
            else:
                assert not isinstance(family, SummaryMetricFamily | HistogramMetricFamily)
                family.add_metric(labels, value)
        return families.values()

    def describe(self) -> Iterable[Family]:
        """Return the families without samples: registering asks for them, and must not cost a scrape."""
        return [_family(name, definition) for name, definition in DEFINITIONS.items()]

    def registry(self) -> CollectorRegistry:
        """Return a registry that holds these metrics and no others."""
        registry = CollectorRegistry()
        registry.register(self)
        return registry


_FAMILIES: dict[Kind, type[Family]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "summary": SummaryMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _family(name: str, definition: Definition) -> Family:
    return _FAMILIES[definition.kind](name, definition.help, labels=definition.labels)


def rows(sample: Sample) -> Iterator[Row]:
    """Yield every sample of a scrape."""
    yield from _balancer_rows(sample)
    yield from _packet_rows(sample.counters)
    for service in sample.services:
        yield from _service_rows(service, sample.counters)
    for service_name, servers in sample.measured.items():
        for server_name, measures in servers.items():
            yield from _measured_rows((service_name, server_name), measures, sample.not_measured)
    for name, counts in (("checks", sample.checks), ("changes", sample.changes)):
        for labels, count in counts.items():
            yield f"lb_server_health_{name}_total", labels, count


def _balancer_rows(sample: Sample) -> Iterator[Row]:
    yield "lb_build_info", (sample.version, sample.backend), 1
    yield "lb_start_time_seconds", (), sample.started_at
    yield "lb_config_generation", (), sample.generation
    yield "lb_config_last_reload_successful", (), sample.last_reload_ok
    yield "lb_config_last_reload_success_timestamp_seconds", (), sample.reloaded_at
    for result in ("success", "failure"):
        yield "lb_reloads_total", (result,), sample.reloads.get(result, 0)
    yield "lb_flow_log_missed_total", (), sample.flow_log_missed
    yield "lb_host_guard_repairs_total", (), sample.host_guard.repairs
    yield "lb_host_guard_active", (), sample.host_guard.trouble is None
    for name, task in sample.tasks.items():
        yield "lb_task_failures_total", (name,), task.failures
        yield "lb_task_restarts_total", (name,), task.restarts
    yield "lb_publications_total", (), sample.publications
    yield "lb_health_checks_late_total", (), sample.checks_late
    yield "lb_policy_threads_stuck", (), sample.stuck_threads


def _packet_rows(counters: Mapping[str, Any]) -> Iterator[Row]:
    for ours, theirs in (("rx", "receive"), ("tx", "transmit")):
        for unit in ("packets", "bytes"):
            yield f"lb_{theirs}_{unit}_total", (), counters[f"{ours}_{unit}"]
    verdicts, events = counters["verdicts"], counters["events"]
    for verdict in VERDICTS:
        of_it = (count for name, count in verdicts.items() if name.partition(".")[0] == verdict)
        yield "lb_verdicts_total", (verdict,), sum(of_it)
    reasons = (
        ("drop", "lb_drops", DROP_REASONS),
        ("reply", "lb_replies", REPLY_REASONS),
        ("hold", "lb_holds", HOLD_REASONS),
    )
    for verdict, name, known in reasons:
        for reason in known:
            # Also at 0: a rate over a series that appears with its first event never sees that event.
            yield f"{name}_total", (reason,), verdicts.get(f"{verdict}.{reason}", 0)
    for kind, count in counters["io"].items():
        yield "lb_io_drops_total", (kind,), count
    yield from _pause_rows(counters["loop"])
    for event in EVENTS:
        yield "lb_flow_events_total", (event,), events[event]
    yield "lb_flow_table_flows", (), counters["table"]["entries"]
    yield "lb_flow_table_capacity_flows", (), counters["table"]["capacity"]
    yield "lb_ask_fallbacks_total", (), events["ask_fallback"]


def _pause_rows(pauses: Mapping[str, Any]) -> Iterator[Row]:
    yield "lb_loop_pause_seconds", (), _buckets(pauses["pauses"])
    yield "lb_loop_pause_max_seconds", (), pauses["pauses"]["max_ns"] / NS_PER_S
    yield "lb_loop_control_seconds", (), _buckets(pauses["control"])


def _buckets(histogram: Mapping[str, Any]) -> Buckets:
    """Return a histogram of nanoseconds in the form of Prometheus: seconds, each bucket with those below it."""
    names = ("+Inf" if bound == "inf" else str(int(bound) / NS_PER_S) for bound in histogram["buckets"])
    counts = list(zip(names, accumulate(histogram["buckets"].values()), strict=True))
    return Buckets(counts, histogram["sum_ns"] / NS_PER_S)


def _service_rows(service: EffectiveService, counters: Mapping[str, Any]) -> Iterator[Row]:
    present = [server for server in service.servers if not server.is_removed]
    available = [server for server in present if takes_flows(server)]
    yield "lb_service_servers", (service.name,), len(present)
    yield "lb_service_servers_available", (service.name,), len(available)
    yield from _traffic_rows("lb_service", (service.name,), counters["services"].get(service.name))
    for server in service.servers:
        labels = (service.name, server.name)
        yield "lb_server_up", labels, server.health == "up"
        for state in STATES:
            yield "lb_server_state", (*labels, state), server.state == state
        yield "lb_server_weight", labels, server.weight
        yield "lb_server_ramp_ratio", labels, server.ramp
        yield from _traffic_rows("lb_server", labels, counters["servers"].get("/".join(labels)))


def _measured_rows(labels: tuple[str, str], measures: Mapping[str, int], not_measured: frozenset[str]) -> Iterator[Row]:
    """Yield the metrics of a server's measurements, but for those that the backend does not measure: 0 would lie."""
    for metric, more, names in _MEASURED:
        if not_measured.isdisjoint(names):
            values = [measures[name] / NS_PER_S if name.endswith("_ns") else measures[name] for name in names]
            yield metric, (*labels, *more), values[0] if len(values) == 1 else Sum(int(values[0]), values[1])


def takes_flows(server: EffectiveServer) -> bool:
    """Return whether new flows may be placed on a server."""
    return server.state == "active" and server.health == "up" and server.weight > 0


def _traffic_rows(prefix: str, labels: tuple[str, ...], traffic: Mapping[str, int] | None) -> Iterator[Row]:
    """Yield the traffic counters of a service or server. `traffic`: None when the data path has none any more."""
    if traffic is None:
        return
    yield f"{prefix}_flows_active", labels, traffic["flows_active"]
    yield f"{prefix}_flows_created_total", labels, traffic["flows_created"]
    for direction in DIRECTIONS:
        yield f"{prefix}_packets_total", (*labels, direction), traffic[f"packets_{direction}"]
        yield f"{prefix}_bytes_total", (*labels, direction), traffic[f"bytes_{direction}"]
