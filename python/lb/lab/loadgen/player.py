"""
What a video player does, without network and clock: when it asks for the next chunk, at which bitrate, and what
a viewer sees.

Time is an argument. The buffer is kept as the moment it runs dry: while the picture moves that moment stands still,
each chunk moves it on by its length, and a player that gets there before the next chunk has a stall.
"""

from __future__ import annotations

from itertools import pairwise

from lb.lab.loadgen.lines import SIZES
from lb.lab.loadgen.records import Playback

# Seconds of video it keeps ahead: three chunks of the usual length.
BUFFER_S = 12.0
# It trusts that much of the throughput it has seen, and the last chunk weighs that much in it.
CAUTION = 0.8
LAST_WEIGHT = 0.4
RETRY_S = 1.0


class Player:
    """
    One player.

    Args:
        start_s: now.
        chunk_s: seconds of video in a chunk.
        highest: the highest bitrate it may choose, in kbit/s.
    """

    def __init__(self, start_s: float, chunk_s: float, highest: int = SIZES[-1]) -> None:
        self._start_s, self._chunk_s = start_s, chunk_s
        self._bitrates = [size for size in SIZES if size <= highest] or [SIZES[0]]
        # It must hold the chunk that plays and the one that comes.
        self._buffer_s = max(BUFFER_S, 2 * chunk_s)
        self._throughput: float | None = None
        self._dry_s: float | None = None
        self._ask_s = start_s
        self._startup_s: float | None = None
        self._stalls: list[tuple[float, float]] = []
        self._points: list[tuple[float, int, float]] = []
        self.bitrate = self._bitrates[0]

    @property
    def next_s(self) -> float:
        """When it asks for the next chunk: as soon as there is room in the buffer."""
        return self._ask_s

    def buffer_s(self, now_s: float) -> float:
        """Return the seconds of video that are buffered and not played."""
        return 0.0 if self._dry_s is None else max(0.0, self._dry_s - now_s)

    def arrived(self, now_s: float, took_s: float, received: int) -> None:
        """
        Take a chunk of the present bitrate.

        Args:
            now_s: when its last byte came.
            took_s: seconds its fetch took.
            received: its bytes.
        """
        if self._dry_s is None:
            self._startup_s = now_s - self._start_s
            self._dry_s = now_s
        elif now_s > self._dry_s:
            self._stalls.append((self._dry_s, now_s))
            self._dry_s = now_s
        self._dry_s += self._chunk_s
        self._points.append((now_s, self.bitrate, self._dry_s - now_s))
        self._ask_s = max(now_s, self._dry_s + self._chunk_s - self._buffer_s)
        self._learn(received * 8 / max(took_s, 1e-6))
        self._choose(now_s)

    def failed(self, now_s: float) -> None:
        """Take note that a fetch failed: it asks again after a while, for the smallest chunk."""
        self._ask_s = now_s + RETRY_S
        self.bitrate = self._bitrates[0]

    def end(self, now_s: float, client: str, line: int, round_number: int) -> Playback:
        """Return what a viewer has seen until now."""
        stalls = list(self._stalls)
        if self._dry_s is not None and now_s > self._dry_s:
            stalls.append((self._dry_s, now_s))
        bitrates = [bitrate for _, bitrate, _ in self._points]
        return Playback(
            client,
            line,
            round_number,
            start_s=self._start_s,
            startup_s=self._startup_s,
            end_s=now_s,
            stalls=tuple(stalls),
            played_s=len(bitrates) * self._chunk_s,
            switches=sum(before != after for before, after in pairwise(bitrates)),
            points=tuple(self._points),
        )

    def _learn(self, bits_per_s: float) -> None:
        if self._throughput is None:
            self._throughput = bits_per_s
        else:
            self._throughput += LAST_WEIGHT * (bits_per_s - self._throughput)

    def _choose(self, now_s: float) -> None:
        """Choose what the throughput carries; less than half a chunk in the buffer is no time for experiments."""
        assert self._throughput is not None
        affordable = [rate for rate in self._bitrates if rate * 1000 <= CAUTION * self._throughput]
        nearly_dry = self.buffer_s(now_s) < self._chunk_s / 2
        self.bitrate = self._bitrates[0] if nearly_dry or not affordable else affordable[-1]
