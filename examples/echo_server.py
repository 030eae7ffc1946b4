#!/usr/bin/env python3
"""
Send back whatever each TCP client sends, until it closes. Many clients at once; standard library only.

    python3 echo_server.py [--host 0.0.0.0] [--port 7000]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import suppress


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one client."""
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


async def serve(host: str, port: int) -> None:
    """Listen and serve until the process is ended."""
    server = await asyncio.start_server(echo, host, port, backlog=1024)
    address, bound_port = server.sockets[0].getsockname()[:2]
    print(f"echo server on {address} port {bound_port}", flush=True)
    await server.serve_forever()


def main() -> int:
    """Run the server. Returns the exit status."""
    parser = argparse.ArgumentParser(description="A TCP echo server.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7000, help="TCP port (default: %(default)s)")
    options = parser.parse_args()
    try:
        asyncio.run(serve(options.host, options.port))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        print(f"cannot listen on {options.host} port {options.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
