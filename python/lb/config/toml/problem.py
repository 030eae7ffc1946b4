"""A mistake in a TOML document: what is wrong, at which key, and what to write instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lb.config.toml.locator import Path


@dataclass(frozen=True, slots=True)
class Problem:
    """
    Something wrong in a configuration.

    Args:
        path: of the key it is about. at: whether it points at the key or at its value.
        first: of an earlier key that it contradicts: the message tells its line.
        severity: a warning does not keep the configuration from being used.
    """

    path: Path
    message: str
    hint: str = ""
    at: Literal["key", "value"] = "value"
    severity: Literal["error", "warning"] = "error"
    first: Path | None = None


def dotted(path: Path) -> str:
    """Return a path as people write it: `service[0].port`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "document"
