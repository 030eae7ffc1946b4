"""`python -m lb` is the command `lb`."""

from __future__ import annotations

from lb.cli import main

main()
