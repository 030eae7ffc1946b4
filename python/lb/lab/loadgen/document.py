"""A run as JSON and CSV: figures, settings, and every fetch. Nothing is rounded."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from lb.lab.loadgen.figures import Figures, figure
from lb.lab.loadgen.records import Fetch, Playback

FORMAT: Literal["flowlb-load-1"] = "flowlb-load-1"


@dataclass(frozen=True, slots=True)
class Document:
    """
    A whole run.

    Args:
        settings: what was played and how, in words, by name.
        fetches, playbacks: the results.
        figures: what that adds up to.
        target_weights: of the servers by name; None: not known.
        events: what happened to servers: (seconds, what).
    """

    settings: dict[str, str]
    fetches: Sequence[Fetch]
    playbacks: Sequence[Playback]
    figures: Figures
    target_weights: dict[str, float] | None
    events: Sequence[tuple[float, str]] = ()


def make(
    settings: Mapping[str, str],
    fetches: Sequence[Fetch],
    playbacks: Sequence[Playback] = (),
    target_weights: Mapping[str, float] | None = None,
    events: Sequence[tuple[float, str]] = (),
) -> Document:
    """Make the document of a run; as `Document`."""
    ordered = sorted(fetches, key=lambda fetch: fetch.intended_s)
    figures = figure(ordered, playbacks, target_weights)
    return Document(
        dict(settings), ordered, playbacks, figures, dict(target_weights) if target_weights else None, tuple(events)
    )


def to_json(document: Document) -> str:
    """Return the document as JSON."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "settings": document.settings,
        "wanted": document.target_weights,
        "events": [{"at_s": at_s, "what": what} for at_s, what in document.events],
        "figures": asdict(document.figures),
        "playbacks": [asdict(playback) for playback in document.playbacks],
        "fetches": [asdict(fetch) for fetch in document.fetches],
    }
    return json.dumps(content, indent=1)


def to_csv(document: Document) -> str:
    """Return the fetches as CSV, one row each, times in seconds."""
    names = [field.name for field in fields(Fetch)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(fetch, name) for name in names] for fetch in document.fetches)
    return text.getvalue()
