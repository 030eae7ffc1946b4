"""
Fetch chunks over HTTP with aiohttp, as fast as it goes and without help: no cookies, no redirects, no retries, no
decompression, no limit of connections.

An answer counts when its status is 200 and its body is as long as it says and not empty.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

import aiohttp
from yarl import URL

from lb.lab.loadgen.lines import LoadLine
from lb.lab.loadgen.records import NO_SERVER, UNKNOWN_SERVER

SERVER_FIELD = "X-Served-By"
# A name from outside: what is shown of it is bounded and prints.
MAX_NAME = 64
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "flowlb-loadgen"}


class FetchError(Exception):
    """A fetch failed; the message says why. `server`: who answered, as far as it is known."""

    def __init__(self, message: str, server: str = NO_SERVER, received: int = 0) -> None:
        super().__init__(message)
        self.server, self.received = server, received


class Answer(NamedTuple):
    """A whole answer. `server`: its name, or UNKNOWN_SERVER; `received`: bytes of the body."""

    server: str
    received: int


class WebSession:
    """
    One HTTP session; an async context manager.

    Args:
        new_connection: each fetch gets a new connection; else connections are kept and used again.
    """

    def __init__(self, new_connection: bool) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=new_connection)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers=_HEADERS,
            # The caller bounds the whole fetch.
            timeout=aiohttp.ClientTimeout(total=None),
        )
        # aiohttp repeats a GET in silence when a kept connection breaks under it: here that is a failure. There is no
        # public way to say so in 3.14; where the attribute is gone, this does no harm.
        self._session._retry_connection = False

    async def __aenter__(self) -> WebSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(self, line: LoadLine, size: int) -> Answer:
        """
        Fetch a chunk.

        Args:
            line: has the target.
            size: bitrate class of the chunk, in kbit/s.

        Raises:
            FetchError: no connection, no whole answer, or not the right one.
        """
        server, received = NO_SERVER, 0
        try:
            async with self._session.get(chunk_url(line.vip, line.port, size), allow_redirects=False) as response:
                server = served_by(response.headers.get(SERVER_FIELD, ""))
                async for block in response.content.iter_any():
                    received += len(block)
                if response.status != 200:
                    raise FetchError(f"HTTP status {response.status}", server, received)
        except aiohttp.ClientPayloadError:
            raise FetchError("short body", server, received) from None
        except aiohttp.ClientConnectorError as error:
            raise FetchError(reason(error.os_error), server) from None
        except aiohttp.ServerDisconnectedError:
            raise FetchError("the connection was closed without an answer", server) from None
        except (aiohttp.ClientError, OSError) as error:
            raise FetchError(reason(error), server, received) from None
        if not received:
            raise FetchError("empty body", server)
        return Answer(server, received)


@lru_cache(maxsize=4096)
def chunk_url(vip: str, port: int, size: int) -> URL:
    """Return the address of a chunk, as the course names chunks."""
    return URL.build(scheme="http", host=vip, port=port, path=f"/vod/{size}Seg2-Frag7")


def served_by(name: str) -> str:
    """Return a server's name as it may be shown; an answer that has none is from a server all the same."""
    return "".join(char for char in name if char.isprintable())[:MAX_NAME].strip() or UNKNOWN_SERVER


def reason(error: BaseException) -> str:
    """Return the same words for the same trouble: failures are counted by them."""
    if isinstance(error, OSError) and error.errno:
        # Resolvers have numbers of their own, below 0; asyncio puts addresses into its texts.
        return (os.strerror(error.errno) if error.errno > 0 else str(error.strerror)).lower()
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:120]
