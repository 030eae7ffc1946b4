"""
Requests to the running balancer: HTTP over its UNIX socket, with the standard library alone, so that `lb status` is
fast.

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
# Long enough to read, check and compile the largest configuration.
CHANGE_TIMEOUT_S = 30.0
# Far more than any status; a peer that sends more is no balancer.
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
    Return the answer of the running balancer to a GET.

    Args:
        path: of its control socket.
        resource: such as `/status`.
        query: parameters of the resource.

    Raises:
        DaemonError: no process listens there, access is denied, or the answer is not that of a balancer.
        RemoteError: the balancer refused; the message says why.
    """
    return _request(path, "GET", f"{resource}?{urlencode(query)}" if query else resource, None, TIMEOUT_S)


def change(path: Path, resource: str, arguments: Mapping[str, Any]) -> Any:
    """
    Change the running balancer, and return its answer to a POST.

    Args:
        path: of its control socket.
        resource: such as `/drain`.
        arguments: parameters of the resource, of types that JSON has.

    Raises:
        DaemonError: as `fetch`.
        RemoteError: as `fetch`; nothing has changed.
    """
    return _request(path, "POST", resource, json.dumps(arguments).encode(), CHANGE_TIMEOUT_S)


def _request(path: Path, method: str, resource: str, body: bytes | None, timeout_s: float) -> Any:
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
    """Return the refusal of the balancer as an error: its message, its exit code."""
    if (
        isinstance(content, dict)
        and isinstance(content.get("error"), str)
        and isinstance(content.get("exit_code"), int)
    ):
        return RemoteError(content["error"], content["exit_code"])
    return DaemonError(f"{path}: the balancer answered {status} to {resource}")
