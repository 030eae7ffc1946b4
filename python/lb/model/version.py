"""The version of the package that is installed: `lb.__version__`, for modules below `lb`."""

from __future__ import annotations

import functools


@functools.cache
def version() -> str:
    """Return the version; `0+source` when run from a source tree that is not installed."""
    # Not above: it is slow to import, and most commands need no version.
    from importlib import metadata

    try:
        return metadata.version("flowlb")
    except metadata.PackageNotFoundError:
        return "0+source"
