"""IP protocol numbers of the protocols that a service may have (IANA, Assigned Internet Protocol Numbers)."""

from __future__ import annotations

from lb.packet import tcp, udp

# By the name that the configuration and the snapshot use.
PROTOCOLS = {"tcp": tcp.PROTOCOL, "udp": udp.PROTOCOL}
