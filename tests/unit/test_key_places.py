"""A key of the data path is declared in three files and read in two; what hands it on in between does not name it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from lb.config import Config, FlowsConfig, InterfaceConfig, ServiceConfig
from lb.config.parts import shared_keys
from lb.model.snapshot import Interface, Service, Snapshot, Timeouts

ROOT = Path(__file__).resolve().parent.parent.parent
# What is computed, or read from the kernel where the configuration does not say it.
MADE = {"seed", "interfaces", "services", "name", "mac", "mtu", "addresses"}
# What flows are told apart by, which everything names.
IDENTITY = {"address", "port", "protocol"}
KEYS = sorted(
    {
        *shared_keys(Snapshot, Config),
        *shared_keys(Service, ServiceConfig),
        *shared_keys(Interface, InterfaceConfig),
        *(field.name for field in dataclasses.fields(Timeouts)),
    }
    - MADE
    - IDENTITY
)
CARRIERS = sorted(
    path
    for pattern in (
        "rust/bindings/src/*.rs",
        "python/lb/compiler/*.py",
        "python/lb/config/parts.py",
        "python/lb/net/kernel.py",
    )
    for path in ROOT.glob(pattern)
)


def test_keys_are_those_of_the_data_path() -> None:
    assert {"announce", "on_no_flow", "on_no_server", "transit", "answer_echo", "icmp_rate", "udp_ns"} <= set(KEYS)
    assert len(CARRIERS) > 10


@pytest.mark.parametrize("key", KEYS)
def test_key_is_carried_by_its_name_alone(key: str) -> None:
    """Compiler, kernel reader and bindings name no key that they only hand on."""
    named = [str(path.relative_to(ROOT)) for path in CARRIERS if re.search(rf"\b{key}\b", path.read_text())]
    assert named == []


@pytest.mark.parametrize("key", KEYS)
def test_key_is_declared_once_in_the_data_path(key: str) -> None:
    """One row, from which the struct and its conversion are made."""
    text = (ROOT / "rust/core/src/snapshot.rs").read_text()
    assert len(re.findall(rf"^ +{key}: ", text, re.MULTILINE)) == 1


def test_every_timeout_is_a_key() -> None:
    """They have the key's name, and the unit behind it."""
    timeouts = {field.name.removesuffix("_ns") for field in dataclasses.fields(Timeouts)}
    assert timeouts == set(FlowsConfig.model_fields) - {"capacity", "snapshot", "snapshot_interval"}
