"""The states of a flow by name, for the flow table, the TCP rules and the measures (`docs/rules.md` rule 8, flows)."""

from __future__ import annotations

from lb.model.flow_states import FLOW_STATES

SYN_SENT, SYN_RECEIVED, ESTABLISHED, CLOSING, UDP, PICKUP, UDP_UNREPLIED, ONE_WAY = FLOW_STATES
# Also the order in which their lists are searched for expired flows.
STATES = FLOW_STATES
# States that count as active: neither over nor unconfirmed.
ACTIVE = frozenset({SYN_SENT, SYN_RECEIVED, ESTABLISHED, UDP, ONE_WAY})

# Phase of a flow: no data yet; the client has sent a request; the server is answering; the flow is over.
FRESH, ASKED, ANSWERING, OVER = "fresh", "asked", "answering", "over"
