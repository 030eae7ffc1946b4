"""
`lb doctor`: finds what keeps packets from flowing on this host, and the command that fixes it.

`facts` reads the machine, `wire` queries its neighbours, `diagnosis` has the checks (pure: facts in, findings out),
`text` prints.
"""

from __future__ import annotations

from lb.doctor.diagnosis import Finding, Level, examine
from lb.doctor.facts import Facts, gather
from lb.doctor.text import render

__all__ = ["Facts", "Finding", "Level", "examine", "gather", "render"]
