"""
The rate limit of packets that the balancer makes (RFC 1812 4.3.2.8, RFC 4443 2.4 f): one token bucket per kind of
packet, so that a flood that provokes one kind starves no other.

Applied last, when an answer is about to be sent. The form is the generic cell rate algorithm: a bucket is the time at
which it will be full again, so neither a token count nor a refill is needed.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

SECOND_NS = 10**9


Kind: TypeAlias = Literal["time_exceeded", "too_big", "unreachable", "echo", "reset", "no_flow"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class TokenBucket:
    """A bucket of `rate` tokens that refills at `rate` per second. It starts full."""

    def __init__(self) -> None:
        self.full_at_ns = 0

    def take(self, rate: int, now_ns: int) -> bool:
        """
        Take a token.

        Args:
            rate: tokens per second, also the most that can be saved; 0 gives none.
            now_ns: monotonic nanoseconds.

        Returns:
            Whether there was one.
        """
        if rate == 0:
            return False
        token_ns = SECOND_NS // rate
        self.full_at_ns = max(self.full_at_ns, now_ns)
        if self.full_at_ns - now_ns > (rate - 1) * token_ns:
            return False
        self.full_at_ns += token_ns
        return True


class RateLimiter:
    """
    The buckets of all kinds: ICMP time exceeded, too big, other unreachables, echo replies; TCP resets that refuse a
    new flow, and those that answer a segment of no flow.
    """

    def __init__(self) -> None:
        self.buckets: dict[Kind, TokenBucket] = {kind: TokenBucket() for kind in KINDS}

    def take(self, kind: Kind, rate: int, now_ns: int) -> bool:
        """Take a token of a kind; arguments as of `TokenBucket.take`. `rate` is that of each kind."""
        return self.buckets[kind].take(rate, now_ns)
