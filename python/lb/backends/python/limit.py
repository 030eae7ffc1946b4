"""
Token buckets: the rate limit of packets that the balancer makes (RFC 1812 4.3.2.8, RFC 4443 2.4 f), one bucket per kind
of packet, so that a flood that provokes one kind starves no other; and that of new flows, one bucket per source prefix.

The first is applied last, when an answer is about to be sent, the other before a flow is placed. The form is the
generic cell rate algorithm: a bucket is the time at which it will be full again, so neither a token count nor a refill
is needed.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import Literal, TypeAlias, get_args

from lb.model.snapshot import NewFlowLimit
from lb.packet.hashing import as_16_bytes, siphash24

SECOND_NS = 10**9


Kind: TypeAlias = Literal["time_exceeded", "too_big", "unreachable", "echo", "reset", "no_flow"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class TokenBucket:
    """A bucket that refills at a rate. It starts full."""

    def __init__(self) -> None:
        self.full_at_ns = 0

    def take(self, rate: int, burst: int, now_ns: int) -> bool:
        """
        Take a token.

        Args:
            rate: tokens per second; 0 gives none.
            burst: the most that can be saved. What was taken while this was more counts as an empty bucket at most.
            now_ns: monotonic nanoseconds.

        Returns:
            Whether there was one.
        """
        if rate == 0:
            return False
        token_ns = SECOND_NS // rate
        self.full_at_ns = min(max(self.full_at_ns, now_ns), now_ns + burst * token_ns)
        has_token = self.full_at_ns - now_ns <= (burst - 1) * token_ns
        self.full_at_ns += token_ns if has_token else 0
        return has_token


class RateLimiter:
    """
    The buckets of all kinds: ICMP time exceeded, too big, other unreachables, echo replies; TCP resets that refuse a
    new flow, and those that answer a segment of no flow.
    """

    def __init__(self) -> None:
        self.buckets: dict[Kind, TokenBucket] = {kind: TokenBucket() for kind in KINDS}

    def take(self, kind: Kind, rate: int, now_ns: int) -> bool:
        """Take a token of a kind. `rate`: tokens per second of each kind, also the most that can be saved."""
        return self.buckets[kind].take(rate, rate, now_ns)


# Sets of buckets, and buckets in each: a fixed number.
SETS, WAYS = 1 << 14, 4


class NewFlowLimiter:
    """
    The buckets of source prefixes, of all services that have a limit.

    A prefix has a place in the set that a keyed hash says, so that nobody can choose whom to share it with. In a full
    set it takes the place of the bucket that is full again first: an error lets more flows in, never fewer.

    Args:
        hash_key: 16 secret bytes.
    """

    def __init__(self, hash_key: bytes) -> None:
        self.key: tuple[int, int] = struct.unpack("<QQ", hash_key)
        self.sets: defaultdict[int, list[tuple[int, TokenBucket]]] = defaultdict(
            lambda: [(0, TokenBucket()) for _ in range(WAYS)]
        )

    def take(self, service: int, client: bytes, limit: NewFlowLimit, now_ns: int) -> bool:
        """
        Take a token for a new flow.

        Args:
            service: its id.
            client: its address.
            limit: of the service.
            now_ns: monotonic nanoseconds.

        Returns:
            Whether the client's prefix had one.
        """
        known = self.hash(service, client, limit)
        ways = self.sets[known % SETS]
        bucket = next((bucket for prefix, bucket in ways if prefix == known), None)
        if bucket is None:
            bucket = TokenBucket()
            ways[min(range(WAYS), key=lambda way: ways[way][1].full_at_ns)] = (known, bucket)
        return bucket.take(limit.rate, limit.burst, now_ns)

    def hash(self, service: int, client: bytes, limit: NewFlowLimit) -> int:
        """Return what stands for a prefix of a service: one of 2^64."""
        spared = 32 - limit.prefix_ipv4 if len(client) == 4 else 128 - limit.prefix_ipv6
        prefix = int.from_bytes(as_16_bytes(client), "big") >> spared << spared
        return siphash24(*self.key, prefix.to_bytes(16, "big") + struct.pack("!I", service))
