"""Numbers for people: scaled, with their unit. JSON and CSV have the raw numbers."""

from __future__ import annotations

DECIMAL = ("", "k", "M", "G", "T", "P")
BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
# Whole numbers below this are shown exactly.
EXACT_BELOW = 10_000


def count(value: float, unit: str = "") -> str:
    """
    Return a number with a decimal prefix: `12.9 k`, `12.9 k/s`, `1.2 Gbit/s`.

    Args:
        value: a count or rate, in units of 1; whole numbers below 10000 are shown exactly.
        unit: follows the prefix, such as `/s` or `bit/s`.
    """
    number, prefix = _scaled(value, 1000, DECIMAL)
    is_rate = unit.startswith("/") and not prefix
    return f"{number}{'' if is_rate or not prefix + unit else ' '}{prefix}{unit}"


def byte_count(value: float) -> str:
    """Return a number of bytes with a binary prefix: `512 B`, `54.0 MiB`; below 10000 bytes exactly."""
    return " ".join(_scaled(value, 1024, BINARY))


def _scaled(value: float, step: int, prefixes: tuple[str, ...]) -> tuple[str, str]:
    """Return a number in digits and the prefix it was scaled to."""
    if value == int(value) and abs(value) < EXACT_BELOW:
        return str(int(value)), prefixes[0]
    for prefix in prefixes[:-1]:
        # What would be shown as 1000.0 belongs to the next prefix.
        if abs(value) < step - 0.05:
            return f"{value:.1f}", prefix
        value /= step
    return f"{value:.1f}", prefixes[-1]
