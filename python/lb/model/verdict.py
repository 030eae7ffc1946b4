"""
What may become of a packet, and the reasons and events that are counted: the words that all backends share.

A packet ends with exactly one verdict; `docs/datapath.md` rule 1 says how they add up, rule 13 what counts as what.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["forward", "reply", "drop", "pass", "hold"]
Direction: TypeAlias = Literal["forward", "reply"]

DROP_REASONS: tuple[str, ...] = (
    "frame_truncated",
    "own_frame",
    "bad_source_mac",
    "not_for_us",
    "vlan_depth",
    "vlan",
    "bad_arp",
    "ip_truncated",
    "ip_version",
    "ip_header_length",
    "ip_checksum",
    "ip_total_length",
    "ip_options",
    "source_route",
    "ext_header",
    "ext_header_limit",
    "routing_header",
    "l2_broadcast",
    "martian_source",
    "martian_destination",
    "spoofed_server",
    "bad_offload",
    "fragment_length",
    "fragment_tiny",
    "fragment_limit",
    "fragment_refused",
    "fragment_overlap",
    "fragment_duplicate",
    "fragment_evicted",
    "fragment_timeout",
    "l4_truncated",
    "l4_protocol",
    "tcp_data_offset",
    "tcp_flags",
    "udp_length",
    "udp_checksum_zero",
    "port_zero",
    "no_service",
    "no_server",
    "no_flow",
    "rst_window",
    "hairpin",
    "flow_conflict",
    "server_echo",
    "vip_echo",
    "icmp_fragment",
    "icmp_checksum",
    "icmp_redirect",
    "icmp_type",
    "icmp_inner",
    "icmp_about_icmp",
    "icmp_no_flow",
    "transit",
    "ttl_exceeded",
    "too_big",
    "no_route",
    "neighbour_unresolved",
    "neighbour_timeout",
    "rate_limited",
)
REPLY_REASONS: tuple[str, ...] = (
    "arp",
    "nd",
    "echo",
    "ttl_exceeded",
    "too_big",
    "no_server",
    "no_flow",
    "hairpin",
    "flow_conflict",
    "table_full",
    "no_route",
    "neighbour_unresolved",
    "neighbour_timeout",
)
HOLD_REASONS: tuple[str, ...] = ("fragment", "neighbour", "ask")

EVENTS: tuple[str, ...] = (
    "flow_hit",
    "flow_miss",
    "flow_created",
    "flow_expired",
    "flow_closed",
    "flow_reused",
    "flow_orphaned",
    "flow_evicted_unconfirmed",
    "flow_evicted_half_open",
    "flow_evicted_closing",
    "flow_evicted_idle",
    "flow_stateless",
    "flow_reset",
    "flow_moved",
    "direct_evicted",
    "ask_fallback",
)
