"""The benches' report: figures in, table and picture out. Speed itself is never tested."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benches" / "report.py"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    """Load the script."""
    spec = importlib.util.spec_from_file_location("bench_report", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def raw_bench(section: str, stage: str, backend: str, median_s: float) -> dict[str, Any]:
    """Make what pytest-benchmark writes about one bench."""
    stats = {"median": median_s, "min": median_s / 2, "iqr": 0.0, "rounds": 7, "data": [median_s]}
    info = {"section": section, "stage": stage, "backend": backend, "unit": "call", "operations_per_round": 1000}
    return {"name": f"test[{backend}]", "extra_info": info, "stats": stats}


@pytest.fixture
def kept(report: ModuleType) -> dict[str, Any]:
    """Make the kept figures of a run of four stages."""
    machine = {"cpu": {"brand_raw": "Some <CPU>"}, "cores": 2, "machine": "x86_64", "release": "6.1", "node": "secret"}
    machine |= {"python_version": "3.11.7", "build_profile": "release", "load_at_start": 0.123}
    benches = [
        raw_bench("whole pipeline", "process", "python", 30e-6),
        raw_bench("whole pipeline", "process", "rust", 200e-9),
        raw_bench("new flow, 3 servers", "least", "rust", 250e-9),
        raw_bench("new flow, 3 servers", "least", "python", 1.5e-3),
        raw_bench("single stages", "parse", "rust", 99.96e-9),
        raw_bench("flow table", "known flow", "rust", 1e-6),
    ]
    raw = {"machine_info": machine, "datetime": "2026-11-23T05:44:14.1+00:00", "commit_info": {"id": "abc"}}
    made: dict[str, Any] = report.trimmed({**raw, "benchmarks": benches})
    return made


def test_kept_figures_are_nanoseconds_without_the_machines_name(kept: dict[str, Any]) -> None:
    """Times are turned from seconds into nanoseconds; single rounds and the host name are left out."""
    first = kept["results"][0]
    assert (first["median_ns"], first["min_ns"], first["rounds"]) == (30_000.0, 15_000.0, 7)
    assert "data" not in first
    assert "secret" not in str(kept)


def test_table_backends_stand_side_by_side_in_the_order_of_the_walk(report: ModuleType, kept: dict[str, Any]) -> None:
    """Single stages come first, a stage that one backend lacks has no ratio."""
    lines = [line for line in report.table(kept).splitlines() if line.startswith("|")]
    assert lines == [
        "| per operation | `rust` | `python` | ratio |",
        "|---|--:|--:|--:|",
        "| **single stages** | | | |",
        "| parse | 100 ns | - |  |",
        "| **flow table** | | | |",
        "| known flow | 1.00 µs | - |  |",
        "| **whole pipeline** | | | |",
        "| process | 200 ns | 30.0 µs | 150x |",
        "| new flow by selector: `rust`, `python` | 3 servers |",
        "|---|--:|",
        "| least | 250 ns, 1.50 ms |",
    ]


def test_picture_is_well_formed_and_has_a_bar_per_figure(report: ModuleType, kept: dict[str, Any]) -> None:
    """Each figure has one bar; the legend has two; longer times have longer bars."""
    root = ElementTree.fromstring(report.picture(kept))
    bars = [element for element in root.iter() if element.tag.endswith("rect") and element.get("height") == "11"]
    widths = [float(bar.get("width", "0")) for bar in bars]
    assert len(bars) == len(kept["results"])
    # parse, known flow, least on rust and python, process on rust and python
    assert widths[0] < widths[4] < widths[2] < widths[1] < widths[5] < widths[3]


def test_page_with_markers_gets_the_new_table(report: ModuleType) -> None:
    """What stood between the markers is replaced, the rest stays."""
    page = f"a\n{report.BEGIN}\nold\n{report.END}\nb\n"
    assert report.with_table(page, "new") == f"a\n{report.BEGIN}\nnew\n{report.END}\nb\n"


@pytest.mark.parametrize("page", ["", "<!-- benches:begin -->", "<!-- benches:end --><!-- benches:begin -->"])
def test_page_without_markers_is_refused(report: ModuleType, page: str) -> None:
    """The error says what is missing."""
    with pytest.raises(SystemExit, match="needs one line <!-- benches:begin -->"):
        report.with_table(page, "new")
