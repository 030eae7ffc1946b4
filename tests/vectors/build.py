"""
Write the vectors: one JSON file per topic, the base setup, the golden placement hashes. Run by hand: `make vectors`.

The files are committed, so that tests read them without scapy. See README.md in this folder for their format.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from scene import BASE, Case, flow_tuple, hash_flow, hash_source, placement_key, siphash24, sixteen  # noqa: E402
from topics import (  # noqa: E402
    any_replies,
    arp_nd,
    ethernet,
    flows,
    fragments,
    icmp,
    ip,
    limits,
    mtu,
    next_hop,
    offload,
    reset,
    selectors,
    tcp,
    transit,
    udp,
)

TOPICS = {
    "ethernet": ethernet.cases,
    "arp_nd": arp_nd.cases,
    "ipv4": ip.ipv4,
    "ipv6": ip.ipv6,
    "tcp": tcp.cases,
    "udp": udp.cases,
    "icmp": icmp.cases,
    "fragments": fragments.cases,
    "flows": flows.cases,
    "selectors": selectors.cases,
    "next_hop": next_hop.cases,
    "mtu": mtu.cases,
    "offload": offload.cases,
    "transit": transit.cases,
    "limits": limits.cases,
    "reset": reset.cases,
    "any_replies": any_replies.cases,
}


def dump(step: Any) -> str:
    """Return one line of JSON without the keys that say nothing."""
    if isinstance(step, dict):
        step = {key: value for key, value in step.items() if value is not None and not (key == "out" and value == [])}
    return json.dumps(step, separators=(",", ":"))


def render(case: Case) -> str:
    """Return a vector with one step per line."""
    made = case.as_json()
    head = "".join(f'  "{key}": {dump(made[key])},\n' for key in ("name", "origin", "rules", "setup"))
    steps = ",\n".join(f"   {dump(step)}" for step in made["steps"])
    return f' {{\n{head}  "steps": [\n{steps}\n  ]\n }}'


def hashes() -> dict[str, Any]:
    """Make golden values of the placement hash: SipHash-2-4 as published, then addresses and flows under seeds."""
    key = bytes(range(16))
    published = [
        {"key": key.hex(), "message": bytes(range(n)).hex(), "hash": f"{siphash24(key, bytes(range(n))):016x}"}
        for n in range(64)
    ]
    placements = []
    clients = [
        ("198.51.100.7", "198.18.1.100"),
        ("0.0.0.1", "255.255.255.255"),
        ("2001:db8::7", "2001:2:0:1::100"),
        ("::1:0:0:1", "ff::"),
    ]
    for seed in (0, 1, 2026, 2**32, 2**64 - 1):
        for client, vip in clients:
            for sport, vport, protocol in ((40000, 9876, 6), (1, 65535, 17)):
                placements.append(
                    {
                        "seed": seed,
                        "key": placement_key(seed).hex(),
                        "client": client,
                        "vip": vip,
                        "client_port": sport,
                        "vip_port": vport,
                        "protocol": protocol,
                        "source_bytes": sixteen(client).hex(),
                        "hash_source": f"{hash_source(seed, client):016x}",
                        "flow_bytes": flow_tuple(client, vip, sport, vport, protocol).hex(),
                        "hash_flow": f"{hash_flow(seed, client, vip, sport, vport, protocol):016x}",
                    }
                )
    return {
        "origin": "SipHash: a fast short-input PRF, appendix A; docs/rules.md rule 8, flows. Checked against OpenSSL.",
        "siphash24": published,
        "placements": placements,
    }


def main() -> None:
    """Write all files."""
    packets = 0
    for topic, cases in TOPICS.items():
        made = cases()
        packets += sum("in" in step for case in made for step in case.steps)
        (HERE / f"{topic}.json").write_text("[\n" + ",\n".join(render(case) for case in made) + "\n]\n")
        print(f"{topic}: {len(made)} vectors", file=sys.stderr)
    (HERE / "base.json").write_text(json.dumps(BASE, indent=1) + "\n")
    golden = hashes()
    rows = {key: ",\n".join(f"  {dump(row)}" for row in golden[key]) for key in ("siphash24", "placements")}
    text = ",\n".join(f' "{key}": [\n{value}\n ]' for key, value in rows.items())
    (HERE / "hash.json").write_text(f'{{\n "origin": {json.dumps(golden["origin"])},\n{text}\n}}\n')
    print(f"{packets} packets", file=sys.stderr)


if __name__ == "__main__":
    main()
