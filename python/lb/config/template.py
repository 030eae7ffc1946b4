"""The configuration that `lb init` writes: every key, with its default and what it means."""

from __future__ import annotations

import os
import pathlib

from lb.errors import LbError

TEMPLATE = """\
# flowlb configuration. `lb check` validates it, `lb config schema` prints its JSON Schema.
# Durations carry a unit: "500ms", "30s", "2h". Commented keys show their defaults.

# backend = "auto"          # auto | rust | python
# transit = "drop"          # packets of no service: drop | forward (route them on, as a router would)
# seed = 1                  # of placement; the same on balancers that must agree, and where flows must survive a
                            #   restart (maglev, source-hash). Without: drawn at start; the log and `lb status` show it
# answer_echo = false       # answer pings to a VIP
# icmp_rate = 1000          # ICMP and RST packets that the balancer itself may send per second, of each kind
# poll = "adaptive"         # while no packet comes: look again for 0.1 ms where that pays (adaptive), always (busy: one
                            #   core for the lowest latency), or sleep at once (sleep); read at start, by backend rust
# workers = 1               # packet loops, each on a core of its own, with the flows of its share of the clients;
                            #   read at start

# check_concurrency = 512   # health checks under way at a time, of all services together
# flow_log = false          # a line in the log for each flow that is over

# [metrics]                 # serve them for Prometheus; without this table they are not served
# address = "127.0.0.1"
# port = 9464

# [flows]
# capacity = 262144         # flows remembered at once; the memory is taken at start
# half_open = "30s"         # idle time (from 1s) after which a flow is forgotten: TCP before it is established,
# established = "7440s"     #   while it is,
# closing = "120s"          #   and after both sides closed it
# udp = "300s"
# idle_floor = "60s"        # flows idle for less than this are never given up for new ones

[[interface]]               # one is enough: in and out through the same wire
name = "eth0"
# announce = false          # answer ARP and neighbour solicitations for the VIPs
# mac = "aa:aa:aa:00:00:01" # mac, addresses and mtu are read from the kernel; `lb replay` needs them written
# addresses = ["198.18.1.1/24"]
# mtu = 1500
# transmit = "queue"        # direct (backend rust): to the driver, faster, past traffic shaping and tcpdump

[[service]]
name = "video"
address = "198.18.1.100"    # the VIP, IPv4 or IPv6: an address that no host has
port = 9876
# protocol = "tcp"          # tcp | udp
# policy = "round-robin"    # or least-connections, maglev, ... or { name = "maglev", table_size = 65537 }
# on_no_server = "reset"    # what a client gets when no server is available: reset | drop
# on_no_flow = "drop"       # what a client gets for TCP of a flow that is not known: reset | drop
# health = { check = "http", path = "/", expect = "200-399", interval = "1s", timeout = "500ms", fall = 3, rise = 2 }
                            # or by connects alone, check tcp; keys port and slow_start too. Without: no checks
                            # interval and timeout: from 10ms to 24h, slow_start from 100ms to 24h
# on_server_down = "reset"  # what the flows of a server get when checks say it is down: reset | keep
# drain_timeout = "60s"     # how long a draining server keeps its flows: then UDP flows move to another one, and TCP
                            #   flows are reset. Default: udp 60s, tcp until they end

  [[service.server]]
  name = "server1"
  address = "198.18.1.31"
  port = 8031
  # weight = 1              # 0..65535, the share of new flows; 0: none
  # state = "active"        # active | draining | disabled (the last two: no new flows)
  # mac = "aa:aa:aa:00:00:31" # else the kernel's neighbour table is asked

  [[service.server]]
  name = "server2"
  address = "198.18.1.32"
  port = 8032
"""


def write_template(path: pathlib.Path, *, overwrite: bool) -> None:
    """
    Write the template to a file.

    Raises:
        LbError: the file is there and `overwrite` is not set, or it cannot be written.
    """
    try:
        # Whatever the umask: a file that its group can write is not believed (`lb.privileges.trust`).
        with open(path, "w" if overwrite else "x", encoding="utf-8", opener=_open_0644) as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise LbError(f"{path} is there already: --force overwrites it") from None
    except OSError as error:
        raise LbError(f"{path} cannot be written: {error.strerror}") from error


def _open_0644(name: str, flags: int) -> int:
    return os.open(name, flags, 0o644)
