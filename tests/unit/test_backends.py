"""The choice of a backend: nothing slow in silence, every refusal with a way out."""

from __future__ import annotations

import builtins
import errno
import importlib
import inspect
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from types import ModuleType
from typing import Any

import pytest
from helpers import from_client, load_backend, make_datapath, request

import lb.backends
from attaching import attached
from lb.backends import base, sharded
from lb.backends.base import AttachedInterface
from lb.errors import BackendError, LbError


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend that lb._core is not installed, as after FLOWLB_PURE=1."""
    real: Any = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> ModuleType:
        if name == "lb._core":
            raise ModuleNotFoundError("No module named 'lb._core'", name=name)
        module: ModuleType = real(name, *arguments, **named)
        return module

    monkeypatch.delitem(sys.modules, "lb.backends.rust", raising=False)
    monkeypatch.delitem(sys.modules, "lb._core", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    yield
    sys.modules.pop("lb.backends.rust", None)


@pytest.mark.usefixtures("no_extension")
def test_load_rust_without_extension_names_both_ways_out() -> None:
    with pytest.raises(BackendError) as raised:
        lb.backends.load("rust")
    assert "pip install ." in str(raised.value)
    assert "--backend python" in str(raised.value)


@pytest.mark.usefixtures("no_extension")
def test_load_auto_without_extension_warns_and_takes_python(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert lb.backends.load("auto").NAME == "python"
    assert "slower" in caplog.text


def test_load_auto_with_extension_takes_rust(caplog: pytest.LogCaptureFixture) -> None:
    assert (lb.backends.load("auto").NAME, caplog.text) == ("rust", "")


@pytest.mark.parametrize(("name", "message"), [("ebpf", "not in this version"), ("katran", "choose one of auto")])
def test_load_backend_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        lb.backends.load(name)


@pytest.mark.parametrize("name", ["rust", "python"])
def test_backend_module_has_what_the_contract_names(name: str) -> None:
    module = importlib.import_module(f"lb.backends.{name}")
    wanted = {"NAME", "DataPath", "Result", "parse", "checksum", "checksum_update", "flow_hash", "source_hash"}
    assert wanted <= set(module.__all__)
    assert all(hasattr(module, attribute) for attribute in module.__all__)


KEY = bytes(16)
ADDRESS = bytes(4)
WRONG_ARGUMENTS: list[tuple[str, tuple[Any, ...], type[Exception]]] = [
    ("flow_hash", (-1, ADDRESS, ADDRESS, 1, 1, 6), ValueError),
    ("flow_hash", (2**64, ADDRESS, ADDRESS, 1, 1, 6), ValueError),
    ("flow_hash", (1, ADDRESS, ADDRESS, -1, 1, 6), ValueError),
    ("flow_hash", (1, ADDRESS, ADDRESS, 1, 65536, 6), ValueError),
    ("flow_hash", (1, ADDRESS, ADDRESS, 1, 1, 256), ValueError),
    ("flow_hash", (1, bytes(5), ADDRESS, 1, 1, 6), ValueError),
    ("flow_hash", (1, "198.18.1.1", ADDRESS, 1, 1, 6), TypeError),
    ("flow_hash", (1.0, ADDRESS, ADDRESS, 1, 1, 6), TypeError),
    ("source_hash", (-1, ADDRESS), ValueError),
    ("source_hash", (1, b""), ValueError),
    ("source_hash", (1, None), TypeError),
    ("checksum", (b"", -1), ValueError),
    ("checksum", (b"", 2**64), ValueError),
    ("checksum", (b"", "1"), TypeError),
    ("checksum", (3,), TypeError),
    ("checksum", (bytearray(2),), TypeError),
    ("checksum_update", (70000, ADDRESS, ADDRESS), ValueError),
    ("checksum_update", (-1, ADDRESS, ADDRESS), ValueError),
    ("checksum_update", (0, b"1", b"1"), ValueError),
    ("checksum_update", (0, 2, 2), TypeError),
    ("parse", (3,), TypeError),
    ("parse", (None,), TypeError),
    ("DataPath", (16, KEY, -1), ValueError),
    ("DataPath", (16, KEY, 2**64), ValueError),
    ("DataPath", (16, KEY, "1"), TypeError),
    ("DataPath", (16, KEY[1:], 1), ValueError),
    ("DataPath", (16, "sixteen letters!", 1), TypeError),
    ("DataPath", (-1, KEY, 1), ValueError),
    ("DataPath", (0, KEY, 1), LbError),
    ("DataPath", (2**28 + 1, KEY, 1), LbError),
]


@pytest.mark.parametrize(("name", "arguments", "error"), WRONG_ARGUMENTS, ids=str)
def test_wrong_argument_raises_the_same_on_both(
    backend: str, name: str, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    """A wrong type is a TypeError, a value out of range a ValueError, whichever backend is asked."""
    with pytest.raises(Exception) as raised:
        getattr(load_backend(backend), name)(*arguments)
    assert raised.type is error


@pytest.mark.parametrize("frame", [3, "text", bytearray(60)], ids=str)
def test_process_frame_that_is_no_bytes_is_refused(backend: str, frame: Any) -> None:
    """A number of bytes, or bytes that may change, are no frame."""
    path = make_datapath(backend)
    with pytest.raises(TypeError):
        path.process(frame, 0, 1)
    with pytest.raises(TypeError):
        path.process_many([frame], 0, 1)


def test_result_repr_is_the_same_on_both(backend: str) -> None:
    """It names what became of the frame, and the sizes of what is sent instead of its bytes."""
    dropped = make_datapath(backend).process(b"", 0, 1)
    assert repr(dropped) == (
        "Result(verdict='drop', reason='frame_truncated', direction=None, service=None, server=None, out=[])"
    )
    forwarded = make_datapath(backend).process(bytes(from_client(request())), 0, 1)
    size = len(forwarded.out[0][1])
    assert repr(forwarded) == (
        "Result(verdict='forward', reason=None, direction='forward', service='web', server='server1', "
        f"out=[(eth0, {size} bytes)])"
    )


def test_start_with_wrong_descriptor_raises_oserror(backend: str) -> None:
    """A descriptor that is closed, or is no socket, shows at the start, and leaves the data path usable."""
    path = make_datapath(backend)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    news = os.eventfd(0)
    closed = os.dup(news)
    os.close(closed)
    with closing(near), closing(far):
        for sockets, notify_fd, number in (
            ([closed], news, errno.EBADF),
            ([near.fileno(), -1], news, errno.EBADF),
            ([news], news, errno.ENOTSOCK),
            ([near.fileno()], closed, errno.EBADF),
        ):
            with pytest.raises(OSError) as raised:
                path.attach(attached(sockets), notify_fd)
            assert (raised.value.errno, raised.value.strerror) == (number, os.strerror(number))
        path.attach(attached([near.fileno()]), news)
        path.detach()
    os.close(news)


def test_backend_capabilities_are_true(backend: str) -> None:
    """What a backend says of itself shows in what its data path does; each aspect and measurement has its name."""
    can = load_backend(backend).capabilities()
    path = make_datapath(backend)
    assert can.exact <= base.ASPECTS
    assert set(can.polls) <= set(base.POLLS)
    assert (path.memory() is not None) == can.promises_memory
    assert can.offline == (path.process(bytes(from_client(request())), 0, 1).verdict == "forward")
    measured = path.measurements(1)["web"]["server1"]
    assert can.not_measured <= set(measured)


@pytest.mark.parametrize("contract", [base.Engine, base.Attachment])
def test_backend_data_path_has_every_method_of_the_contract(backend: str, contract: type) -> None:
    """With the arguments that the contract names, in its order; so has what makes one data path of several."""
    methods = {name: call for name, call in vars(contract).items() if inspect.isfunction(call) and name[0] != "_"}
    assert methods
    for name, call in methods.items():
        expected = list(inspect.signature(call).parameters)
        assert list(inspect.signature(getattr(load_backend(backend).DataPath, name)).parameters) == expected, name
        assert hasattr(sharded.Sharded, name), name


def test_sharded_capabilities_leave_out_what_workers_do_not_share(backend: str) -> None:
    """Each worker has rounds of its own, and only the kernel can deal it frames."""
    one = load_backend(backend).capabilities()
    can = sharded.capabilities(one)
    assert can.exact == one.exact - {"placement"}
    assert not can.offline
    path = sharded.Sharded(load_backend(backend).DataPath, 2, 16, KEY, 1)
    with pytest.raises(LbError, match="from sockets only"):
        path.process(b"", 0, 1)
    port = AttachedInterface("eth0", (0, 1), direct=2)
    assert not can.sends_directly
    with pytest.raises(ValueError, match="one worker only"):
        path.attach([port], 0)
