"""
The policies by name, and what makes a policy object from a name and options.

Control side of the walk: `config -> policy`. The options of a policy are the fields of its dataclass; pydantic reads
their types, so that a wrong option is reported like any wrong value of a configuration.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from lb.config_fields import CUSTOM_ERROR
from lb.policies.base import BuiltIn, OptionProblem, Policy
from lb.policies.least_connections import LeastConnections
from lb.policies.maglev import Maglev
from lb.policies.random import Random
from lb.policies.round_robin import RoundRobin
from lb.policies.source_hash import SourceHash
from lb.policies.static import Static
from lb.policies.two_choices import TwoChoices

_CLASSES: tuple[type[BuiltIn], ...] = (LeastConnections, Maglev, Random, RoundRobin, SourceHash, Static, TwoChoices)
POLICIES: dict[str, type[BuiltIn]] = {policy.name: policy for policy in _CLASSES}
# Weights are always honoured; the field has names of its own for that.
ALIASES: dict[str, str] = {
    "weighted-least-connections": "least-connections",
    "weighted-random": "random",
    "weighted-round-robin": "round-robin",
}
NAMES: list[str] = sorted([*POLICIES, *ALIASES])


def find(name: str) -> type[BuiltIn] | None:
    """Return a policy's class by its name or alias; None when there is no such policy."""
    return POLICIES.get(ALIASES.get(name, name))


def make(name: str, options: Mapping[str, Any]) -> Policy:
    """
    Make a policy.

    Args:
        name: one of NAMES.
        options: its options by name, as a configuration writes them.

    Raises:
        KeyError: there is no such policy.
        TypeError: it has no such option.
        ValueError: an option has a wrong value.
    """
    policy = POLICIES[ALIASES.get(name, name)]
    if unknown := set(options) - set(option_names(policy)):
        raise TypeError(f"policy {name} has no option {', '.join(sorted(unknown))}")
    return _reader(policy.name).validate_python(dict(options))


def problems(name: str, options: Mapping[str, Any], server_names: Sequence[str]) -> Iterator[OptionProblem]:
    """
    Yield what is wrong with the options of a policy that exists.

    Args:
        name: one of NAMES.
        options: as a configuration writes them.
        server_names: of the service's servers.
    """
    policy = POLICIES[ALIASES.get(name, name)]
    known = option_names(policy)
    for key in options:
        if key not in known:
            yield OptionProblem(key, f"policy {name} has no such option", allowed(key, known), at="key")
    usable = {key: value for key, value in options.items() if key in known}
    try:
        made = _reader(policy.name).validate_python(usable)
    except ValidationError as error:
        yield from (_option_problem(details) for details in error.errors(include_url=False))
    else:
        yield from made.problems(server_names)


def option_names(policy: type[BuiltIn]) -> list[str]:
    """Return the names of a policy's options."""
    return [field.name for field in fields(policy)]


def allowed(word: str, words: Sequence[str]) -> str:
    """Return a hint: the word that was probably meant, or all there are."""
    near = difflib.get_close_matches(word, words, n=1)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"allowed: {', '.join(words)}" if words else "it has no options"


@cache
def _reader(name: str) -> TypeAdapter[BuiltIn]:
    return TypeAdapter(POLICIES[name])


def _option_problem(details: ErrorDetails) -> OptionProblem:
    option = str(details["loc"][0])
    if details["type"] == CUSTOM_ERROR:
        return OptionProblem(option, details["ctx"]["message"], details["ctx"]["hint"])
    return OptionProblem(option, details["msg"])
