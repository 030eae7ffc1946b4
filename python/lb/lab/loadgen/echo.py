"""Exchange a greeting with an echo service instead of fetching a chunk; the same face as `web.WebSession`."""

from __future__ import annotations

import asyncio

from lb.lab.loadgen.lines import LoadLine
from lb.lab.loadgen.records import UNKNOWN_SERVER
from lb.lab.loadgen.web import Answer, FetchError, reason

GREETING = b"Hello through the balancer\n"


class EchoSession:
    """Every exchange uses a new connection."""

    async def __aenter__(self) -> EchoSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def fetch(self, line: LoadLine, size: int) -> Answer:  # noqa: ARG002 - greetings have one size
        """
        Send a greeting and take it back; as `WebSession.fetch`.

        Raises:
            FetchError: no connection, or not the same bytes.
        """
        try:
            reader, writer = await asyncio.open_connection(line.vip, line.port)
        except OSError as error:
            raise FetchError(reason(error)) from None
        try:
            writer.write(GREETING)
            if await reader.readexactly(len(GREETING)) != GREETING:
                raise FetchError("the echo differs from what was sent")
        except asyncio.IncompleteReadError as error:
            raise FetchError("short echo", received=len(error.partial)) from None
        except OSError as error:
            raise FetchError(reason(error)) from None
        finally:
            writer.close()
        return Answer(UNKNOWN_SERVER, len(GREETING))
