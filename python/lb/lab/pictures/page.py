"""Render a page: one self-contained file, pictures as inline SVG, no script, nothing fetched; light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lb.errors import LbError
from lb.lab.pictures import bars, plot

HINT = "the report needs jinja2: pip install 'flowlb[report]'"
_HERE = Path(__file__).parent


def require() -> None:
    """Raise LbError, with the way out, when what a page needs is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise LbError(HINT) from None


def render(template: Path, **content: Any) -> str:
    """
    Return a page.

    Args:
        template: of the page; it extends `page.html.j2` and may draw with `charts.html.j2`.
        content: what it speaks of.

    Raises:
        LbError: jinja2 is not installed.
    """
    require()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, _HERE])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"bars": bars, "plot": plot}
    return environment.get_template(template.name).render(**content)
