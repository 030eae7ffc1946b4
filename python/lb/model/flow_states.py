"""The states of a flow by name (`docs/rules.md` rule 8, flows)."""

from __future__ import annotations

# Two are unconfirmed, only one side has sent: TCP that began before the balancer and was picked up; UDP without an
# answer. One-way: TCP whose replies take another way.
FLOW_STATES = ("syn-sent", "syn-received", "established", "closing", "udp", "pickup", "udp-unreplied", "one-way")
