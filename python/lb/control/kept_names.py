"""
What the ids in a flow table mean, as a file beside it: written by one process, believed by the next one only whole.

Used by the state directory (`lb.control.kept`), which says where the files are. Pure: bytes in, names out, and the
translation of another process's ids into those of a snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lb.backends.base import ServerIds
from lb.fields.types import Port, Seed
from lb.model.snapshot import Snapshot

FORMAT = 3
# More than the names of as many servers as ids can tell apart in practice: 1 million take 50 MB.
MOST_BYTES = 64 << 20

Content = TypeVar("Content", bound=BaseModel)

Id = Annotated[int, Field(ge=0, lt=2**32)]
# Of services and servers in a request: more than there are in practice, and few enough for a list of all below.
LowId = Annotated[int, Field(ge=0, lt=2**20)]
Row = TypeVar("Row")
Memory = Literal["file", "map"]


class ServiceRow(NamedTuple):
    """A service: its address, port and protocol, and its name, for people."""

    address: str
    port: Port
    protocol: Literal["tcp", "udp"]
    name: str


class ServerRow(NamedTuple):
    """A server: ids of its service and endpoint, its address and port, and its name, for people."""

    service: Id
    endpoint: Id
    address: str
    port: Port
    name: str


class Ids(NamedTuple):
    """
    What ids that another process gave are in a snapshot.

    Args:
        rows: by server id: service, endpoint and whether they are of UDP, then service, server and endpoint in the
            snapshot; None for a server that it does not have.
        interfaces: by interface id: that of the interface of the same name.
        services: by service id: that of the same service.
    """

    rows: list[ServerIds | None]
    interfaces: list[int | None]
    services: list[int | None]

    @property
    def servers(self) -> list[int | None]:
        """By server id: that of the same server."""
        return [row and row[1][1] for row in self.rows]


class Names(BaseModel):
    """
    What the ids in a table mean.

    Args:
        format: of the file.
        sequence: counts what was written to the directory, by all processes.
        table: which of the directory's two tables.
        memory: whether that is a file of the directory, or a map of the kernel.
        seed: of the snapshot: hashes place flows by it.
        drawn: whether that seed was drawn: one of a configuration ends with it.
        interfaces: names, by id.
        services: address, port, protocol by id; None: no service has it.
        servers: ids of service and endpoint, address, port by id; None: no server has it.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    # Integers in a range, not literals: those would take `true` for 1.
    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]
    sequence: Annotated[int, Field(ge=0, lt=2**63)]
    table: Annotated[int, Field(ge=0, le=1)]
    memory: Memory
    seed: Seed
    drawn: bool
    interfaces: tuple[str, ...]
    services: tuple[ServiceRow | None, ...]
    servers: tuple[ServerRow | None, ...]

    @model_validator(mode="after")
    def _refers_to_services(self) -> Names:
        count = len(self.services)
        if any(row is not None and row.service >= count for row in self.servers):
            raise ValueError("a server of a service that is not there")
        return self

    @classmethod
    def of(cls, snapshot: Snapshot, sequence: int, table: int, drawn: bool = False, memory: Memory = "file") -> Names:
        """Return what the ids of a snapshot mean."""
        return cls(
            format=FORMAT,
            sequence=sequence,
            table=table,
            memory=memory,
            seed=snapshot.seed,
            drawn=drawn,
            interfaces=tuple(interface.name for interface in snapshot.interfaces),
            services=tuple(
                ServiceRow(str(row.address), row.port, row.protocol, row.name) if row else None
                for row in snapshot.services
            ),
            servers=tuple(
                ServerRow(row.service, row.endpoint, str(row.address), row.port, row.name) if row else None
                for row in snapshot.servers
            ),
        )


class NamesPart(BaseModel):
    """What some of the ids in a table mean: those that a few rows have. Arguments: as `Names`, with ids in front."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    interfaces: tuple[str, ...]
    services: tuple[tuple[LowId, ServiceRow], ...]
    servers: tuple[tuple[LowId, ServerRow], ...]

    @classmethod
    def of(cls, names: Names, servers: Iterable[int]) -> NamesPart:
        """Return what the ids of some servers and their services mean, as far as that is known."""
        known = [number for number in servers if number < len(names.servers)]
        rows = [(number, row) for number in known if (row := names.servers[number]) is not None]
        of_services = sorted({row.service for _, row in rows})
        services = [(number, found) for number in of_services if (found := names.services[number]) is not None]
        return cls(interfaces=names.interfaces, services=tuple(services), servers=tuple(rows))

    def names(self) -> Names:
        """Return it as names. Raise ValueError for a server of a service that is not there."""
        rows: dict[str, Any] = {"services": _listed(self.services), "servers": _listed(self.servers)}
        place: dict[str, Any] = {"sequence": 0, "table": 0, "memory": "file"}
        return Names(format=FORMAT, **place, seed=0, drawn=False, interfaces=self.interfaces, **rows)


def _listed(rows: tuple[tuple[int, Row], ...]) -> tuple[Row | None, ...]:
    """Return rows by id. `rows`: each with its id."""
    by_id = dict(rows)
    return tuple(by_id.get(number) for number in range(max(by_id, default=-1) + 1))


def signature(snapshot: Snapshot) -> object:
    """
    Return all that `Names.of` reads of a snapshot: equal when the ids mean the same. Cheap, for every publication:
    no text is made, and addresses that stayed are the same objects.
    """
    return (
        snapshot.seed,
        [interface.name for interface in snapshot.interfaces],
        [row and (row.address, row.port, row.protocol, row.name) for row in snapshot.services],
        [row and (row.service, row.endpoint, row.address, row.port, row.name) for row in snapshot.servers],
    )


def written(content: BaseModel) -> bytes:
    """Return names as a file, or what else is written so: a line of JSON, a line with its checksum."""
    line = content.model_dump_json().encode() + b"\n"
    return line + _checksum(line)


def parsed(data: bytes, kind: type[Content]) -> Content | None:
    """Return what is in a file; None when it is damaged, empty, too large, or of another format. Never raises."""
    line, newline, checksum = data.partition(b"\n")
    if len(data) > MOST_BYTES or checksum != _checksum(line + newline):
        return None
    try:
        return kind.model_validate_json(line)
    except ValueError:
        return None


def _checksum(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest().encode() + b"\n"


class Meanings:
    """
    The ids of a snapshot, by what they mean. Names are for people: they may have changed.

    Args:
        snapshot: the snapshot.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        now = Names.of(snapshot, 0, 0)
        self.services = {row[:3]: number for number, row in enumerate(now.services) if row}
        self.servers = {
            (row.service, row.address, row.port): (number, row.endpoint)
            for number, row in enumerate(now.servers)
            if row
        }
        self.interfaces = {name: number for number, name in enumerate(now.interfaces)}


def translations(names: Names, snapshot: Snapshot) -> Ids:
    """Return what ids that another process gave are in a snapshot."""
    return translated(names, Meanings(snapshot))


def translated(names: Names, meanings: Meanings) -> Ids:
    """Return what ids that another process gave are in the snapshot whose meanings these are."""
    by_service = [meanings.services.get(row[:3]) if row else None for row in names.services]

    def ids_of(row: ServerRow) -> ServerIds | None:
        meaning, service = names.services[row.service], by_service[row.service]
        found = None if service is None else meanings.servers.get((service, row.address, row.port))
        if meaning is None or service is None or found is None:
            return None
        server, endpoint = found
        return (row.service, row.endpoint, meaning.protocol == "udp"), (service, server, endpoint)

    by_server = [ids_of(row) if row else None for row in names.servers]
    return Ids(by_server, [meanings.interfaces.get(name) for name in names.interfaces], by_service)
