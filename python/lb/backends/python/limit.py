"""
The limit on packets we make ourselves (RFC 1812 4.3.2.8, RFC 4443 2.4 f): a token bucket kept as one instant.

Asked last by `pipeline`, when everything else about an answer is settled. The form is the generic cell rate algorithm:
`tat` is when the bucket will be full again, so neither a token count nor a refill is needed.
"""

from __future__ import annotations

SECOND_NS = 10**9


class RateLimiter:
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
