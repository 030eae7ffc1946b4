"""The backends that can be chosen; `auto` is the fastest available one."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

BackendName: TypeAlias = Literal["auto", "rust", "python"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
# Known names that this version has no backend for.
MISSING_BACKENDS = ("ebpf",)
