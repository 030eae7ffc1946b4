"""What a status begins with: version and uptime, reloads, background tasks, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lb.control.tasks import TaskState
from lb.net.host import NOT_GUARDED, GuardState


@dataclass(frozen=True, slots=True)
class Facts:
    """
    What stays the same or changes rarely.

    Args:
        uptime_s: seconds since packets began to flow.
        last_reload_error: in one line; None when the last reload succeeded.
        trouble: which interface is down or gone, and why no reload is possible; None: nothing.
        reloads, reload_failures: attempts, and those that changed nothing.
        tasks: the state of the background tasks, by name.
        host_guard: how the services' packets are kept from the host's kernel.
        table_memory: what the flow table's memory is (`file`, `map`, `private`), its path, and why.
        stops_within_s: how long a drain before the stop may still take; None: there is none.
    """

    version: str
    pid: int
    backend: str
    config_path: str
    uptime_s: float
    last_reload_error: str | None
    trouble: str | None = None
    reloads: int = 0
    reload_failures: int = 0
    tasks: Mapping[str, TaskState] = field(default_factory=dict)
    host_guard: GuardState = NOT_GUARDED
    table_memory: Mapping[str, str | None] = field(default_factory=dict)
    stops_within_s: float | None = None
