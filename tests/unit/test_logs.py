"""The log: lines of text or of JSON, and one line for each flow that is over."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime

import pytest
from helpers import Box, from_client, query, request

from lb.backends.base import FlowRecord
from lb.control.telemetry import flow_log
from lb.control.telemetry.flow_log import FlowLog, write
from lb.control.telemetry.logs import JsonFormatter

END = FlowRecord("198.18.1.21", 40000, "web", "server1", "tcp", "closed", 10**9, 3_500_000_000, 120, 80)
NOW, NOW_NS = 1_800_000_000.0, 4_500_000_000
DEADLINE_S = 20.0


def formatted(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(JsonFormatter().format(record)) for record in caplog.records]


def test_flow_end_text_line_says_it_all(caplog: pytest.LogCaptureFixture) -> None:
    """Who, where, how it ended, how long, how many bytes: in one line."""
    with caplog.at_level(logging.INFO):
        write([END, END._replace(client="2001:db8::21", began_ns=None, protocol="udp", ended="expired")], NOW, NOW_NS)
    assert caplog.messages == [
        "flow tcp 198.18.1.21:40000 -> web/server1 closed after 2.500 s, 120 bytes forward, 80 bytes reply",
        "flow udp [2001:db8::21]:40000 -> web/server1 expired after a time unknown, 120 bytes forward, 80 bytes reply",
    ]


def test_flow_end_json_line_has_the_facts(caplog: pytest.LogCaptureFixture) -> None:
    """The same for programs: numbers are numbers, times are Unix times."""
    with caplog.at_level(logging.INFO):
        write([END], NOW, NOW_NS)
    (line,) = formatted(caplog)
    time = line.pop("time")
    assert line.pop("message") == caplog.messages[0]
    assert line == {
        "level": "info", "logger": "lb.flows", "event": "flow_end", "service": "web", "server": "server1",
        "protocol": "tcp", "client": "198.18.1.21", "client_port": 40000, "ended": "closed",
        "last_packet": NOW - 1, "duration_s": 2.5, "bytes_forward": 120, "bytes_reply": 80,
    }  # fmt: skip
    assert abs(datetime.fromisoformat(str(time)).timestamp() - datetime.now(UTC).timestamp()) < 3600


def test_json_line_any_message_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Line feeds and quotes in a message, and a traceback, stay inside one object on one line."""
    try:
        raise ValueError('a "fault"\nof two lines')
    except ValueError:
        logging.getLogger("lb.test").exception("%s", 'broken "here"\nand there')
    text = JsonFormatter().format(caplog.records[0])
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["message"]) == ("error", 'broken "here"\nand there')
    assert "ValueError" in line["traceback"]


def test_flow_log_follows_the_configuration(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """Off it writes nothing and keeps nothing; on it writes each end once; what is left is written at the stop."""

    async def scenario() -> None:
        box = Box(backend)
        log = FlowLog(box.path)
        log.follow(False)
        end_flow(box, 1)
        assert box.path.take_flow_exports() == ([], 0)
        log.follow(True)
        end_flow(box, 2)
        async with asyncio.timeout(DEADLINE_S):
            while not caplog.messages:
                await asyncio.sleep(0.01)
        end_flow(box, 3)
        await log.stop()
        end_flow(box, 4)

    def end_flow(box: Box, port: int) -> None:
        box.send(from_client(query(port=port)))
        box.after(301)
        box.tick()

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert [message.split()[2] for message in caplog.messages] == ["198.18.1.21:2", "198.18.1.21:3"]


def test_flow_log_ends_without_room_are_counted(
    backend: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More ends than fit between two takings: the log says how many it lacks."""
    monkeypatch.setattr(flow_log, "MOST_EXPORTS", 2)

    async def scenario() -> int:
        box = Box(backend)
        log = FlowLog(box.path)
        log.follow(True)
        for port in range(1, 6):
            box.send(from_client(request(port=port)))
        box.after(31)
        box.tick()
        await log.stop()
        return log.missed

    with caplog.at_level(logging.INFO):
        assert asyncio.run(scenario()) == 3
    assert len([record for record in caplog.records if record.name == "lb.flows"]) == 2
    assert caplog.messages[-1] == "3 flows ended too fast to be logged, 3 so far"
