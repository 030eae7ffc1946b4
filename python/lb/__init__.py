"""
flowlb: a flow-level L4 load balancer whose data path is Rust and whose policies are Python.

The public names are in `__all__`; everything else may change. They are imported when first used: `import lb` alone
costs next to nothing, so that `lb --help` answers at once and the testbed's helpers start fast.

    import lb
    balancer = lb.Balancer.from_file("lb.toml", backend="rust", seed=1, clock=lb.ManualClock())
    result = balancer.process(frame, interface="eth0")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lb.backends.base import Flow, Result
    from lb.balancer import Balancer
    from lb.config import Config
    from lb.errors import (
        BackendError,
        CaptureError,
        ConfigError,
        DaemonError,
        InterfaceError,
        LbError,
        PolicyError,
        PrivilegeError,
        RefusedError,
        RemoteError,
        RequestError,
        TestbedError,
        UnderWayError,
        UnknownNameError,
    )
    from lb.model.clock import ManualClock, SystemClock
    from lb.packet.headers import Headers
    from lb.packet.offload import Offload

_MODULES = {
    "BackendError": "lb.errors",
    "Balancer": "lb.balancer",
    "CaptureError": "lb.errors",
    "Config": "lb.config",
    "ConfigError": "lb.errors",
    "DaemonError": "lb.errors",
    "Flow": "lb.backends.base",
    "Headers": "lb.packet.headers",
    "InterfaceError": "lb.errors",
    "LbError": "lb.errors",
    "ManualClock": "lb.model.clock",
    "Offload": "lb.packet.offload",
    "PolicyError": "lb.errors",
    "PrivilegeError": "lb.errors",
    "RefusedError": "lb.errors",
    "RemoteError": "lb.errors",
    "RequestError": "lb.errors",
    "Result": "lb.backends.base",
    "SystemClock": "lb.model.clock",
    "TestbedError": "lb.errors",
    "UnderWayError": "lb.errors",
    "UnknownNameError": "lb.errors",
}
# The single stages of the fastest available backend; `lb.backends.load(name)` has those of a named one.
_PRIMITIVES = ("checksum", "checksum_update", "flow_hash", "parse")

__all__ = [
    "BackendError",
    "Balancer",
    "CaptureError",
    "Config",
    "ConfigError",
    "DaemonError",
    "Flow",
    "Headers",
    "InterfaceError",
    "LbError",
    "ManualClock",
    "Offload",
    "PolicyError",
    "PrivilegeError",
    "RefusedError",
    "RemoteError",
    "RequestError",
    "Result",
    "SystemClock",
    "TestbedError",
    "UnderWayError",
    "UnknownNameError",
    "__version__",
    "checksum",
    "checksum_update",
    "flow_hash",
    "parse",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    elif name in _PRIMITIVES:
        value = getattr(importlib.import_module("lb.backends").load("auto"), name)
    elif name == "__version__":
        value = importlib.import_module("lb.model.version").version()
    else:
        raise AttributeError(f"module 'lb' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
