"""
Play a plan: every line of every client is a task, each fetch becomes a record.

A closed line fetches, waits its interval, fetches again. An open one starts fetches when they are due, whether or not
earlier ones have ended, so that slow periods are not omitted. A player asks when its buffer has room.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress

from lb.lab.loadgen.echo import EchoSession
from lb.lab.loadgen.lines import LoadLine
from lb.lab.loadgen.plan import Client, Plan, Track, intended_starts
from lb.lab.loadgen.player import Player
from lb.lab.loadgen.records import NO_SERVER, Emit, Fetch, LineEnded, LineStarted
from lb.lab.loadgen.web import Answer, FetchError, WebSession


async def play(plan: Plan, emit: Emit, origin_s: float) -> None:
    """
    Play a plan to its end.

    Args:
        plan: what to fetch.
        emit: called with every record at once; must not block.
        origin_s: when it starts, on the loop's clock; times of records count from there.
    """
    _raise_file_limit()
    async with asyncio.TaskGroup() as group:
        for client in plan.clients:
            group.create_task(_play_client(plan, client, emit, origin_s))


def _raise_file_limit() -> None:
    """Allow as many connections at once as the system does; beyond that fetches fail, and say so."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _play_client(plan: Plan, client: Client, emit: Emit, origin_s: float) -> None:
    start_s = 0.0
    for round_number in range(plan.options.repeat):
        async with asyncio.TaskGroup() as group:
            for track in client.tracks:
                line = _Line(plan, client.name, track, round_number, start_s, emit, origin_s)
                group.create_task(line.play())
        start_s = asyncio.get_running_loop().time() - origin_s


class _Line:
    """One line as one client plays it once. `start_s`: when its round began, after the start of the run."""

    def __init__(
        self, plan: Plan, client: str, track: Track, round_number: int, start_s: float, emit: Emit, origin_s: float
    ) -> None:
        self._options = plan.options
        self._client, self._track, self._round = client, track, round_number
        self._start_s, self._emit, self._origin_s = start_s, emit, origin_s
        self._clock = asyncio.get_running_loop().time
        self._count, self._succeeded, self._total_s = 0, 0, 0.0

    @property
    def _line(self) -> LoadLine:
        return self._track.line

    async def play(self) -> None:
        """Play it, and say when it starts and ends."""
        await self._sleep_until(self._start_s + self._line.start_s)
        self._emit(LineStarted(self._client, self._track.number, self._round))
        async with EchoSession() if self._options.echo else WebSession(self._options.new_connection) as session:
            if self._options.adaptive:
                await self._watch(session)
            elif self._track.rate_hz is not None:
                await self._open(session)
            else:
                await self._closed(session)
        mean_s = self._total_s / self._succeeded if self._succeeded else 0.0
        self._emit(LineEnded(self._client, self._track.number, self._round, self._count, mean_s))

    async def _closed(self, session: WebSession | EchoSession) -> None:
        intended_s = self._start_s + self._line.start_s
        for number in range(self._line.chunks):
            await self._sleep_until(intended_s)
            fetch = await self._fetch(session, number, self._line.size, intended_s)
            intended_s = fetch.ended_s + self._line.interval_s

    async def _open(self, session: WebSession | EchoSession) -> None:
        starts = intended_starts(self._track, self._options.seed, self._client, self._round)
        async with asyncio.TaskGroup() as group:
            for number, after_s in enumerate(starts):
                await self._sleep_until(self._start_s + after_s)
                group.create_task(self._fetch(session, number, self._line.size, self._start_s + after_s))

    async def _watch(self, session: WebSession | EchoSession) -> None:
        player = Player(self._now_s(), self._options.chunk_s, self._line.size)
        try:
            for number in range(self._line.chunks):
                intended_s = player.next_s
                await self._sleep_until(intended_s)
                fetch = await self._fetch(session, number, player.bitrate, intended_s)
                if fetch.ok:
                    player.arrived(fetch.ended_s, fetch.duration_s, fetch.received)
                else:
                    player.failed(fetch.ended_s)
        finally:
            # Who is stopped has seen something, too.
            self._emit(player.end(self._now_s(), self._client, self._track.number, self._round))

    async def _fetch(self, session: WebSession | EchoSession, number: int, size: int, intended_s: float) -> Fetch:
        """Fetch once, and again as often as retries allow; emit and return the record."""
        started_s = self._now_s()
        answer, error = await self._attempt(session, size)
        attempts = 1
        while error and attempts <= self._options.retries:
            answer, error = await self._attempt(session, size)
            attempts += 1
        fetch = Fetch(
            client=self._client,
            line=self._track.number,
            round=self._round,
            number=number,
            size=size,
            intended_s=intended_s,
            started_s=started_s,
            ended_s=self._now_s(),
            received=answer.received,
            server=answer.server,
            error=error,
            attempts=attempts,
        )
        self._count += 1
        if fetch.ok:
            self._succeeded += 1
            self._total_s += fetch.duration_s
        self._emit(fetch)
        return fetch

    async def _attempt(self, session: WebSession | EchoSession, size: int) -> tuple[Answer, str]:
        try:
            async with asyncio.timeout(self._options.timeout_s):
                return await session.fetch(self._line, size), ""
        except TimeoutError:
            return Answer(NO_SERVER, 0), f"no answer within {self._options.timeout_s:g} s"
        except FetchError as error:
            return Answer(error.server, error.received), str(error)

    def _now_s(self) -> float:
        return self._clock() - self._origin_s

    async def _sleep_until(self, at_s: float) -> None:
        """Sleep until a time after the start, in seconds; return at once when that is past."""
        left_s = at_s - self._now_s()
        if left_s > 0:
            await asyncio.sleep(left_s)
