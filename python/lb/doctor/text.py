"""The findings of `lb doctor` as text for people and JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from lb.doctor.diagnosis import Finding

LEVELS = ("fail", "warn", "pass")
# Passes shown per check, in text: a thousand servers that are fine are not a thousand lines.
SHOWN_PASSES = 4


def render(findings: Sequence[Finding], output: Literal["text", "json"]) -> str:
    """
    Return the findings, one line each with the fix below, ending with a line feed.

    Text shows only the first passes of each check; JSON has all findings.
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
    return (
        "\n".join([*lines, "", f"{summary} ({more} of them not shown: `-o json` has all)" if more else summary]) + "\n"
    )
