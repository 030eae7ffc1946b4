"""The states of a flow by name, for the flow table, the TCP rules and the measures (`docs/datapath.md` rule 8)."""

from __future__ import annotations

SYN_SENT = "syn-sent"
SYN_RECEIVED = "syn-received"
ESTABLISHED = "established"
CLOSING = "closing"
UDP = "udp"
