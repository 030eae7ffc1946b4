"""
Talk to the running balancer: HTTP over its UNIX socket, by the standard library alone, so that `lb status` is fast.

Resources and their arguments are in `docs/control.md`. `fetch` reads, `change` changes.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lb.errors import DaemonError, LbError, RemoteError

TIMEOUT_S = 5.0
# Reading, checking and compiling the largest configuration.
CHANGE_TIMEOUT_S = 30.0
# Far beyond any status; a peer that sends more is no balancer.
MAX_BODY_BYTES = 256 * 1024 * 1024


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))


def fetch(path: Path, resource: str, **query: str | int) -> Any:
    """
    Return what the running balancer says.

    Args:
        path: of its control socket.
        resource: such as `/status`.
        query: arguments of the resource.

    Raises:
        DaemonError: nothing listens there, it may not be reached, or what answers is no balancer.
        RemoteError: the balancer refused, and says why.
    """
    return _ask(path, "GET", f"{resource}?{urlencode(query)}" if query else resource, None, TIMEOUT_S)


def change(path: Path, resource: str, arguments: Mapping[str, Any]) -> Any:
    """
    Change the running balancer, and return what it says.

    Args:
        path: of its control socket.
        resource: such as `/drain`.
        arguments: what JSON can hold.

    Raises:
        DaemonError: as `fetch`.
        RemoteError: as `fetch`; nothing has changed.
    """
    return _ask(path, "POST", resource, json.dumps(arguments).encode(), CHANGE_TIMEOUT_S)


def _ask(path: Path, method: str, resource: str, body: bytes | None, timeout_s: float) -> Any:
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request(method, resource, body)
        response = connection.getresponse()
        content = json.loads(response.read(MAX_BODY_BYTES))
        if response.status != http.client.OK:
            raise _refusal(path, resource, response.status, content)
        return content
    except LbError:
        raise
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


def _refusal(path: Path, resource: str, status: int, content: Any) -> LbError:
    """Return the error that the balancer's refusal is here: its words, its exit code."""
    if (
        isinstance(content, dict)
        and isinstance(content.get("error"), str)
        and isinstance(content.get("exit_code"), int)
    ):
        return RemoteError(content["error"], content["exit_code"])
    return DaemonError(f"{path}: the balancer answered {status} to {resource}")
