"""The document as one self-contained page; `lb.lab.pictures` draws."""

from __future__ import annotations

from pathlib import Path

from lb.lab.bench import chart, headline
from lb.lab.bench.document import Document
from lb.lab.pictures import page

TEMPLATE = Path(__file__).with_name("report.html.j2")


def render(document: Document) -> str:
    """
    Return the page.

    Raises:
        LbError: jinja2 is not installed.
    """
    names = [entry.name for entry in document.contestants]
    charts = [made for result in document.metrics if (made := chart.make(result, names)) is not None]
    return page.render(TEMPLATE, document=document, headline=headline.make(document), charts=charts)
