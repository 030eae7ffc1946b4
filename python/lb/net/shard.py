"""
The worker of a frame: chosen by its client's address, in the kernel, before the frame is queued.

Start of the packet walk when there are several workers. Each has its own flow table, so both directions of a flow,
every fragment of its packets and every ICMP error about them have to come to the same one. The client's address is in
all of them: the source of what goes to a VIP, the destination of what does not, and in an ICMP error to a VIP the
destination of the packet that it quotes. `program` makes the classic BPF program by which a worker's packet sockets
hear its own frames only (`SO_ATTACH_FILTER`, socket(7)); `worker_of` tells the same of one address, for who asks where
a client's flows are. Both are pure.

A program per socket, not one for a group of sockets (`PACKET_FANOUT`): a group numbers its sockets anew when one of
them gives up its receive ring, and the two directions of a flow would part.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import xor
from typing import NamedTuple, TypeAlias

from lb.model.snapshot import Address

# 2^32 divided by the golden ratio: addresses that follow one another lie far apart (Knuth, TAOCP 3, 6.4).
MULTIPLIER = 0x9E3779B1

ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q, ETH_P_8021AD = 0x0800, 0x86DD, 0x8100, 0x88A8
ETHERNET, IPV4, IPV6, ICMP = 14, 20, 40, 8
ICMP_ERRORS = (3, 11, 12)
ICMPV6_ERRORS = (1, 2, 3, 4)
# linux/bpf_common.h, linux/filter.h. LOAD: A = frame[X + k]; LOAD_H_AT: A = frame[k]; LENGTH: A = bytes of the frame.
LOAD_W, LOAD_B, LOAD_H_AT, LENGTH = 0x40, 0x50, 0x28, 0x80
LOADX, LOADX_M, STORE, STOREX, TO_X = 0x01, 0x61, 0x02, 0x03, 0x07
MUL, AND, LSH, RSH, ADD_X, SUB_X, XOR_X = 0x24, 0x54, 0x64, 0x74, 0x0C, 0x1C, 0xAC
JUMP, IF_EQUAL, IF_NOT_LESS, RETURN = 0x05, 0x15, 0x35, 0x06
WHOLE = 0xFFFFFFFF


class Instruction(NamedTuple):
    """`struct sock_filter`: operation, jumps if true and if false, operand."""

    code: int
    jt: int
    jf: int
    k: int


# Instructions in a row that are left by returning, or at their end where it is said.
Block: TypeAlias = tuple[Instruction, ...]
NOTHING: Block = (Instruction(RETURN, 0, 0, 0),)


def worker_of(client: Address, workers: int) -> int:
    """Return the number of the worker that has the flows of a client, 0 to `workers` - 1."""
    hashed = reduce(xor, _words(client)) * MULTIPLIER % 2**32
    return (hashed >> 16) * workers >> 16


def program(vips: Iterable[Address], workers: int, worker: int) -> Block:
    """
    Return the program that lets the frames of one worker through.

    What is no IP, or too short to tell, belongs to worker 0. The kernel has taken the outermost VLAN tag off; X is 4
    behind a second one.

    Args:
        vips: at most `lb.model.limits.MOST_VIPS`.
        workers: how many there are.
        worker: the number of this one.
    """
    return _Maker(workers, worker).program(sorted(set(vips), key=lambda vip: (vip.version, vip.packed)))


class _Maker:
    """Makes the parts of a program that end with a verdict."""

    def __init__(self, workers: int, worker: int) -> None:
        self._workers = workers
        self._worker = worker
        self._untold = (_op(RETURN, WHOLE if worker == 0 else 0),)

    def program(self, vips: list[Address]) -> Block:
        """Return the whole program."""
        tagged = (*self._require(ETHERNET + 4), _op(LOADX, 4), _op(LOAD_H_AT, 16))
        destination4, destination6 = ETHERNET + 16, ETHERNET + 24
        four = _if_vip(
            [vip for vip in vips if vip.version == 4], destination4, self._to_vip4(), self._deal4(destination4)
        )
        six = _if_vip(
            [vip for vip in vips if vip.version == 6], destination6, self._to_vip6(), self._deal6(destination6)
        )
        return (
            _op(LOADX, 0),
            _op(LOAD_H_AT, 12),
            Instruction(IF_EQUAL, 1, 0, ETH_P_8021Q),
            Instruction(IF_EQUAL, 0, len(tagged), ETH_P_8021AD),
            *tagged,
            *_when(ETH_P_IP, (*self._require(ETHERNET + IPV4), *four)),
            *_when(ETH_P_IPV6, (*self._require(ETHERNET + IPV6), *six)),
            *self._untold,
        )

    def _to_vip4(self) -> Block:
        """RFC 791 3.1, RFC 792: after the header, whose length is told, the type, and 8 bytes on the inner packet."""
        source = self._deal4(ETHERNET + 12)
        error = (*self._require(ETHERNET + ICMP + IPV4), *self._deal4(ETHERNET + ICMP + 16))
        length = (_op(STOREX, 0), _op(LOAD_B, ETHERNET), _op(AND, 15), _op(LSH, 2), _op(ADD_X), _op(TO_X))
        kind = (*self._require(ETHERNET + 1), _op(LOAD_B, ETHERNET))
        icmp = (*length, *kind, *_when_any(ICMP_ERRORS, error), _op(LOADX_M, 0), *source)
        return (_op(LOAD_B, ETHERNET + 9), *_when(1, icmp), *source)

    def _to_vip6(self) -> Block:
        """RFC 8200 3, RFC 4443 2.1. An error behind extension headers counts as any packet: it finds no flow then."""
        source = self._deal6(ETHERNET + 8)
        inner = ETHERNET + IPV6 + ICMP
        error = (*self._require(inner + IPV6), *self._deal6(inner + 24))
        kind = (*self._require(ETHERNET + IPV6 + 1), _op(LOAD_B, ETHERNET + IPV6))
        return (_op(LOAD_B, ETHERNET + 6), *_when(58, (*kind, *_when_any(ICMPV6_ERRORS, error), *source)), *source)

    def _require(self, size: int) -> Block:
        """Continue when the frame has `size` bytes beside X. A load beyond its end would drop it for all workers."""
        return (_op(LENGTH), _op(SUB_X), Instruction(IF_NOT_LESS, 1, 0, size), *self._untold)

    def _deal4(self, offset: int) -> Block:
        """Give the verdict by the IPv4 address at an offset."""
        return (_op(LOAD_W, offset), *self._deal())

    def _deal6(self, offset: int) -> Block:
        """Give the verdict by the IPv6 address at an offset: by its words, one over the other."""
        stored = tuple(step for word in range(3) for step in (_op(LOAD_W, offset + 4 * word), _op(STORE, word)))
        folded = tuple(step for word in range(3) for step in (_op(LOADX_M, word), _op(XOR_X)))
        return (*stored, _op(LOAD_W, offset + 12), *folded, *self._deal())

    def _deal(self) -> Block:
        """Give the verdict by what is in A: `worker_of`."""
        hashed = (_op(MUL, MULTIPLIER), _op(RSH, 16), _op(MUL, self._workers), _op(RSH, 16))
        return (*hashed, Instruction(IF_EQUAL, 0, 1, self._worker), _op(RETURN, WHOLE), _op(RETURN, 0))


def _words(address: Address) -> list[int]:
    packed = address.packed
    return [int.from_bytes(packed[at : at + 4]) for at in range(0, len(packed), 4)]


def _op(code: int, k: int = 0) -> Instruction:
    return Instruction(code, 0, 0, k)


def _when(value: int, then: Block) -> Block:
    """Run `then` when A has a value, else continue. By a long jump: a conditional jump reaches 255 instructions."""
    return (Instruction(IF_EQUAL, 1, 0, value), _op(JUMP, len(then)), *then)


def _if_vip(vips: list[Address], offset: int, then: Block, otherwise: Block) -> Block:
    """Run `then` when the address at an offset is one of the VIPs."""
    tests: Block = ()
    # From the last one: each has to know how far it is to `then`.
    for vip in reversed(vips):
        tests = (*_test(_words(vip), offset, len(tests) + len(otherwise)), *tests)
    return tests + otherwise + then


def _test(words: list[int], offset: int, distance: int) -> Block:
    """Jump over `distance` instructions when these words are at an offset, else continue."""
    found: Block = (_op(JUMP, distance),)
    for number, word in enumerate(words):
        found = (_op(LOAD_W, offset + 4 * number), Instruction(IF_EQUAL, 0, len(found), word), *found)
    return found


def _when_any(values: Iterable[int], then: Block) -> Block:
    return tuple(instruction for value in values for instruction in _when(value, then))
