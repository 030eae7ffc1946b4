"""
What is measured, as data: the measures a user can name, and the figures each of them gives.

Values are stored in the base unit of `Metric.unit`; `scale` and `digits` only say how people read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """
    One figure.

    Args:
        measure: the measure that gives it.
        unit: of the stored values.
        better: whether more or less of it is better.
        shown_unit: what people read; a stored value divided by `scale`.
        digits: after the point, when shown.
        relative: whether a contestant's figure is a multiple of routing's (`ratio`) or something on top (`added`), or
            stands alone.
        agreement: the largest difference between turns, as a share of their median, with which it is still a figure;
            None: any.
    """

    name: str
    measure: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    shown_unit: str
    scale: float = 1.0
    digits: int = 0
    relative: Literal["ratio", "added", "alone"] = "ratio"
    agreement: float | None = None

    def show(self, value: float) -> str:
        """Return a value as people read it, without its unit."""
        return f"{value / self.scale:.{self.digits}f}"


METRICS: tuple[Metric, ...] = (
    Metric("keepalive", "keepalive", "Keep-alive requests", "1/s", "higher", "k/s", 1e3, 1),
    Metric("connections", "connections", "New connections", "1/s", "higher", "k/s", 1e3, 2),
    Metric("bulk", "bulk", "1 MB responses", "bytes/s", "higher", "GB/s", 1e9, 2),
    Metric("packets", "packets", "60-byte packets, straight path", "1/s", "higher", "Mpps", 1e6, 3),
    Metric(
        "cpu_per_packet", "packets", "CPU time per packet, with its sender", "s", "lower", "ns", 1e-9, 0, agreement=0.1
    ),
    Metric("connect_p50", "latency", "Connect, p50", "s", "lower", "us", 1e-6, 1, "added"),
    Metric("connect_p99", "latency", "Connect, p99", "s", "lower", "us", 1e-6, 1, "added"),
    Metric("request_p50", "latency", "Small request, p50", "s", "lower", "us", 1e-6, 1, "added"),
    Metric("request_p99", "latency", "Small request, p99", "s", "lower", "us", 1e-6, 1, "added"),
    Metric("memory_per_flow", "memory", "Memory per flow", "bytes", "lower", "bytes", 1, 1, "alone"),
    Metric("idle_cpu", "idle", "CPU when idle", "cores", "lower", "% of a core", 0.01, 2, "alone"),
)
MEASURES: tuple[str, ...] = tuple(dict.fromkeys(metric.measure for metric in METRICS))
CONTESTANTS: tuple[str, ...] = ("routing", "nft", "haproxy", "python", "rust", "direct")
ROUTING = "routing"


def metric(name: str) -> Metric:
    """Return the metric of this name. Raise KeyError when there is none."""
    return {each.name: each for each in METRICS}[name]
