"""
How long and how much a run measures. Two sets: the default one, within five minutes on two cores, and `--quick`, within
one.
"""

from __future__ import annotations

from dataclasses import dataclass

from lb.lab.bench.catalogue import CONTESTANTS, MEASURES

DEFAULT_PREFIX = "lb-bench-"


@dataclass(frozen=True, slots=True)
class Settings:
    """
    What one run does.

    Args:
        measures, contestants: by name, in order.
        turns: how often each contestant is measured.
        load_s: seconds of each load (requests, connections, bulk, latency); whole, for wrk counts so.
        flood_s, paced_s: seconds of packets as fast as possible, and of packets at `paced_pps` at most.
        flows: source ports of the packets.
        idle_s: seconds without traffic.
        memory_flows: flows to fill a table with, by backend.
        connections: of the load at once.
        latency_hz: exchanges per second of the latency measure.
        seed: draws the order of the contestants in each turn.
    """

    measures: tuple[str, ...] = MEASURES
    contestants: tuple[str, ...] = CONTESTANTS
    turns: int = 3
    load_s: int = 2
    flood_s: float = 1.0
    paced_s: float = 1.0
    paced_pps: float = 100_000.0
    flows: int = 1000
    idle_s: float = 5.0
    memory_flows: tuple[tuple[str, int], ...] = (("rust", 1_000_000), ("python", 50_000))
    connections: int = 50
    latency_hz: float = 200.0
    prefix: str = DEFAULT_PREFIX
    seed: int = 1


def quick(prefix: str = DEFAULT_PREFIX) -> Settings:
    """Return the settings of `--quick`."""
    return Settings(
        turns=1,
        load_s=1,
        flood_s=0.5,
        paced_s=0.5,
        idle_s=2.0,
        memory_flows=(("rust", 100_000), ("python", 10_000)),
        prefix=prefix,
    )
