"""What the course's load generator printed and logged, word for word: scripts read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lb.errors import LbError
from lb.lab.loadgen.lines import LoadLine
from lb.lab.loadgen.records import Fetch, LineEnded, LineStarted, Record

FINISHED = "Events finished"


class CourseLog:
    """
    Says what happens as the course's program did.

    Args:
        lines: of the load.
        several: whether more than one client plays them; then the client is named, too.
        log: a file to append to, or None.
        verbose: tell of every fetch.

    Raises:
        LbError: the file cannot be written.
    """

    def __init__(self, lines: Sequence[LoadLine], several: bool, log: Path | None, verbose: bool) -> None:
        self._lines, self._several, self._verbose = lines, several, verbose
        try:
            self._log = log.open("a", encoding="utf-8") if log is not None else None
        except OSError as error:
            raise LbError(f"{log} cannot be written: {error.strerror}") from error

    def take(self, record: Record) -> list[str]:
        """Write a record to the log. Returns the lines to print for it."""
        match record:
            case LineStarted():
                self._write(f"Command id {record.line} start")
            case LineEnded():
                self._write(f"id: {record.line}, [({record.line}, {record.mean_s})]")
                line = self._lines[record.line]
                text = f"Fetched {record.fetches} {line.size}bitrate chunk with interval {line.interval_s:f} sec."
                return [self._named(record.client, f"{text} Mean fetching time is {record.mean_s:f} sec")]
            case Fetch() if self._verbose:
                outcome = f" from {record.server}" if record.ok else f": {record.error}"
                text = f"{'Fetched' if record.ok else 'Failed to fetch'} chunk {record.number}"
                return [self._named(record.client, f"{text} in {record.duration_s:f} sec{outcome}")]
        return []

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    def _named(self, client: str, text: str) -> str:
        return f"{client}: {text}" if self._several else text

    def _write(self, text: str) -> None:
        if self._log is not None:
            self._log.write(text + "\n")
            self._log.flush()
