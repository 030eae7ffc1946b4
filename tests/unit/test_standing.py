"""From one process to the next (rule 23.3, what stands beside the configuration)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_controller import INTERFACES, config, extra, server
from test_kept import folder as folder
from test_kept import full

from lb.compiler.compile import Compiler
from lb.compiler.edits import with_health, with_override, with_server, without_server
from lb.compiler.spec import HealthStatus, Override, ServerKey, Spec, services
from lb.config import Config
from lb.control.kept import STANDINGS, StateDirectory
from lb.control.kept_names import Names, parsed, written
from lb.control.standing import Standing, restored

CHECKED = '[service.health]\ncheck = "tcp"'
BEFORE = config(CHECKED, server(1), server(2), server(3, "weight = 5"))


def key(number: int) -> ServerKey:
    """Return the names of a server."""
    return ServerKey("video", f"server{number}")


def restart(spec: Spec, now: Config) -> Spec:
    """Return the spec that a process begins with after one that had this spec."""
    standing = parsed(written(Standing.of(spec)), Standing)
    assert standing is not None
    return restored(now, standing, Names.of(Compiler().compile(spec, INTERFACES), 1, 0))


def shown(spec: Spec) -> dict[str, tuple[str, int, str, bool]]:
    """Return each server's state, weight, health and whether it was removed."""
    (service,) = services(spec)
    return {each.name: (each.state, each.weight, each.health, each.is_removed) for each in service.servers}


def changed() -> Spec:
    """Return a spec with one of everything."""
    spec = with_override(Spec(BEFORE), key(1), Override("draining", None, "drained by operator"))
    spec = with_override(spec, key(3), Override(None, 9))
    spec = with_health(spec, key(2), HealthStatus("down", reason="refused"))
    return with_server(spec, "video", extra(4))


def test_all_stands_while_the_file_is_the_same() -> None:
    spec = changed()
    assert restart(spec, BEFORE) == spec
    less = without_server(without_server(spec, key(1)), key(4))
    after = restart(less, BEFORE)
    assert (after.overrides, after.health, after.withdrawn) == (less.overrides, less.health, less.withdrawn)
    assert {each.identity for each in after.removed_servers} == {each.identity for each in less.removed_servers}


def test_file_wins_where_it_has_changed() -> None:
    """As a reload does: an override goes with the value that changed, an added server is a removed one then."""
    spec = changed()
    now = config(CHECKED, server(1), server(2), server(3, "weight = 6"))
    assert shown(restart(spec, now)) == {
        "server1": ("draining", 1, "up", False),
        "server2": ("active", 1, "down", False),
        "server3": ("active", 6, "up", False),
        "server4": ("draining", 1, "up", True),
    }
    now = config(CHECKED, server(1, 'state = "disabled"'), server(3, "weight = 5"))
    assert shown(restart(spec, now)) == {
        "server1": ("disabled", 1, "up", False),
        "server3": ("active", 9, "up", False),
        "server2": ("draining", 1, "up", True),
        "server4": ("draining", 1, "up", True),
    }


def test_server_removed_by_the_operator_is_back_with_another_file() -> None:
    spec = without_server(Spec(BEFORE), key(1))
    assert "server1" not in {name for name, row in shown(restart(spec, BEFORE)).items() if not row[3]}
    assert shown(restart(spec, config(CHECKED, server(1), server(2))))["server1"] == ("active", 1, "up", False)


@pytest.mark.parametrize("now", [config(CHECKED, server(2, octet=7)), config(server(2))], ids=["moved", "unchecked"])
def test_server_is_not_down_where_another_machine_has_its_name_or_nobody_checks_it(now: Config) -> None:
    assert shown(restart(changed(), now))["server2"][2] == "up"


def test_service_that_is_gone_keeps_its_servers_as_removed_ones() -> None:
    after = restart(changed(), config(server(1, octet=9), port=1))
    (present, gone) = services(after)
    assert (present.is_removed, gone.is_removed) == (False, True)
    assert {each.name for each in gone.servers} == {"server1", "server2", "server3", "server4"}
    # And once more: what was a removed server is one still.
    again = restart(after, config(server(1, octet=9), port=1))
    assert {each.identity for each in again.removed_servers} == {each.identity for each in after.removed_servers}


def test_drawn_seed_is_no_other_configuration() -> None:
    seeded = BEFORE.model_copy(update={"seed": 7})
    spec = with_server(Spec(seeded), "video", extra(4))
    assert restart(spec, BEFORE).added == spec.added


def test_nothing_known_is_the_configuration_alone() -> None:
    assert restored(BEFORE, None, None) == Spec(BEFORE)


GOOD = json.loads(Standing.of(changed()).model_dump_json())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
    max_leaves=8,
)


def read(content: Any) -> Standing | None:
    """Return what is made of a file with the right checksum."""
    line = json.dumps(content).encode() + b"\n"
    return parsed(line + hashlib.sha256(line).hexdigest().encode() + b"\n", Standing)


@given(st.dictionaries(st.sampled_from([*GOOD]), JSON, min_size=1))
def test_file_with_other_values_is_believed_or_not(change: dict[str, Any]) -> None:
    """Never an error; and what is believed can be applied."""
    found = read({**GOOD, **change})
    if found is not None:
        restored(BEFORE, found, None)


@pytest.mark.parametrize("table", ["", "{}", '{"name": 1}', '{"name": "a b", "address": "198.18.1.9", "port": 1}'])
def test_added_server_that_makes_no_sense_is_left_out(table: str) -> None:
    found = read({**GOOD, "added": [{"service": "video", "table": table}]})
    assert found is not None
    assert restored(BEFORE, found, None).added == {}


def begun(folder: Path, spec: Spec) -> StateDirectory:
    """Return the state directory of a process that forwards."""
    state = StateDirectory.open(folder)
    state._is_keeping = True
    state.begin(Compiler().compile(spec, INTERFACES), spec)
    return state


def test_last_of_two_files_is_believed_and_a_damaged_one_leaves_the_one_before(folder: Path) -> None:
    state = begun(folder, Spec(BEFORE))
    spec = with_override(Spec(BEFORE), key(1), Override("draining"))
    state.note_standing(spec)
    last = with_override(spec, key(2), Override("disabled"))
    state.note_standing(last)
    state.close()
    again = StateDirectory.open(folder)
    assert again.standing_left is not None
    assert restored(BEFORE, again.standing_left, None).overrides == last.overrides
    newest = max(STANDINGS, key=lambda name: json.loads((folder / name).read_bytes().splitlines()[0])["sequence"])
    again.close()
    (folder / newest).write_bytes(b"x")
    again = StateDirectory.open(folder)
    assert again.standing_left is not None
    assert restored(BEFORE, again.standing_left, None).overrides == spec.overrides
    again.close()


def test_change_without_news_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = changed()
    state = begun(folder, spec)
    monkeypatch.setattr(Standing, "of", None)
    state.note_standing(with_health(spec, key(3), HealthStatus("up", ramp=0.5)))
    state.close()


def test_change_that_cannot_be_written_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The change is made all the same; the next one that can be written has it."""
    state = begun(folder, Spec(BEFORE))
    written_to = os.pwrite
    monkeypatch.setattr(os, "pwrite", full)
    spec = with_override(Spec(BEFORE), key(1), Override("draining"))
    state.note_standing(spec)
    (record,) = caplog.records
    assert (
        "the last change would not survive a restart: no space left on device: make room on the file system"
        in record.message
    )
    monkeypatch.setattr(os, "pwrite", written_to)
    state.note_standing(spec)
    state.close()
    again = StateDirectory.open(folder)
    assert restored(BEFORE, again.standing_left, None).overrides == spec.overrides
    again.close()
