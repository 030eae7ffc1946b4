"""
The HTTP of a health check: one GET, and the head of the answer.

Control side, used by `lb.control.health.prober`. It is written out here because a client library normalises requests:
`//`, `..`, `%2f` and a bare `?` would not arrive as the configuration has them. The head is read up to its end,
bounded; the body is not read (RFC 9112: 2.1 message format, 4 status line, and RFC 9110 15.2: interim answers).
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from lb.model.snapshot import Address

USER_AGENT = "flowlb-health"
MAX_HEAD_BYTES = 64 * 1024
READ_BYTES = 4096
HTTP_PORT = 80
# How much of an answer that is not HTTP is shown.
SHOWN_BYTES = 40
NAME = b"HTTP/1."
STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?:[ \t][^\r\n]*)?")
# Some servers end lines with a line feed alone; a recipient may take that (RFC 9112 2.2).
HEAD_END = re.compile(rb"\r?\n\r?\n")


class AnswerError(ValueError):
    """The answer of a server is not HTTP, incomplete or too long; the message says so in one line."""


class Head:
    """The head of an answer as received so far. `data`: its bytes; `interim_bytes`: of interim answers before it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.interim_bytes = 0

    def status(self) -> int | None:
        """
        Return the status of the final answer; None: its head is not complete yet.

        Raises:
            AnswerError: this is not HTTP, or the head is too long.
        """
        while True:
            if not (self.data.startswith(NAME) or NAME.startswith(self.data)):
                raise AnswerError(f"not HTTP: {shown(self.data)}")
            end = HEAD_END.search(self.data)
            if self.interim_bytes + (end.start() if end else len(self.data)) > MAX_HEAD_BYTES:
                raise AnswerError(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes")
            if end is None:
                return None
            line = STATUS_LINE.fullmatch(re.split(rb"\r?\n", self.data, maxsplit=1)[0])
            if line is None:
                raise AnswerError(f"not HTTP: {shown(self.data)}")
            if (status := int(line[1])) >= 200:
                return status
            # An interim answer such as 103: the final one follows.
            self.interim_bytes += end.end()
            del self.data[: end.end()]


def shown(data: bytes | bytearray) -> str:
    """Return the beginning of an answer for a log line: escaped, bounded, in quotes."""
    text = bytes(data[:SHOWN_BYTES]).decode("ascii", "backslashreplace")
    escaped = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return f'"{escaped}"' + ("..." if len(data) > SHOWN_BYTES else "")


def request(address: Address, port: int, path: str) -> bytes:
    """Return the GET of a path, which goes out byte for byte as given."""
    host = f"[{address}]" if address.version == 6 else str(address)
    host += "" if port == HTTP_PORT else f":{port}"
    # A connection of its own for each check: one kept alive would not tell whether new ones are accepted.
    fields = f"Host: {host}\r\nUser-Agent: {USER_AGENT}\r\nAccept: */*\r\nConnection: close"
    return f"GET {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode("ascii")


async def get_status(address: Address, port: int, path: str, head: Head) -> int:
    """
    Request a path and return the status of the answer.

    Args:
        address: of the server.
        port: of the server.
        path: printable ASCII without blanks (`lb.fields.types.parse_url_path`).
        head: collects the answer, so that a caller that gives up knows how much there was.

    Raises:
        OSError: no connection, or it broke.
        AnswerError: the answer is not HTTP, ends early or is too long.
    """
    reader, writer = await asyncio.open_connection(str(address), port)
    try:
        writer.write(request(address, port, path))
        while (status := head.status()) is None:
            if not (data := await reader.read(READ_BYTES)):
                what = (
                    f"the answer ends inside its head: {shown(head.data)}" if head.data else "closed without an answer"
                )
                raise AnswerError(what)
            head.data += data
        return status
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
