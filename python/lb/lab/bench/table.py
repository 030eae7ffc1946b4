"""The document as text for a terminal: one block per metric, then the targets. Pure: no machine, no clock."""

from __future__ import annotations

from lb.lab.bench import headline, notes
from lb.lab.bench.catalogue import ROUTING, Metric, metric
from lb.lab.bench.document import Document, Figure, MetricResult, Target

NAME_WIDTH, VALUE_WIDTH = 13, 9


def render(document: Document) -> str:
    """Return the whole table."""
    blocks = ["\n".join(f"{name}: {text}" for name, text in document.machine.items())]
    blocks += ["\n".join(f"{entry.name}: {entry.title} ({entry.version})" for entry in document.contestants)]
    top = headline.make(document)
    if top is not None:
        blocks.append(render_headline(top))
    blocks += [render_metric(result, document) for result in document.metrics]
    blocks.append(render_targets(document.targets))
    blocks += document.notes
    return "\n\n".join(blocks) + "\n"


def render_metric(result: MetricResult, document: Document) -> str:
    """Return the block of one metric: medians, spread, ratio to routing and to each peer."""
    kind = metric(result.name)
    names = [entry.name for entry in document.contestants]
    columns = columns_of(result, kind, names)
    head = f"{result.title} ({kind.shown_unit}, {result.better} is better)"
    titles = "".join(f"{title:>{max(VALUE_WIDTH, len(title) + 2)}}" for title in ("median", "min", "max", *columns))
    lines = [head, f"  {'':{NAME_WIDTH}}{titles}"]
    for name in names:
        figure = result.figures.get(name)
        if figure is None:
            lines.append(f"  {name:{NAME_WIDTH}}  - {result.absent.get(name, 'not measured')}")
            continue
        cells = [kind.show(figure.median), kind.show(figure.low), kind.show(figure.high)]
        cells += [cell(figure, kind, title) for title in columns]
        widths = [max(VALUE_WIDTH, len(title) + 2) for title in ("median", "min", "max", *columns)]
        row = "".join(f"{text:>{width}}" for text, width in zip(cells, widths, strict=True))
        mark = notes.MARK if figure.marks else " "
        lines.append(f"{mark} {name:{NAME_WIDTH}}{row}".rstrip())
        if name in result.absent:
            lines.append(f"  {'':{NAME_WIDTH}}  {result.absent[name]}")
    lines += [f"  {line}" for line in notes.describe_result(result, names)]
    return "\n".join(lines)


def render_headline(top: headline.Headline) -> str:
    """Return the comparisons with routing and each peer."""
    title_width = max(len(title) for title, _ in top.rows)
    widths = [max(len(peer), *(len(cells[index]) for _, cells in top.rows)) for index, peer in enumerate(top.peers)]
    lines = [f"{top.subject} against{'':{title_width - len(top.subject) - 8}}", *(title for title, _ in top.rows)]
    rows = [top.peers, *(cells for _, cells in top.rows)]
    return "\n".join(
        f"{line:{title_width}}"
        + "".join(f"  {text:>{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        for line, row in zip(lines, rows, strict=True)
    )


def columns_of(result: MetricResult, kind: Metric, names: list[str]) -> list[str]:
    """Return the titles of the columns that compare: what is added to routing, or the ratios to those with figures."""
    there = [name for name in names if name in result.figures]
    if kind.relative == "added":
        return ["added", "min", "max"] if ROUTING in there else []
    return [f"/{name}" for name in there] if len(there) > 1 else []


def cell(figure: Figure, kind: Metric, title: str) -> str:
    """Return one comparison."""
    if kind.relative == "added":
        if figure.added is None:
            return ""
        return kind.show(figure.added[("added", "min", "max").index(title)])
    found = figure.ratios.get(title.removeprefix("/"))
    return "" if found is None else f"{found:.2f}"


def render_targets(targets: list[Target]) -> str:
    """Return what must be reached, line by line."""
    words = {True: "reached", False: "NOT REACHED", None: "not measured"}
    rows = [("must reach", "at least", "measured", "")]
    rows += [(target.what, target.least, target.measured, words[target.reached]) for target in targets]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(f"{text:{width}}" for text, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )
