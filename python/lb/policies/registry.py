"""
The policies by name, and what makes a policy object from a name and options.

Control side of the walk: `config -> policy`. The options of a policy are the fields of its dataclass; pydantic reads
their types, so that a wrong option is reported like any wrong value of a configuration. A name that is none of ours
means a user's policy: a file (`./mine.py:MyPolicy`) or an entry point.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lb.errors import PolicyError
from lb.fields.types import CUSTOM_ERROR
from lb.policies import user
from lb.policies.adaptive import Adaptive
from lb.policies.base import BuiltIn, OptionProblem, Policy
from lb.policies.least_connections import LeastConnections
from lb.policies.loader import digest_of, installed_names, is_file, load_class
from lb.policies.maglev import Maglev
from lb.policies.random import Random
from lb.policies.round_robin import RoundRobin
from lb.policies.source_hash import SourceHash
from lb.policies.static import Static
from lb.policies.two_choices import TwoChoices

_CLASSES: tuple[type[BuiltIn], ...] = (
    Adaptive,
    LeastConnections,
    Maglev,
    Random,
    RoundRobin,
    SourceHash,
    Static,
    TwoChoices,
)
POLICIES: dict[str, type[BuiltIn]] = {policy.name: policy for policy in _CLASSES}
# Weights are always honoured; in the field those variants have their own names.
ALIASES: dict[str, str] = {
    "weighted-least-connections": "least-connections",
    "weighted-random": "random",
    "weighted-round-robin": "round-robin",
}
NAMES: list[str] = sorted([*POLICIES, *ALIASES])
HERE = Path()


class OptionsError(PolicyError):
    """Options of a policy are wrong. `problems`: all of them; one without an option is about the policy itself."""

    def __init__(self, name: str, problems: list[OptionProblem]) -> None:
        words = (f"{problem.option}: {problem.message}".removeprefix(": ") for problem in problems)
        super().__init__(f"policy {name}: {'; '.join(words)}")
        self.problems = problems


def make(name: str, options: Mapping[str, Any], base: Path = HERE) -> Policy:
    """
    Make a policy.

    Args:
        name: one of NAMES, `FILE.py:CLASS`, or the name of an entry point.
        options: its options by name, as a configuration writes them.
        base: the folder that a relative FILE starts from.

    Raises:
        OptionsError: an option does not exist or has a wrong value.
        PolicyError: there is no such policy, or it cannot be loaded.
    """
    if (ours := _ours(name)) is not None:
        _require_known(name, options, option_names(ours))
        return _read(name, ours.name, options)
    found = load_class(name, base)
    return _wrap(name, found, options, digest_of(name, base))


def problems(
    name: str, options: Mapping[str, Any], server_names: Sequence[str], base: Path = HERE
) -> Iterator[OptionProblem]:
    """
    Yield what is wrong with a policy and its options; one without an option is about the policy itself.

    Args:
        name: as of `make`.
        options: as of `make`.
        server_names: of the service's servers.
        base: as of `make`.
    """
    if _ours(name) is None and not is_file(name) and name not in installed_names():
        yield OptionProblem("", f'unknown policy "{name}"', allowed(name, [*NAMES, *installed_names()]))
        return
    try:
        made = make(name, options, base)
    except OptionsError as error:
        yield from error.problems
    except PolicyError as error:
        yield OptionProblem("", str(error))
    else:
        yield from made.problems(server_names)


def is_own(name: str) -> bool:
    """Tell whether a policy of this name is one of lb's."""
    return _ours(name) is not None


def is_users(name: str) -> bool:
    """Tell whether a name means a policy of a user's, in a file or an installed package: loading it runs its code."""
    return not is_own(name) and (is_file(name) or name in installed_names())


def option_names(policy: type[BuiltIn]) -> list[str]:
    """Return the names of a policy's options."""
    return [field.name for field in fields(policy)]


def allowed(word: str, words: Sequence[str]) -> str:
    """Return a hint: the word that was probably meant, or all there are."""
    near = difflib.get_close_matches(word, words, n=1)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"allowed: {', '.join(words)}" if words else "it has no options"


def _ours(name: str) -> type[BuiltIn] | None:
    return POLICIES.get(ALIASES.get(name, name))


def wrap(policy: type[object] | object, options: Mapping[str, Any]) -> Policy:
    """
    Make a policy of a user's class or object.

    Args:
        policy: a class, to be made with the options, or an object that is made already.
        options: as a configuration writes them.

    Raises:
        OptionsError: an option does not exist or has a wrong value.
        PolicyError: the class raises.
    """
    if isinstance(policy, BuiltIn):
        return policy
    if isinstance(policy, type) and issubclass(policy, BuiltIn):
        return make(policy.name, options)
    name = getattr(policy, "__name__", type(policy).__name__)
    return _wrap(name, policy, options)


def _wrap(name: str, policy: type[object] | object, options: Mapping[str, Any], digest: str = "") -> Policy:
    theirs = {key: value for key, value in options.items() if key not in user.SETTINGS}
    settings = _settings(name, {key: value for key, value in options.items() if key in user.SETTINGS})
    known = user.option_names(policy) if isinstance(policy, type) else []
    if known is not None:
        _require_known(name, theirs, known, [*known, *user.SETTINGS])
    try:
        made = user.instantiate(policy, theirs) if isinstance(policy, type) else policy
    except ValidationError as error:
        raise _options_error(name, error) from error
    return user.UserPolicy(name, made, settings, make(settings.fallback, {}), digest)


def _settings(name: str, options: Mapping[str, Any]) -> user.Settings:
    try:
        settings = TypeAdapter(user.Settings).validate_python(dict(options))
    except ValidationError as error:
        raise _options_error(name, error) from error
    if settings.fallback not in NAMES:
        problem = OptionProblem(
            "fallback", f'"{settings.fallback}" is not a policy of lb', allowed(settings.fallback, NAMES)
        )
        raise OptionsError(name, [problem])
    return settings


def _require_known(
    name: str, options: Mapping[str, Any], known: Sequence[str], shown: Sequence[str] | None = None
) -> None:
    hints = known if shown is None else shown
    wrong = [key for key in options if key not in known]
    if wrong:
        found = [
            OptionProblem(key, f"policy {name} has no such option", allowed(key, hints), at="key") for key in wrong
        ]
        raise OptionsError(name, found)


def _read(name: str, canonical: str, options: Mapping[str, Any]) -> Policy:
    try:
        return _reader(canonical).validate_python(dict(options))
    except ValidationError as error:
        raise _options_error(name, error) from error


@cache
def _reader(name: str) -> TypeAdapter[BuiltIn]:
    return TypeAdapter(POLICIES[name])


def _options_error(name: str, error: ValidationError) -> OptionsError:
    found = []
    for details in error.errors(include_url=False):
        option = str(details["loc"][0]) if details["loc"] else ""
        if details["type"] == CUSTOM_ERROR:
            found.append(OptionProblem(option, details["ctx"]["message"], details["ctx"]["hint"]))
        else:
            found.append(OptionProblem(option, details["msg"]))
    return OptionsError(name, found)
