"""Numbers for people are scaled and carry their unit."""

from __future__ import annotations

import pytest

from lb.model.units import byte_count, count


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (9999, "", "9999"),
        (12_900, "", "12.9 k"),
        (12_900.4, "/s", "12.9 k/s"),
        (3.25, "/s", "3.2/s"),
        (2150.0, "/s", "2150/s"),
        (1.2e9, "bit/s", "1.2 Gbit/s"),
        (800, "bit/s", "800 bit/s"),
        (999_949.0, "", "999.9 k"),
        (999_951.0, "", "1.0 M"),
        (5e18, "", "5000.0 P"),
    ],
)
def test_count_scales_by_thousands(value: float, unit: str, text: str) -> None:
    """Whole numbers below 10000 are exact; larger ones have one decimal and a prefix."""
    assert count(value, unit) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (4300, "4300 B"), (10_240, "10.0 KiB"), (54 * 2**20, "54.0 MiB"), (2**20 - 1, "1.0 MiB")],
)
def test_byte_count_scales_by_1024(value: int, text: str) -> None:
    """Bytes have binary prefixes; below 10000 they are exact."""
    assert byte_count(value) == text
