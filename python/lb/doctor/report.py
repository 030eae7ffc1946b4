"""What `lb doctor` found, for people and programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from lb.doctor.checks import Finding

LEVELS = ("fail", "warn", "pass")
# Of each check, in text: what is fine for a thousand servers is no thousand lines.
SHOWN_PASSES = 4


def render(findings: Sequence[Finding], output: Literal["text", "json"]) -> str:
    """
    Return findings as text that ends with a line feed: one line each, with what fixes it below.

    Text leaves most of many passes of one check out; JSON has everything.
    """
    counts = Counter[str](finding.level for finding in findings)
    totals = {level: counts[level] for level in LEVELS}
    if output == "json":
        return json.dumps({"findings": [asdict(finding) for finding in findings], "totals": totals}, indent=2) + "\n"
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    passed = Counter[str]()
    for finding in findings:
        passed[finding.check] += finding.level == "pass"
        if finding.level != "pass" or passed[finding.check] <= SHOWN_PASSES:
            lines.append(f"{finding.level}  {finding.check.ljust(width)}  {finding.message}")
        if finding.fix is not None:
            lines.append(f"{'':6}{'':{width}}  fix: {finding.fix}")
    more = sum(max(0, count - SHOWN_PASSES) for count in passed.values())
    summary = ", ".join(f"{count} {level}" for level, count in totals.items())
    return "\n".join([*lines, "", f"{summary} ({more} of them not shown: -o json has all)" if more else summary]) + "\n"
