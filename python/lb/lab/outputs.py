"""The files that a run writes at its end, a page and figures: whether they can be, and writing them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from lb.errors import LbError
from lb.lab.pictures import page


def require(report: Path | None, json_file: Path | None) -> None:
    """
    See to it, before a run, that its files can be written. None: that one is not wanted.

    Raises:
        LbError: there is no directory for one of them, or what a page needs is not installed.
    """
    if report is not None:
        page.require()
    for path in (report, json_file):
        if path is not None and not path.absolute().parent.is_dir():
            raise LbError(f"{path} cannot be written: there is no directory {path.absolute().parent}")


def write(report: Path | None, render: Callable[[], str], json_file: Path | None, to_json: Callable[[], str]) -> None:
    """Write those files that are wanted, and say so on standard error. Raise LbError when one cannot be written."""
    try:
        for what, path, make in (("figures", json_file, to_json), ("report", report, render)):
            if path is not None:
                path.write_text(make(), encoding="utf-8")
                print(f"{what}: {path}", file=sys.stderr)
    except OSError as error:
        raise LbError(f"{error.filename} cannot be written: {error.strerror}") from error
