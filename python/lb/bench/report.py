"""The document as one self-contained page: pictures as inline SVG, no script, nothing fetched; light and dark."""

from __future__ import annotations

from pathlib import Path

from lb.bench import chart, headline
from lb.bench.document import Document
from lb.errors import LbError

TEMPLATE = Path(__file__).with_name("report.html.j2")
HINT = "the report needs jinja2: pip install 'flowlb[report]'"


def require() -> None:
    """Raise LbError, with the way out, when what the report needs is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise LbError(HINT) from None


def render(document: Document) -> str:
    """
    Return the page.

    Raises:
        LbError: jinja2 is not installed.
    """
    require()
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    names = [entry.name for entry in document.contestants]
    charts = [made for result in document.metrics if (made := chart.make(result, names)) is not None]
    return environment.from_string(TEMPLATE.read_text()).render(
        document=document, headline=headline.make(document), charts=charts, geometry=chart
    )
