"""
What runs on a testbed server beside or instead of Apache: a TCP and UDP echo server, and a small web server.

Run as `python -m lb.lab.testbed.serve`. The web server speaks HTTP/1.1 with keep-alive and sends files with
sendfile(2); it names the server in the header X-Served-By and closes the connection when the query says `close`, as
Apache does with our configuration. It is for testbeds: no TLS, no ranges, no directory listings.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import cast

BACKLOG = 1024
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".m3u8": "application/vnd.apple.mpegurl",
    ".mp4": "video/mp4",
    ".m4s": "video/iso.segment",
}


# The names of its methods and arguments are http.server's.
class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def __init__(self, name: str, root: Path, *arguments: object) -> None:
        self._name = name
        self._root = root
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Send the file that the path names, or 404."""
        self._answer(send_body=True)

    def do_HEAD(self) -> None:
        """Send the header that GET would send."""
        self._answer(send_body=False)

    def _answer(self, send_body: bool) -> None:
        name, _, query = self.path.partition("?")
        path = (self._root / name.lstrip("/")).resolve()
        if path.is_dir():
            path /= "index.html"
        if not path.is_relative_to(self._root) or not path.is_file():
            self.send_error(404)
            return
        with path.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.send_header("Content-Type", _TYPES.get(path.suffix, "application/octet-stream"))
            self.send_header("Cache-Control", "no-store")
            if "close" in query.split("&"):
                self.send_header("Connection", "close")
            self.end_headers()
            if send_body:
                self.connection.sendfile(file)

    def end_headers(self) -> None:
        """Name the server in every answer, errors included."""
        self.send_header("X-Served-By", self._name)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Write no log: the load client counts."""


class _WebServer(ThreadingHTTPServer):
    request_queue_size = BACKLOG
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without asking a name server for our own name: there is none in a testbed."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that went away."""


class _WebServer6(_WebServer):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        """Leave IPv4 to the other listener."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()


def start_web(name: str, root: Path, port: int) -> None:
    """Serve the files below `root` on this TCP port, on threads that end with the process."""
    handler = partial(_Handler, name, root.resolve())
    servers = [_WebServer(("0.0.0.0", port), handler)]
    # A kernel without IPv6 refuses; the testbed then has no IPv6 addresses either.
    with suppress(OSError):
        servers.append(_WebServer6(("::", port), handler))
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()


class _UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


def _udp_socket(family: int, address: str, port: int) -> socket.socket:
    endpoint = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    endpoint.bind((address, port))
    return endpoint


async def serve_echo(port: int) -> None:
    """Echo all data sent to this port over TCP and UDP, IPv4 and IPv6, for ever."""
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(_UdpEcho, sock=_udp_socket(socket.AF_INET, "0.0.0.0", port))
    # As for the web: where there is no IPv6, no client will ask for it.
    with suppress(OSError):
        await loop.create_datagram_endpoint(_UdpEcho, sock=_udp_socket(socket.AF_INET6, "::", port))
    # TCP last: who sees this port open may use UDP too.
    server = await asyncio.start_server(_echo, None, port, backlog=BACKLOG)
    await server.serve_forever()


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description="The servers of the testbed: echo and, when asked for, web.")
    parser.add_argument("--name", required=True, help="what X-Served-By says")
    parser.add_argument("--echo-port", type=int, required=True)
    parser.add_argument("--web-port", type=int, help="serve files too; needs --content")
    parser.add_argument("--content", type=Path)
    options = parser.parse_args()
    port = options.web_port
    try:
        if port is not None:
            start_web(options.name, options.content, port)
        port = options.echo_port
        with suppress(KeyboardInterrupt):
            asyncio.run(serve_echo(port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        sys.exit(f"{options.name}: port {port} is in use: end the program that listens there (`ss -lntup` names it)")


if __name__ == "__main__":
    main()
