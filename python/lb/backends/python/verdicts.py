"""The verdicts that stages return (`docs/rules.md` rule 1, inputs and outcome)."""

from __future__ import annotations

from typing import NamedTuple

from lb.model.verdict import Verdict as VerdictName


class Verdict(NamedTuple):
    """The outcome of a packet. `reason`: set for drop, reply and hold."""

    name: VerdictName
    reason: str | None = None


FORWARD = Verdict("forward")
PASS = Verdict("pass")


def drop(reason: str) -> Verdict:
    """Return the verdict that discards a packet."""
    return Verdict("drop", reason)


def reply(reason: str) -> Verdict:
    """Return the verdict of a packet that was answered by the balancer."""
    return Verdict("reply", reason)


def hold(reason: str) -> Verdict:
    """Return the verdict that keeps a packet for later."""
    return Verdict("hold", reason)
