"""
From the figures of a run of the benches to what is kept and shown: JSON, a Markdown table, an SVG picture.

    python -m pytest -p no:xdist benches --benchmark-json=RAW.json
    python benches/report.py keep RAW.json    RAW.json -> benches/results/latest.json, and the table on stdout
    python benches/report.py table            the table of what was kept
    python benches/report.py write            the table into docs/performance.md, the picture into docs/benches.svg

`make bench` and `make bench-report` call it. Only the standard library is used. Times are nanoseconds per operation,
medians unless said otherwise. docs/performance.md gets picture and table between two marker lines, which must be there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LATEST = ROOT / "benches" / "results" / "latest.json"
PICTURE = ROOT / "docs" / "benches.svg"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benches:begin -->", "<!-- benches:end -->"

IMAGE = "![Time per operation of each stage, rust and python side by side](benches.svg)"

BACKENDS = ("rust", "python")
# The order of the report, by how a section's name begins.
SECTIONS = ("single stages", "flow table", "new flow", "whole pipeline", "plans")
PLANS, MOST_SERVERS = "plans", ", 1000 servers"  # of the plans only those are told
CONTROL = (PLANS, "reload")  # no packet comes by there: in the table, not in the picture
SELECTORS = "new flow, "  # its sections, one per number of servers, are told side by side
NS_PER_S = 1e9
UNITS = ((1, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s"))


class Row(NamedTuple):
    """One stage; `ns`: the median per operation by backend."""

    section: str
    stage: str
    ns: dict[str, float]

    @property
    def ratio(self) -> float | None:
        """How many times as fast as python rust is; None when only one of them was measured."""
        return self.ns["python"] / self.ns["rust"] if len(self.ns) == len(BACKENDS) else None


def trimmed(raw: dict[str, Any]) -> dict[str, Any]:
    """Return what is worth keeping of pytest-benchmark's JSON: its times are seconds, ours nanoseconds."""
    machine = raw["machine_info"]
    return {
        "date": raw["datetime"][:19] + "Z",
        "commit": raw["commit_info"]["id"],
        "build_profile": machine["build_profile"],
        "machine": {
            "cpu": machine["cpu"]["brand_raw"],
            "cores": machine["cores"],
            "architecture": machine["machine"],
            "kernel": machine["release"],
            "python": machine["python_version"],
            "load_at_start": round(machine["load_at_start"], 2),
        },
        "results": [trimmed_bench(bench) for bench in raw["benchmarks"]],
    }


def trimmed_bench(bench: dict[str, Any]) -> dict[str, Any]:
    """Return what is worth keeping of one bench."""
    times = {f"{name}_ns": round(bench["stats"][name] * NS_PER_S, 1) for name in ("median", "min", "iqr")}
    return {"name": bench["name"], **bench["extra_info"], **times, "rounds": bench["stats"]["rounds"]}


def rows_of(kept: dict[str, Any]) -> list[Row]:
    """Put the backends of each stage side by side, in the order of the report."""
    rows: dict[tuple[str, str], Row] = {}
    for result in kept["results"]:
        key = result["section"], result["stage"]
        rows.setdefault(key, Row(*key, {})).ns[result["backend"]] = result["median_ns"]
    told = [row for row in rows.values() if row.section != PLANS or row.stage.endswith(MOST_SERVERS)]
    return sorted(told, key=lambda row: place_of(row.section))


def place_of(section: str) -> int:
    """Return the position of a section; unknown ones come last."""
    known = (number for number, start in enumerate(SECTIONS) if section.startswith(start))
    return next(known, len(SECTIONS))


def by_section(rows: list[Row]) -> dict[str, list[Row]]:
    """Group rows."""
    sections: dict[str, list[Row]] = {}
    for row in rows:
        sections.setdefault(row.section, []).append(row)
    return sections


def time_text(ns: float, digits: int = 3) -> str:
    """Write a time with its unit, and at least this number of digits."""
    scale, unit = next((found for found in UNITS if ns < found[0] * 1000), UNITS[-1])
    value = ns / scale
    decimals = max(0, digits - len(str(int(value))))
    return f"{value:.{decimals}f} {unit}"


def ratio_text(ratio: float | None) -> str:
    """Write a ratio."""
    if ratio is None:
        return ""
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


# The table.


def table(kept: dict[str, Any]) -> str:
    """Return the report in Markdown: a table of stages, one of selectors, and what they depend on."""
    sections = by_section(rows_of(kept))
    selectors = {name: rows for name, rows in sections.items() if name.startswith(SELECTORS)}
    stages = {name: rows for name, rows in sections.items() if name not in selectors}
    return "\n".join([*stage_lines(stages), "", *selector_lines(selectors), "", *small_print(kept)])


def stage_lines(sections: dict[str, list[Row]]) -> Iterator[str]:
    """Write the table of stages, a line per section above its stages."""
    yield "| per operation | `rust` | `python` | ratio |"
    yield "|---|--:|--:|--:|"
    for name, rows in sections.items():
        yield f"| **{name}** | | | |"
        for row in rows:
            cells = [time_text(row.ns[backend]) if backend in row.ns else "-" for backend in BACKENDS]
            yield f"| {row.stage} | {' | '.join(cells)} | {ratio_text(row.ratio)} |"


def selector_lines(sections: dict[str, list[Row]]) -> Iterator[str]:
    """Write the table of selectors: a row each, a column per number of servers."""
    yield f"| new flow by selector: `rust`, `python` | {' | '.join(n.removeprefix(SELECTORS) for n in sections)} |"
    yield "|---" + "|--:" * len(sections) + "|"
    for of_selector in zip(*sections.values(), strict=True):
        cells = [", ".join(time_text(row.ns[backend]) for backend in BACKENDS) for row in of_selector]
        yield f"| {of_selector[0].stage} | {' | '.join(cells)} |"


def small_print(kept: dict[str, Any]) -> Iterator[str]:
    """Write what the figures depend on."""
    machine = kept["machine"]
    yield f"Medians of `make bench`, {kept['date'][:10]}: {machine['cpu']}, {machine['cores']} cores,"
    yield f"Linux {machine['kernel']}, Python {machine['python']}, extension built as {kept['build_profile']},"
    yield f"load at start {machine['load_at_start']}. Shortest frames, CPU time of one thread. What each line means:"
    yield "[benches/README.md](../benches/README.md)."


# The picture.

WIDTH, LABELS, RIGHT = 960, 270, 840
TOP, ROW, BAR, HEADING, FOOT = 66, 32, 11, 30, 46
LEAST_NS = 10.0
STYLE = """
    text { font-size: 12px; fill: #1f2328 } .title { font-size: 16px; font-weight: 600 }
    .heading { font-size: 13px; font-weight: 600 } .soft { fill: #57606a } .line { stroke: #d0d7de; stroke-width: 1 }
    .rust { fill: #0969da } .python { fill: #bf8700 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .soft { fill: #8b949e } .line { stroke: #30363d }
      .rust { fill: #58a6ff } .python { fill: #d29922 }
    }
  """


class Scale:
    """Logarithmic, from 10 ns to the power of ten at or above the longest time."""

    def __init__(self, longest_ns: float) -> None:
        self.decades = max(1, math.ceil(math.log10(longest_ns / LEAST_NS)))

    def x(self, ns: float) -> float:
        """Return where a time is."""
        share = math.log10(max(ns, LEAST_NS) / LEAST_NS) / self.decades
        return round(LABELS + share * (RIGHT - LABELS), 1)

    def ticks(self) -> Iterator[float]:
        """Return the powers of ten."""
        return (LEAST_NS * 10**number for number in range(self.decades + 1))


def picture(kept: dict[str, Any]) -> str:
    """Return the stages of the data path as SVG: a pair of bars each; of the selectors those with the most servers."""
    sections = {name: rows for name, rows in by_section(rows_of(kept)).items() if name not in CONTROL}
    for crowded in [name for name in sections if name.startswith(SELECTORS)][:-1]:
        del sections[crowded]
    rows = [row for members in sections.values() for row in members]
    scale = Scale(max(ns for row in rows for ns in row.ns.values()))
    height = TOP + HEADING * len(sections) + ROW * len(rows) + FOOT
    parts = [*frame_parts(scale, height, kept)]
    y = TOP
    for name, members in sections.items():
        parts.append(text(16, y + 20, name, "heading"))
        y += HEADING
        for row in members:
            parts.extend(row_parts(row, scale, y))
            y += ROW
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" '
        'role="img" aria-label="Time per operation of each stage, rust and python side by side, logarithmic">'
    )
    return "\n  ".join([opening, f"<style>{STYLE}</style>", *parts]) + "\n</svg>\n"


def frame_parts(scale: Scale, height: int, kept: dict[str, Any]) -> Iterator[str]:
    """Draw title, legend, grid and axis."""
    yield text(16, 26, "Time per operation: rust against python", "title")
    machine = kept["machine"]
    about = f"{machine['cpu']}, Python {machine['python']}, {kept['build_profile']} build, {kept['date'][:10]}"
    yield text(16, 46, f"Median CPU time, one thread. {about}. Shorter is better; (python / rust).", "soft")
    for number, backend in enumerate(BACKENDS):
        x = 790 + 70 * number
        yield f'<rect class="{backend}" x="{x}" y="16" width="12" height="12" rx="2"/>'
        yield text(x + 18, 26, backend)
    bottom = height - FOOT
    for ns in scale.ticks():
        x = scale.x(ns)
        yield f'<path class="line" d="M{x} {TOP}V{bottom + 4}"/>'
        yield text(x, bottom + 18, time_text(ns, digits=0), "soft", "middle")
    yield text((LABELS + RIGHT) / 2, bottom + 36, "time per operation (logarithmic scale)", "soft", "middle")


def row_parts(row: Row, scale: Scale, y: float) -> Iterator[str]:
    """Draw one stage: its name, and a bar with its time per backend."""
    yield text(LABELS - 10, y + BAR + 6, row.stage, "", "end")
    for number, backend in enumerate(BACKENDS):
        if backend not in row.ns:
            continue
        ns, top = row.ns[backend], y + 2 + number * (BAR + 2)
        end = scale.x(ns)
        yield f'<rect class="{backend}" x="{LABELS}" y="{top}" width="{round(end - LABELS, 1)}" height="{BAR}" rx="2"/>'
        ratio = f" ({ratio_text(row.ratio)})" if backend == "python" and row.ratio else ""
        yield text(end + 6, top + BAR - 1, time_text(ns) + ratio, "soft")


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """Write a text."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(content)}</text>'


# The commands.


def keep(raw: Path) -> None:
    """Trim a run and keep it; print its table."""
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_text(json.dumps(trimmed(json.loads(raw.read_text())), indent=1) + "\n")
    print(table(json.loads(LATEST.read_text())))


def with_table(page: str, content: str) -> str:
    """Replace what stands between the markers of a page."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        name = PAGE.relative_to(ROOT)
        raise SystemExit(f"{name} needs one line {BEGIN} and below it one line {END}: the table goes between them")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"


def write() -> None:
    """Write the table and the picture of what was kept."""
    kept = json.loads(LATEST.read_text())
    page = with_table(PAGE.read_text(), f"{IMAGE}\n\n{table(kept)}")
    PICTURE.write_text(picture(kept))
    PAGE.write_text(page)
    print(f"wrote {PICTURE.relative_to(ROOT)} and the table in {PAGE.relative_to(ROOT)}", file=sys.stderr)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Keep and show the figures of the benches.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("keep", help="keep a run and print its table").add_argument("raw", type=Path)
    commands.add_parser("table", help="print the table of what was kept")
    commands.add_parser("write", help="write the table into docs/performance.md and docs/benches.svg")
    arguments = parser.parse_args()
    if arguments.command == "keep":
        return keep(arguments.raw)
    if not LATEST.exists():
        raise SystemExit(f"{LATEST.relative_to(ROOT)} is not there: run `make bench` first")
    if arguments.command == "write":
        return write()
    print(table(json.loads(LATEST.read_text())))
    return None


if __name__ == "__main__":
    main()
