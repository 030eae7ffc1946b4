"""
What the clients' fetches and the balancer's counters add up to, and how `lb run --testbed` shows it.

Only sums and text: `live.py` reads the pipes and the control socket.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lb.lab.loadgen.records import Fetch, Record
from lb.model.units import count

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(slots=True)
class ServerTally:
    """Fetches that one server answered. `duration_s`: their times added up; `flows`: as the balancer counts them."""

    fetches: int = 0
    duration_s: float = 0.0
    flows: int = 0

    @property
    def mean_ms(self) -> float:
        """Mean time of a fetch in milliseconds; 0 without one."""
        return self.duration_s / self.fetches * 1000 if self.fetches else 0.0


@dataclass(slots=True)
class Tally:
    """The sum of everything. `balancer`: packets by what became of them."""

    servers: dict[str, ServerTally]
    failures: int = 0
    last_failure: str = ""
    balancer: dict[str, int] = field(default_factory=dict)

    @property
    def fetches(self) -> int:
        """Fetches that succeeded."""
        return sum(server.fetches for server in self.servers.values())

    @property
    def mean_ms(self) -> float:
        """Mean time of a fetch in milliseconds, over all servers."""
        total_s = sum(server.duration_s for server in self.servers.values())
        return total_s / self.fetches * 1000 if self.fetches else 0.0

    def add(self, record: Record) -> None:
        """Count one record of a load client."""
        if not isinstance(record, Fetch):
            return
        if not record.ok:
            self.failures += 1
            self.last_failure = record.error
            return
        server = self.servers.setdefault(record.server, ServerTally())
        server.fetches += 1
        server.duration_s += record.duration_s

    def take_status(self, status: dict[str, Any]) -> None:
        """Take over what the balancer says about itself: `lb status -o json`."""
        flows: Counter[str] = Counter()
        for service in status["services"]:
            for server in service["servers"]:
                flows[server["name"]] += server["flows_created"]
        for name, created in flows.items():
            self.servers.setdefault(name, ServerTally()).flows = created
        counters = status["counters"]
        verdicts: dict[str, int] = counters["verdicts"]
        self.balancer = {
            "received": counters["rx_packets"],
            "forwarded": verdicts.get("forward", 0),
            "replied": sum(times for name, times in verdicts.items() if name.startswith("reply.")),
            "dropped": sum(times for name, times in verdicts.items() if name.startswith("drop.")),
        }

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return a row of text per server: name, fetches, share, mean time, flows."""
        total = self.fetches
        return [
            (
                name,
                count(each.fetches),
                f"{each.fetches / total:.1%}" if total else "-",
                f"{each.mean_ms:.1f}",
                count(each.flows),
            )
            for name, each in sorted(self.servers.items())
        ]

    def line(self, elapsed_s: float) -> str:
        """Return the state as one line."""
        servers = "  ".join(f"{name} {count(each.fetches)}" for name, each in sorted(self.servers.items()))
        failures = f"failures {count(self.failures)}"
        return f"{elapsed_s:5.1f} s  {servers}  {failures}  mean {self.mean_ms:.1f} ms  {self.packets()}"

    def packets(self) -> str:
        """Return the balancer's packet counts as text."""
        return "packets " + (", ".join(f"{count(times)} {name}" for name, times in self.balancer.items()) or "unknown")


COLUMNS = ("server", "fetches", "share", "mean ms", "flows")


def plain_table(tally: Tally) -> str:
    """Return the table as aligned text."""
    row = "{:<10}{:>9}{:>9}{:>10}{:>9}"
    lines = [row.format(*COLUMNS), *(row.format(*cells) for cells in tally.rows())]
    return "\n".join([*lines, *footer(tally)])


def footer(tally: Tally) -> list[str]:
    """Return what stands below the table."""
    failures = f"{count(tally.fetches)} fetches, {count(tally.failures)} failures"
    return [failures + (f" (last: {tally.last_failure})" if tally.failures else ""), tally.packets()]


def rich_table(tally: Tally, elapsed_s: float) -> Table:
    """Return the table for a terminal."""
    from rich.table import Table

    table = Table(title=f"fetches per server, after {elapsed_s:.0f} s", caption="\n".join(footer(tally)))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "server" else "right")
    for cells in tally.rows():
        table.add_row(*cells)
    return table
