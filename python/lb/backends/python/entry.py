"""One flow: what the table keeps of it, and of each side of its TCP connection (`docs/rules.md` rule 8, flows)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lb.backends.python.flow_states import ACTIVE, CLOSING, FRESH, SYN_RECEIVED, SYN_SENT
from lb.model.verdict import Direction
from lb.packet.tcp import MOST_SCALE

# (client address, client port, service id); (endpoint id, client address, client port).
ForwardKey: TypeAlias = tuple[bytes, int, int]
ReplyKey: TypeAlias = tuple[int, bytes, int]


@dataclass(slots=True)
class Window:
    """
    The largest window that one side of a TCP connection has advertised: `raw` shifted by `scale`; as it is made, 2^30
    for a side that is `unheard`. `offers_scale`: its SYN did, and the other's is not known yet.
    """

    raw: int = 1
    scale: int = 30
    offers_scale: bool = False
    unheard: bool = True

    @property
    def size(self) -> int:
        """Bytes."""
        return self.raw << self.scale

    def hear(self, window: int) -> None:
        """Note the window of a segment without SYN: a scale that is unknown counts as the largest (RFC 7323 2.3)."""
        if self.unheard:
            self.raw, self.scale, self.unheard = 0, MOST_SCALE, False
        self.raw = max(self.raw, window)

    def offer(self, window: int, scale: int | None) -> None:
        """Note the window of a SYN, which is never scaled, and the scale it offers."""
        if self.unheard:
            self.raw, self.scale, self.unheard = 0, 0, False
        self.raw = max(self.raw, window)
        if scale is not None:
            self.offers_scale = True
            self.scale = max(self.scale, min(scale, MOST_SCALE))

    def settle(self, scaled: bool) -> None:
        """Note whether windows are scaled from now on; what was advertised before was not."""
        if not scaled:
            self.scale = 0
        self.raw = -(-self.raw >> self.scale)
        self.offers_scale = False


class Entry:
    """
    One flow.

    Of each side of a TCP connection, None while unknown: `snd_nxt`, the end of what it has sent, `rcv_nxt`, what it has
    acknowledged, `windows`, the largest it has advertised; `data_ahead`, whether there may be a gap before `snd_nxt`;
    `fin`, whether it has said that it is done, `fin_ahead`, that it has, ahead of what was seen: `snd_nxt` is the
    number after that FIN then; `closed_by_one`: the FIN of one side has closed it. `syn`: the number after the client's
    last SYN; `syn_again`, `syn_scale`, `syn_end`: that is another than the one that counts, and offered this, and its
    data end there. `answered`, `answer_scale`: the server has answered that one and offered this; `syn` is the number
    after its SYN instead. `expected`: the number after the client's first SYN, from the server's SYN+ACK on that after
    the server's. `ingress`: (interface id, MAC) of the neighbour that the client's packets come from. `tagged`: its
    first frame had a VLAN tag. `phase`, `stamp`: what it waits for and since when (`measure.py`).
    """

    __slots__ = (
        "answer_scale",
        "answered",
        "bytes",
        "client",
        "client_port",
        "closed_by_one",
        "data_ahead",
        "endpoint",
        "expected",
        "fin",
        "fin_ahead",
        "ingress",
        "last_seen_ns",
        "linked_ns",
        "phase",
        "rcv_nxt",
        "server",
        "service",
        "snd_nxt",
        "stamp",
        "state",
        "syn",
        "syn_again",
        "syn_end",
        "syn_scale",
        "tagged",
        "windows",
    )

    def __init__(
        self, client: bytes, client_port: int, service: int, server: int, endpoint: int, state: str, now_ns: int
    ) -> None:
        self.client = client
        self.client_port = client_port
        self.service = service
        self.server = server
        self.endpoint = endpoint
        self.state = state
        self.last_seen_ns = now_ns
        self.linked_ns = now_ns
        self.ingress: tuple[int, bytes] | None = None
        self.tagged = False
        self.phase = FRESH
        self.stamp = 0
        self.snd_nxt: dict[Direction, int | None] = {"forward": None, "reply": None}
        self.rcv_nxt: dict[Direction, int | None] = {"forward": None, "reply": None}
        self.windows: dict[Direction, Window] = {"forward": Window(), "reply": Window()}
        self.syn = 0
        self.syn_again = False
        self.syn_scale: int | None = None
        self.syn_end = 0
        self.answered = False
        self.answer_scale: int | None = None
        self.expected: int | None = None
        self.fin: dict[Direction, bool] = {"forward": False, "reply": False}
        self.fin_ahead: dict[Direction, bool] = {"forward": False, "reply": False}
        self.data_ahead: dict[Direction, bool] = {"forward": False, "reply": False}
        self.closed_by_one = False
        self.bytes: dict[Direction, int] = {"forward": 0, "reply": 0}

    @property
    def forward_key(self) -> ForwardKey:
        """What finds it from the client's side."""
        return self.client, self.client_port, self.service

    @property
    def reply_key(self) -> ReplyKey:
        """What finds it from the server's side."""
        return self.endpoint, self.client, self.client_port

    def forget_sides(self) -> None:
        """Note that nothing is known of either side any more, and neither has sent a FIN."""
        self.snd_nxt = {"forward": None, "reply": None}
        self.rcv_nxt = {"forward": None, "reply": None}
        self.windows = {"forward": Window(), "reply": Window()}
        self.fin = {"forward": False, "reply": False}
        self.fin_ahead = {"forward": False, "reply": False}
        self.data_ahead = {"forward": False, "reply": False}
        self.syn_again = self.answered = self.closed_by_one = False

    def has_gap(self, direction: Direction) -> bool:
        """Tell whether a FIN or data is noted ahead of what a side has sent without a gap."""
        return self.fin_ahead[direction] or self.data_ahead[direction]

    def known_snd_nxt(self, direction: Direction) -> int | None:
        """Return the end of what a side is known to have sent without a gap."""
        if not self.has_gap(direction):
            return self.snd_nxt[direction]
        if self.state == SYN_RECEIVED and direction == "reply":
            return self.expected
        return self.rcv_nxt["reply" if direction == "forward" else "forward"]

    def latest_snd_nxt(self, direction: Direction) -> int | None:
        """
        Return the next sequence number of a side by its last segment, believed or not: a client in syn-sent may have
        begun another attempt.
        """
        retries = direction == "forward" and self.state == SYN_SENT and self.syn_again
        return self.syn_end if retries else self.snd_nxt[direction]

    def is_over(self, any_replies: bool) -> bool:
        """
        Tell whether it is closed so that a SYN may begin another in its place. `any_replies`: where replies come to any
        balancer, a side that was not seen to close may continue.
        """
        return self.state == CLOSING and (not any_replies or all(self.fin.values()))

    @property
    def is_active(self) -> bool:
        """Whether it counts for its server."""
        return self.state in ACTIVE
