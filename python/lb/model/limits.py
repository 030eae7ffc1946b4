"""How much of a thing there may be, where one room has the reason and another must keep to it."""

from __future__ import annotations

# Packet loops of one balancer: more than there are cores to give them.
MOST_WORKERS = 64
# Flows of one table: entries have numbers of 32 bits, and slots of the index several per flow.
MOST_FLOWS = 2**28
# VIPs that several workers serve: 400 IPv6 VIPs make 3 900 instructions of the program that tells the workers' frames
# apart (`lb.net.shard`), and the kernel takes 4 096 (BPF_MAXINSNS).
MOST_VIPS = 400
# Ports of TCP and UDP have 16 bits.
HIGHEST_PORT = 65_535
HIGHEST_WEIGHT = 65_535
