"""
`lb doctor`: what on this host would keep packets from flowing, and the command that fixes it.

`facts` looks at the machine, `wire` asks its neighbours, `checks` judges (pure: facts in, findings out), `report`
tells.
"""

from __future__ import annotations

from lb.doctor.checks import Finding, Level, examine
from lb.doctor.facts import Facts, gather
from lb.doctor.report import render

__all__ = ["Facts", "Finding", "Level", "examine", "gather", "render"]
