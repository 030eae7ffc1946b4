"""
Users' policies, isolated so that packets flow even when they fail.

The user's class has `plan(service, servers, measurements) -> Plan`, or `choose(flow, servers) -> server`, or both: then
the plan decides while `choose` has no answer. `plan` runs on a separate thread with a deadline, and its result is
checked; when it fails, the last good plan stays in use, without the servers that are no longer eligible. `choose` is
called by the data path (selector `ask`), which has its own deadline.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter, signature
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lb.errors import PolicyError
from lb.fields.key import keys_of, option
from lb.fields.types import AskDeadline, PlanInterval, Text
from lb.model.snapshot import ASK_DEADLINE_NS, SELECTORS, AskFunction, Plan
from lb.policies.base import Measurements, NewFlow, OptionProblem, Policy, ServerView, eligible
from lb.policies.executor import DeadlineExecutor
from lb.policies.loader import describe

INTERVAL_NS = 10**9
PLAN_DEADLINE_S = 1.0
MAX_PLAN_SLOTS = 2**24

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The options that every user's policy has."""

    deadline: AskDeadline = option("Time in which `choose` must answer; new flows wait for it", default=ASK_DEADLINE_NS)
    interval: PlanInterval = option("Time between calls of `plan` while nothing changes", default=INTERVAL_NS)
    fallback: Text = option("Policy that decides when this one gives no answer", default="round-robin")


SETTINGS = tuple(sorted(declared.name for declared in keys_of(Settings)))


@dataclass(slots=True)
class Failures:
    """Failures of a policy. `count`: calls that failed; `last`: the message of the last one."""

    count: int = 0
    last: str | None = None


class UserPolicy:
    """
    A user's policy behind the interface of `Policy`.

    Args:
        name: as in the configuration.
        user: the user's object.
        settings: the options that lb handles.
        fallback: decides when the user's object fails.
        digest: of the file it was loaded from; empty without a file.
    """

    def __init__(self, name: str, user: object, settings: Settings, fallback: Policy, digest: str = "") -> None:
        self.name = name
        self.user = user
        self.settings = settings
        self.digest = digest
        self.failures = Failures()
        self._fallback = fallback
        self._executor = DeadlineExecutor(f"lb-plan {name}")
        self._good: dict[str, Plan] = {}

    @property
    def interval_ns(self) -> int | None:
        """How often it plans again, nanoseconds; None: only when something changes."""
        return self.settings.interval if self._has("plan") else None

    @property
    def asks(self) -> bool:
        """Whether it is asked about each new flow."""
        return self._has("choose")

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return the user's plan, or the last good one, or the fall-back's. Never raises."""
        plan = self._safe_plan(service, servers, measurements)
        if not self.asks:
            return plan
        slots = tuple(server.id for server in eligible(servers))
        return Plan("ask", slots, fallback=plan, deadline_ns=self.settings.deadline)

    def close(self) -> None:
        """End its thread; the policy is not used any more."""
        self._executor.close()

    def problems(self, server_names: Sequence[str]) -> Iterator[OptionProblem]:
        """Yield the invalid options, if the user's object has a method that checks them."""
        if self._has("problems"):
            yield from self.user.problems(server_names)  # type: ignore[attr-defined]

    def picker(self, service: str, servers: Sequence[ServerView]) -> AskFunction:
        """Return the function that the data path calls for each new flow: it calls `choose`, and raises its errors."""
        by_name = {server.name: server for server in servers}
        return functools.partial(self._choose, service, by_name)

    def _choose(
        self, service: str, by_name: Mapping[str, ServerView], _: str, client: str, port: int, names: Sequence[str]
    ) -> str | None:
        candidates = [by_name[name] for name in names if name in by_name]
        try:
            chosen = self.user.choose(NewFlow(service, client, port), candidates)  # type: ignore[attr-defined]
            name = chosen.name if isinstance(chosen, ServerView) else chosen
            if not isinstance(name, str) or name not in names:
                raise PolicyError(f"choose returned {chosen!r}, which is none of the given servers")
        except Exception as error:
            self._fail(service, error)
            raise
        return name

    def _safe_plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        if not self._has("plan"):
            return self._fallback.plan(service, servers, measurements)
        ask = functools.partial(self.user.plan, service, list(servers), measurements)  # type: ignore[attr-defined]
        try:
            plan = require_usable(self._executor.call(ask, PLAN_DEADLINE_S), servers)
        except Exception as error:
            self._fail(service, error)
            good = self._good.get(service)
            rest = None if good is None else restricted(good, servers)
            return rest or self._fallback.plan(service, servers, measurements)
        self._good[service] = plan
        return plan

    def _fail(self, service: str, error: Exception) -> None:
        self.failures.count += 1
        words = str(error) if isinstance(error, PolicyError) else describe(error)
        if words != self.failures.last:
            log.warning("service %s: policy %s failed: %s", service, self.name, words)
        self.failures.last = words

    def _has(self, method: str) -> bool:
        return callable(getattr(self.user, method, None))


def require_usable(plan: object, servers: Sequence[ServerView]) -> Plan:
    """
    Return the result of a user's `plan`, if a backend can use it.

    Raises:
        PolicyError: it is no plan, or it places flows on servers that are not eligible.
    """
    if not isinstance(plan, Plan):
        raise PolicyError(f"plan returned {type(plan).__name__}, not a Plan")
    if plan.selector not in SELECTORS or plan.selector == "ask":
        raise PolicyError(f"plan returned the selector {plan.selector!r}: choose one of the others, or define `choose`")
    slots, scores = tuple(plan.slots), tuple(plan.scores)
    if len(slots) > MAX_PLAN_SLOTS:
        raise PolicyError(f"plan returned {len(slots)} slots, at most {MAX_PLAN_SLOTS} are allowed")
    allowed = {server.id for server in eligible(servers)}
    if wrong := set(slots) - allowed:
        raise PolicyError(f"plan returned slots of servers that take no flows: {sorted(map(str, wrong))[:5]}")
    if scores and len(scores) != len(slots):
        raise PolicyError(f"plan returned {len(scores)} scores for {len(slots)} slots")
    if not all(type(score) is int and 0 < score < 2**64 for score in scores):
        raise PolicyError("plan returned a score that is not a whole number in 1..2**64-1")
    return Plan(plan.selector, slots, scores)


def restricted(plan: Plan, servers: Sequence[ServerView]) -> Plan | None:
    """Return a plan without the servers that are no longer eligible; None when no slot is left."""
    allowed = {server.id for server in eligible(servers)}
    kept = [index for index, slot in enumerate(plan.slots) if slot in allowed]
    if not kept:
        return None
    scores = tuple(plan.scores[index] for index in kept) if plan.scores else ()
    return Plan(plan.selector, tuple(plan.slots[index] for index in kept), scores)


def instantiate(policy: type[object], options: Mapping[str, Any]) -> object:
    """
    Return a user's object made with its options. Options of a dataclass are converted to their types.

    Raises:
        ValidationError: an option of a dataclass has a wrong value.
        PolicyError: the class raises.
    """
    try:
        if is_dataclass(policy):
            return TypeAdapter(policy).validate_python(dict(options))
        return policy(**options)
    except ValidationError:
        raise
    except (Exception, SystemExit) as error:  # user code
        raise PolicyError(f"{policy.__name__} raises {describe(error)}") from error


def option_names(policy: type[object]) -> list[str] | None:
    """Return the names of a user's options; None when the class takes any."""
    if is_dataclass(policy):
        return [field.name for field in fields(policy) if field.init]
    parameters = signature(policy).parameters.values()
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]
