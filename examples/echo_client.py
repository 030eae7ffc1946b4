#!/usr/bin/env python3
"""
Connect to the virtual address, send a greeting, print what comes back. Standard library only.

    python3 echo_client.py [--host 198.18.1.100] [--port 9876] [--message TEXT] [--timeout SECONDS]
"""

from __future__ import annotations

import argparse
import socket
import sys


def exchange(host: str, port: int, message: bytes, timeout_s: float) -> bytes:
    """
    Send a message to an echo server and receive as many bytes as were sent.

    Raises:
        OSError: no connection, no answer in time, or the server closed early.
    """
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while len(answer) < len(message):
            received = connection.recv(65536)
            if not received:
                raise ConnectionError(f"closed after {len(answer)} of {len(message)} bytes")
            answer += received
    return answer


def main() -> int:
    """Run the client. Returns the exit status: 0 when the greeting came back unchanged."""
    parser = argparse.ArgumentParser(description="A TCP echo client.")
    parser.add_argument("--host", default="198.18.1.100", help="address to connect to (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9876, help="TCP port (default: %(default)s)")
    parser.add_argument("--message", default=f"Hello from {socket.gethostname()}", help="what to send")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait (default: %(default)s)")
    options = parser.parse_args()
    message = options.message.encode()
    try:
        answer = exchange(options.host, options.port, message, options.timeout)
    except OSError as error:
        print(f"no echo from {options.host} port {options.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(answer.decode(errors="replace"))
    return 0 if answer == message else 1


if __name__ == "__main__":
    sys.exit(main())
