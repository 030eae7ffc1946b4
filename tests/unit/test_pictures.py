"""Geometry of pictures: axes, ticks, bars."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lb.lab.pictures import axis, bars


@pytest.mark.parametrize("top", [0.0031, 0.85, 1.0, 12.0, 99.9, 123456.0])
def test_linear_axis_holds_its_top(top: float) -> None:
    """Ticks are round, equally far apart, and reach the top; a tight axis ends there."""
    wide, tight = axis.linear(top, 100), axis.linear(top, 100, tight=True)
    assert wide.high >= top
    assert tight.high == top
    assert wide.at(0) == 0
    assert tight.at(top) == 100
    gaps = [after - before for (before, _), (after, _) in pairwise(wide.ticks)]
    assert max(gaps) == pytest.approx(min(gaps))
    assert 3 <= len(wide.ticks) <= 7
    assert all(0 <= at <= 100 for at, _ in tight.ticks)


@pytest.mark.parametrize(("low", "high"), [(0.3, 700), (1, 1), (5, 5000), (0.001, 90000), (2, 9), (0.001, 0.001)])
def test_logarithmic_axis_holds_both_ends(low: float, high: float) -> None:
    """The axis begins and ends at ticks that hold the values, and ticks ascend without meeting."""
    made = axis.logarithmic(low, high, 600)
    assert made.low <= low
    assert made.high >= high
    assert made.ticks[0][0] == 0
    assert made.ticks[-1][0] == pytest.approx(600)
    # A digit of 12 px is about 7 px wide.
    for (before, text), (after, following) in pairwise(made.ticks):
        assert after - before > (len(text) + len(following)) / 2 * 7
    assert made.at(low / 10) == 0
    assert made.at(high * 1000) == pytest.approx(600)


def test_bars_long_name_is_shortened() -> None:
    """A name keeps to its column."""
    chart = bars.make("t", "x", [bars.Row("n" * 100, 1.0, "1", mark=2.0)])
    assert len(chart.bars[0].name) == bars.MAX_NAME
    assert chart.bars[0].mark == pytest.approx(bars.PLOT_PX)
