"""Metrics: what a scrape holds, how it is named, and the page it is read from."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import aiohttp
import pytest
from helpers import START, make_datapath
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lb.compiler.edits import with_health, without_server
from lb.compiler.spec import HealthStatus, ServerKey, Spec, services
from lb.config import MetricsConfig, parse
from lb.control.tasks import TaskState
from lb.control.telemetry.metrics import DEFINITIONS, Metrics, Sample
from lb.control.telemetry.metrics_server import MetricsServer
from lb.errors import LbError
from lb.model.verdict import DROP_REASONS, EVENTS
from lb.net.host import GuardState

DEADLINE_S = 20.0
# Made of the traffic of a service's servers by their names, which the small topology of `helpers` has others of.
TRAFFIC_NAME = re.compile("server_(flows|packets|bytes)_")
CONFIG = parse("""
[[interface]]
name = "eth0"
[[service]]
name = "video"
address = "198.18.1.100"
port = 9876
server = [
  { name = "server1", address = "198.18.1.31", port = 80, weight = 3 },
  { name = "server2", address = "198.18.1.32", port = 80, state = "draining" },
  { name = "server3", address = "198.18.1.33", port = 80 },
]
""")
TRAFFIC = {
    "flows_active": 2, "flows_created": 5, "packets_forward": 10, "packets_reply": 20, "bytes_forward": 300,
    "bytes_reply": 4000,
}  # fmt: skip
PAUSES = {"buckets": {"10000": 90, "200000": 6, "inf": 1}, "sum_ns": 3_000_000_000, "max_ns": 2_500_000_000}
CONTROL = {"buckets": {"10000": 0, "200000": 2, "inf": 0}, "sum_ns": 250_000, "max_ns": 150_000}
COUNTERS: dict[str, Any] = {
    "rx_packets": 31, "rx_bytes": 5000, "tx_packets": 30, "tx_bytes": 4900,
    "verdicts": {"forward": 30, "drop.no_service": 1, "drop.no_flow": 2, "reply.no_server": 4},
    "events": {**dict.fromkeys(EVENTS, 0), "flow_hit": 25, "ask_fallback": 3},
    "services": {"video": TRAFFIC}, "servers": {"video/server1": TRAFFIC}, "io": {"tx_dropped": 7, "rx_errors": 0},
    "table": {"entries": 9, "capacity": 1024}, "loop": {"pauses": PAUSES, "control": CONTROL},
}  # fmt: skip
MEASURES = {
    "connects": 4, "connect_ns": 2_000_000, "connect_peak_ns": 900_000, "first_bytes": 2,
    "first_byte_ns": 3_000_000_000,
    "first_byte_peak_ns": 0, "waiting_flows": 1, "answer_ns": 5_500_000_000, "in_flight_bytes": 1234, "failed": 2,
    "requests": 9, "stalled_ns": 250_000_000,
    "refused": 3, "unanswered": 5, "syn_retransmitted": 6, "retransmitted": 7, "flows_created": 5, "flows_active": 2,
    "bytes_reply": 4000,
}  # fmt: skip
DOWN = with_health(Spec(CONFIG), ServerKey("video", "server3"), HealthStatus("down", 0.25))
SAMPLE = Sample(
    version="1.2",
    backend="rust",
    started_at=1000.5,
    reloaded_at=2000.0,
    generation=4,
    reloads={"success": 2},
    last_reload_ok=False,
    services=services(DOWN),
    counters=COUNTERS,
    measured={"video": {"server1": MEASURES}},
    checks={("video", "server3", "failure"): 9},
    changes={("video", "server3", "down"): 1},
    flow_log_missed=6,
    host_guard=GuardState(None, "nft: busy", 7),
    tasks={"sweep": TaskState(3, 2, "KeyError: 'x'", 1000.0), "replan": TaskState()},
    checks_late=7,
    publications=8,
    stuck_threads=1,
)


def scrape(sample: Sample) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return what Prometheus reads: by name, then by labels."""
    text = generate_latest(Metrics(lambda: sample).registry()).decode()
    read: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for row in family.samples:
            read.setdefault(row.name, {})[tuple(sorted(row.labels.items()))] = row.value
    return read


def value(name: str, sample: Sample = SAMPLE, **labels: str) -> float:
    return scrape(sample)[name][tuple(sorted(labels.items()))]


def test_scrape_leaves_out_what_the_backend_does_not_measure() -> None:
    """A metric made of what is not measured has no sample; the others, and other labels of one metric, have theirs."""
    found = scrape(replace(SAMPLE, not_measured=frozenset({"connect_ns", "refused", "stalled_ns"})))
    assert set(scrape(SAMPLE)) - set(found) == {
        "lb_server_connect_seconds_count", "lb_server_connect_seconds_sum", "lb_server_stalled_seconds"
    }  # fmt: skip
    on = {"service": "video", "server": "server1"}
    key = tuple(sorted((on | {"reason": "unanswered"}).items()))
    assert found["lb_server_connects_failed_total"] == {key: 5}


def test_scrape_server_health_state_and_weight() -> None:
    """A server that checks found down, one that the operator drains, one that takes flows."""
    on = {number: {"service": "video", "server": f"server{number}"} for number in (1, 2, 3)}
    assert [value("lb_server_up", **on[number]) for number in (1, 2, 3)] == [1, 1, 0]
    assert value("lb_server_state", **on[2], state="draining") == 1
    assert value("lb_server_state", **on[2], state="active") == 0
    assert (value("lb_server_weight", **on[1]), value("lb_server_ramp_ratio", **on[3])) == (3, 0.25)
    assert (value("lb_service_servers", service="video"), value("lb_service_servers_available", service="video")) == (
        3,
        1,
    )
    assert value("lb_server_health_checks_total", **on[3], result="failure") == 9
    assert value("lb_server_health_changes_total", **on[3], health="down") == 1


def test_scrape_traffic_by_service_server_and_direction() -> None:
    """What the data path counted arrives under its labels; a server without counters has no series."""
    server = {"service": "video", "server": "server1"}
    assert value("lb_service_flows_active", service="video") == 2
    assert value("lb_server_flows_created_total", **server) == 5
    assert value("lb_server_packets_total", **server, direction="reply") == 20
    assert value("lb_service_bytes_total", service="video", direction="forward") == 300
    assert len(scrape(SAMPLE)["lb_server_flows_active"]) == 1


def test_scrape_what_the_data_path_measured() -> None:
    """Times are seconds with their number, so that a mean over any window can be had."""
    server = {"service": "video", "server": "server1"}
    assert value("lb_server_connect_seconds_count", **server) == 4
    assert value("lb_server_connect_seconds_sum", **server) == pytest.approx(0.002)
    assert value("lb_server_connect_peak_seconds", **server) == pytest.approx(0.0009)
    assert value("lb_server_first_byte_seconds_sum", **server) == 3
    assert value("lb_server_answer_seconds_total", **server) == 5.5
    assert value("lb_server_stalled_seconds", **server) == 0.25
    assert value("lb_server_in_flight_bytes", **server) == 1234
    assert value("lb_server_connects_failed_total", **server, reason="unanswered") == 5
    assert value("lb_server_requests_failed_total", **server) == 2
    assert value("lb_server_retransmitted_packets_total", **server, kind="syn") == 6


def test_scrape_of_a_data_path_has_every_series_but_those_of_checks(backend: str) -> None:
    """What a backend counts and measures, under the names it has: nothing that a metric needs is missing."""
    path = make_datapath(backend)
    counters = {**path.counters(), "io": {**path.counters()["io"], "rx_dropped": 0}}
    present = services(Spec(CONFIG))
    sample = replace(SAMPLE, services=present, counters=counters, measured=path.measurements(START))
    named = {re.sub("_(sum|count|bucket)$", "", name) for name in scrape(sample)}
    assert {name for name in DEFINITIONS if name not in named} == {
        name for name in DEFINITIONS if name.startswith("lb_service_") and "servers" not in name
    } | {name for name in DEFINITIONS if name.startswith("lb_server_") and TRAFFIC_NAME.search(name)}


def test_scrape_background_tasks_and_what_they_do() -> None:
    """Failures and restarts by task, those that are well included; late checks, publications, stuck threads."""
    assert value("lb_task_failures_total", task="sweep") == 3
    assert value("lb_task_restarts_total", task="sweep") == 2
    assert value("lb_task_failures_total", task="replan") == 0
    assert value("lb_health_checks_late_total") == 7
    assert value("lb_publications_total") == 8
    assert value("lb_policy_threads_stuck") == 1


def test_scrape_drops_every_reason_from_the_start() -> None:
    """A reason that has not happened yet is 0: else a rate would miss its first event."""
    drops = scrape(SAMPLE)["lb_drops_total"]
    assert len(drops) == len(DROP_REASONS)
    assert value("lb_drops_total", reason="no_flow") == 2
    assert value("lb_drops_total", reason="flow_conflict") == 0
    assert value("lb_replies_total", reason="table_full") == 0
    assert value("lb_verdicts_total", verdict="drop") == 3
    assert value("lb_replies_total", reason="no_server") == 4
    assert value("lb_io_drops_total", kind="tx_dropped") == 7
    assert value("lb_receive_bytes_total") == 5000
    assert value("lb_ask_fallbacks_total") == 3
    assert (value("lb_flow_table_flows"), value("lb_flow_table_capacity_flows")) == (9, 1024)
    assert value("lb_flow_log_missed_total") == 6
    assert (value("lb_host_guard_repairs_total"), value("lb_host_guard_active")) == (7, 0)


def test_scrape_loop_pauses_are_a_cumulative_histogram_in_seconds() -> None:
    """Rule 22.1, bounded pauses: how long packets may have been held up, and what of it the control side took."""
    bounds = {"1e-05": 90, "0.0002": 96, "+Inf": 97}
    assert {bound: value("lb_loop_pause_seconds_bucket", le=bound) for bound in bounds} == bounds
    assert (value("lb_loop_pause_seconds_count"), value("lb_loop_pause_seconds_sum")) == (97, 3.0)
    assert value("lb_loop_pause_max_seconds") == 2.5
    assert value("lb_loop_control_seconds_bucket", le="0.0002") == 2


def test_scrape_reloads_and_what_runs() -> None:
    """Rule 18.1, reloads and changes: a failed reload shows."""
    assert value("lb_config_last_reload_successful") == 0
    assert value("lb_config_last_reload_successful", replace(SAMPLE, last_reload_ok=True)) == 1
    assert (value("lb_reloads_total", result="success"), value("lb_reloads_total", result="failure")) == (2, 0)
    assert value("lb_build_info", version="1.2", backend="rust") == 1
    assert value("lb_start_time_seconds") == 1000.5
    assert value("lb_config_generation") == 4


def test_scrape_leaving_server_is_there_but_not_counted_as_a_server() -> None:
    """A server that left and still has flows keeps its series until they end."""
    sample = replace(SAMPLE, services=services(without_server(Spec(CONFIG), ServerKey("video", "server1"))))
    assert value("lb_service_servers", sample, service="video") == 2
    assert value("lb_server_flows_active", sample, service="video", server="server1") == 2


def test_scrape_servers_that_share_a_name_give_one_series() -> None:
    """Two servers that left one after the other under one name: a scrape with a series twice would be refused."""
    twice = tuple(replace(service, servers=service.servers[:1] * 2) for service in SAMPLE.services)
    text = generate_latest(Metrics(lambda: replace(SAMPLE, services=twice)).registry()).decode()
    lines = [line.split(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_metric_name_follows_the_guide(name: str) -> None:
    """Prefix, snake case, base units spelled out, `_total` on counts and on nothing else, a help text."""
    definition = DEFINITIONS[name]
    assert re.fullmatch(r"lb(_[a-z0-9]+)+", name)
    assert name.endswith("_total") == (definition.kind == "counter")
    assert not re.search(r"_(ms|us|ns|milliseconds|kilobytes|kb|percent)(_|$)", name)
    assert definition.help.endswith(".")
    assert not set(definition.labels) & {"client", "client_port", "flow", "address", "port", "le", "quantile"}


def test_scrape_every_defined_metric_is_declared() -> None:
    """Each has its help and type in every scrape, and nothing else is there."""
    text = generate_latest(Metrics(lambda: SAMPLE).registry()).decode()
    declared = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    assert declared == {name: definition.kind for name, definition in DEFINITIONS.items()}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def serve(scenario: Callable[[MetricsServer, MetricsConfig, aiohttp.ClientSession], Any]) -> None:
    """Run a scenario with a server that is not serving yet, and a place for it."""

    async def run() -> None:
        server = MetricsServer(lambda: SAMPLE)
        where = MetricsConfig.model_validate({"port": free_port()})
        try:
            async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
                await scenario(server, where, session)
        finally:
            await server.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("accept", "content_type", "last"),
    [
        ("*/*", "text/plain", ""),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", "# EOF"),
    ],
)
def test_page_speaks_both_formats(accept: str, content_type: str, last: str) -> None:
    """Prometheus' own format, and OpenMetrics for who asks for it."""

    async def scenario(server: MetricsServer, where: MetricsConfig, session: aiohttp.ClientSession) -> None:
        await server.follow(where)
        url = f"http://127.0.0.1:{where.port}/metrics"
        async with session.get(url, headers={"Accept": accept}) as response:
            text = await response.text()
            assert (response.status, response.content_type) == (200, content_type)
            assert 'lb_server_up{server="server3",service="video"} 0.0' in text
            assert text.rstrip("\n").split("\n")[-1].startswith(last)
        async with session.get(f"http://127.0.0.1:{where.port}/") as response:
            assert response.status == 404
        async with session.post(url) as response:
            assert response.status == 405

    serve(scenario)


def test_page_slow_and_oversized_clients_are_cut_off() -> None:
    """A request that never ends, and one without end: the connection closes, and others are answered meanwhile."""

    async def scenario(server: MetricsServer, where: MetricsConfig, session: aiohttp.ClientSession) -> None:
        server.connection_s = 0.2
        await server.follow(where)
        slow, slow_writer = await asyncio.open_connection("127.0.0.1", where.port)
        slow_writer.write(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
        large, large_writer = await asyncio.open_connection("127.0.0.1", where.port)
        large_writer.write(b"GET /" + b"a" * 100_000)
        async with session.get(f"http://127.0.0.1:{where.port}/metrics") as response:
            assert response.status == 200
        for reader, writer in ((slow, slow_writer), (large, large_writer)):
            with suppress(ConnectionError):
                assert b" 200 " not in await reader.read()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    serve(scenario)


def test_page_follows_the_configuration() -> None:
    """A reload moves it, and takes it away."""

    async def scenario(server: MetricsServer, where: MetricsConfig, session: aiohttp.ClientSession) -> None:
        await server.follow(where)
        moved = MetricsConfig.model_validate({"port": free_port()})
        await server.follow(moved)
        async with session.get(f"http://127.0.0.1:{moved.port}/metrics") as response:
            assert response.status == 200
        await server.follow(None)
        for port in (where.port, moved.port):
            with pytest.raises(aiohttp.ClientConnectionError):
                await session.get(f"http://127.0.0.1:{port}/metrics")

    serve(scenario)


async def status_of(session: aiohttp.ClientSession, address: str, port: int) -> int:
    async with session.get(f"http://{address}:{port}/metrics") as response:
        return response.status


def test_page_port_that_cannot_be_had_leaves_the_old_one() -> None:
    """Rule 18.1, reloads and changes: a reload that fails has changed nothing: metrics are served where they were."""

    async def scenario(server: MetricsServer, where: MetricsConfig, session: aiohttp.ClientSession) -> None:
        await server.follow(where)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            other = MetricsConfig.model_validate({"port": taken.getsockname()[1]})
            with pytest.raises(LbError, match="cannot listen"):
                await server.follow(other)
        # An address that no machine has, on the same port: the old place is given up first, and taken again.
        with pytest.raises(LbError, match="cannot listen"):
            await server.follow(where.model_copy(update={"address": ip_address("198.18.99.99")}))
        assert await status_of(session, "127.0.0.1", where.port) == 200

    serve(scenario)


def test_page_moves_between_addresses_of_one_port() -> None:
    """All addresses and one of them exclude each other on a port: the move works both ways."""

    async def scenario(server: MetricsServer, where: MetricsConfig, session: aiohttp.ClientSession) -> None:
        everywhere = where.model_copy(update={"address": ip_address("0.0.0.0")})
        await server.follow(where)
        await server.follow(everywhere)
        assert await status_of(session, "127.0.0.2", where.port) == 200
        await server.follow(where)
        assert await status_of(session, "127.0.0.1", where.port) == 200
        with pytest.raises(aiohttp.ClientConnectionError):
            await status_of(session, "127.0.0.2", where.port)

    serve(scenario)


@pytest.mark.parametrize("same_port", [True, False])
def test_moving_block_that_fails_takes_the_move_back(same_port: bool) -> None:
    """The rest of a reload failed: the new place is closed, the old one serves."""

    async def scenario(server: MetricsServer, where: MetricsConfig, session: aiohttp.ClientSession) -> None:
        await server.follow(where)
        update = {"address": ip_address("127.0.0.2")} if same_port else {"port": free_port()}
        moved = where.model_copy(update=update)

        async def fail_there() -> None:
            async with server.moving(moved):
                assert await status_of(session, str(moved.address), moved.port) == 200
                raise LbError("the rest")

        with pytest.raises(LbError, match="the rest"):
            await fail_there()
        assert await status_of(session, "127.0.0.1", where.port) == 200
        with pytest.raises(aiohttp.ClientConnectionError):
            await status_of(session, str(moved.address), moved.port)

    serve(scenario)


def test_page_port_taken_raises_with_the_way_out() -> None:
    """Who else listens there is not our business: one line says what to change."""

    async def scenario(server: MetricsServer, where: MetricsConfig, session: aiohttp.ClientSession) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", where.port))
            taken.listen()
            with pytest.raises(LbError, match=r"cannot listen on 127.0.0.1 port \d+: .*change address or port"):
                await server.follow(where)
        await server.follow(where)

    serve(scenario)
