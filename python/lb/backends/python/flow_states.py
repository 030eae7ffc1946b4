"""The states of a flow by name, for the flow table, the TCP rules and the measures (`docs/datapath.md` rule 8)."""

from __future__ import annotations

SYN_SENT = "syn-sent"
SYN_RECEIVED = "syn-received"
ESTABLISHED = "established"
CLOSING = "closing"
UDP = "udp"
# Unconfirmed: one side alone has spoken. TCP that began before us and was placed again by a hash; UDP without answer.
PICKUP = "pickup"
UDP_UNREPLIED = "udp-unreplied"

# Also the order in which their lists are searched for expired flows.
STATES = (SYN_SENT, SYN_RECEIVED, ESTABLISHED, CLOSING, UDP, PICKUP, UDP_UNREPLIED)
# Those that count for a server: neither over nor unconfirmed.
ACTIVE = frozenset({SYN_SENT, SYN_RECEIVED, ESTABLISHED, UDP})

# Who spoke last: nobody yet, the client, who waits for the server, the server; or the flow is over.
FRESH, ASKED, ANSWERING, OVER = "fresh", "asked", "answering", "over"
