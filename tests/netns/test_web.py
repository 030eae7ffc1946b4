"""A video chunk from each kind of web server, through the VIP to a client."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPResponse

import pytest
from realhosts import WEB_PORT, connect, running_balancer, running_testbed

from lb.lab.testbed import apache
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP, VIP6

CHUNK = "vod/1000Seg2-Frag7"
SERVERS = {"server1", "server2", "server3"}


@pytest.fixture(scope="module", params=["apache", "built-in"])
def web_hosts(request: pytest.FixtureRequest, unique: str, backend: str) -> Iterator[Testbed]:
    """Give a testbed with this kind of web server, and a balancer in its router."""
    wants_apache = request.param == "apache"
    if wants_apache and apache.find() is None:
        pytest.skip("Apache is not installed")
    with running_testbed(f"{unique}w-", use_apache=wants_apache) as testbed, running_balancer(testbed, backend):
        yield testbed


def _fetch(testbed: Testbed, vip: object) -> tuple[str | None, bytes]:
    """Fetch the chunk in client1 over a connection of its own. Returns the server's name and the body."""
    with connect(testbed, "client1", WEB_PORT, vip) as client:
        client.sendall(f"GET /{CHUNK} HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n".encode())
        with HTTPResponse(client) as response:
            response.begin()
            assert response.status == 200
            return response.headers["X-Served-By"], response.read()


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["ipv4", "ipv6"])
def test_chunk_through_vip_arrives_whole_from_each_server(web_hosts: Testbed, vip: object) -> None:
    """Three fetches are answered by the three servers in turn, each with the chunk as it lies on its disk."""
    fetched = [_fetch(web_hosts, vip) for _ in SERVERS]
    assert {name for name, _ in fetched} == SERVERS
    assert {body for _, body in fetched} == {(web_hosts.directory / "www" / CHUNK).read_bytes()}
