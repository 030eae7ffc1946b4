"""The headline of a run: how our fastest backend there compares with routing and with each peer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from lb.lab.bench import notes
from lb.lab.bench.catalogue import ROUTING, metric
from lb.lab.bench.document import Document

OURS = ("rust", "python")


@dataclass(frozen=True, slots=True)
class Headline:
    """
    A table of comparisons.

    Args:
        subject: the backend that is compared.
        peers: its columns.
        rows: (title, one text per peer; empty when there is none).
    """

    subject: str
    peers: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def make(document: Document) -> Headline | None:
    """Return the headline, or None when there is nothing to compare."""
    present = [entry.name for entry in document.contestants if any(entry.name in m.figures for m in document.metrics)]
    subject = next((name for name in OURS if name in present), None)
    peers = tuple(name for name in present if name != subject)
    if subject is None or not peers:
        return None
    rows = []
    for result in document.metrics:
        cells = tuple(_cell(document, result.name, subject, peer) for peer in peers)
        if any(cells):
            rows.append((result.title, cells))
    return Headline(subject, peers, tuple(rows)) if rows else None


def _cell(document: Document, name: str, subject: str, peer: str) -> str:
    kind, figure = metric(name), document.figure(name, subject)
    if figure is None:
        return ""
    other = document.figure(name, peer)
    mark = notes.MARK if figure.marks or (other is not None and other.marks) else ""
    if kind.relative == "added":
        if peer != ROUTING or figure.added is None:
            return ""
        return f"{figure.added[0] / kind.scale:+.{kind.digits}f} {kind.shown_unit}{mark}"
    return f"{figure.ratios[peer]:.2f}x{mark}" if peer in figure.ratios else ""
