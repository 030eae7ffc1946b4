"""Ask the running balancer: HTTP over its UNIX socket, by the standard library alone, so that `lb status` is fast."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from lb.errors import DaemonError

TIMEOUT_S = 5.0
# Far beyond any status; a peer that sends more is no balancer.
MAX_BODY_BYTES = 256 * 1024 * 1024


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


def fetch(path: Path, resource: str) -> Any:
    """
    Return what the running balancer says.

    Args:
        path: of its control socket.
        resource: such as `/status`.

    Raises:
        DaemonError: nothing listens there, it may not be reached, or what answers is no balancer.
    """
    connection = _UnixConnection(path)
    try:
        connection.request("GET", resource)
        response = connection.getresponse()
        body = response.read(MAX_BODY_BYTES)
        if response.status != http.client.OK:
            raise DaemonError(f"{path}: the balancer answered {response.status} to {resource}")
        return json.loads(body)
    except PermissionError:
        raise DaemonError(f"{path}: permission denied: run as its user or a member of its group") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise DaemonError(
            f"no balancer answers on {path}: is `lb run` running? (--control names another socket)"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DaemonError(f"{path}: no usable answer: {error}") from error
    finally:
        connection.close()
