"""The states of a flow by name, for the flow table, the TCP rules and the measures (`docs/rules.md` rule 8, flows)."""

from __future__ import annotations

SYN_SENT = "syn-sent"
SYN_RECEIVED = "syn-received"
ESTABLISHED = "established"
CLOSING = "closing"
UDP = "udp"
# Unconfirmed, only one side has sent: TCP that began before the balancer and was picked up; UDP without answer.
PICKUP = "pickup"
UDP_UNREPLIED = "udp-unreplied"

# Also the order in which their lists are searched for expired flows.
STATES = (SYN_SENT, SYN_RECEIVED, ESTABLISHED, CLOSING, UDP, PICKUP, UDP_UNREPLIED)
# States that count as active: neither over nor unconfirmed.
ACTIVE = frozenset({SYN_SENT, SYN_RECEIVED, ESTABLISHED, UDP})

# Phase of a flow: no data yet; the client has sent a request; the server is answering; the flow is over.
FRESH, ASKED, ANSWERING, OVER = "fresh", "asked", "answering", "over"
