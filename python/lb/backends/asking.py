"""
Asking the user's policy about a new flow without waiting for ever: a thread of its own answers, the packet loop waits
until a deadline.

Used by the selector `ask` while packets come from sockets. Offline the function is called directly: there is no clock
to hold against it. A question that is not answered in time is given up; until its answer has come, nothing else is
asked: packets never queue behind a policy that hangs. The thread is Python's, and a daemon, whichever backend asks: one
that hangs in a user's code does not keep the process from ending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from lb.snapshot import AskFunction

# The function, and what it is called with.
Question: TypeAlias = tuple[Callable[..., Any], str, str, int, Sequence[str]]


class Answering(Protocol):
    """The side of the thread that answers."""

    def wait(self) -> Question | None:
        """Wait for a question; None: there will be none any more."""

    def answer(self, answer: str | None) -> None:
        """Answer the question that `wait` returned last. None: no usable answer."""


class Questions:
    """One question at a time, between a packet loop and the thread that answers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._step: Literal["idle", "asked", "working", "answered", "abandoned", "closed"] = "idle"
        self._question: Question | None = None
        self._answer: str | None = None

    def ask(self, question: Question, deadline_ns: int) -> str | None:
        """Return the answer, or None when there is no usable one in time. At once, while an old one is awaited."""
        with self._changed:
            if not self._is("idle"):
                return None
            self._question, self._step = question, "asked"
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is("answered", "closed"), deadline_ns / 1e9)
            answer, self._answer = self._answer, None
            if not self._is("closed"):
                # Nobody has begun with it: it is taken back. Else an answer is still to come.
                self._step = "abandoned" if self._is("working") else "idle"
            return answer

    def wait(self) -> Question | None:
        """Wait for a question; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is("asked", "closed"))
            if self._is("closed"):
                return None
            self._step = "working"
            return self._question

    def answer(self, answer: str | None) -> None:
        """Answer; too late, when the question was given up."""
        with self._changed:
            if self._is("working"):
                self._answer, self._step = answer, "answered"
                self._changed.notify_all()
            elif self._is("abandoned"):
                self._step = "idle"

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._step = "closed"
            self._changed.notify_all()

    def _is(self, *steps: str) -> bool:
        return self._step in steps


def serve(questions: Answering) -> None:
    """Answer questions until there are none any more. Whatever the user's function raises or returns is an answer."""
    while (question := questions.wait()) is not None:
        questions.answer(call(*question))


def call(function: AskFunction, service: str, client: str, client_port: int, names: Sequence[str]) -> str | None:
    """Call the user's function; None when it raises, or returns no name."""
    try:
        answer = function(service, client, client_port, names)
    except BaseException:  # SystemExit included: a packet gets its verdict
        return None
    return answer if isinstance(answer, str) else None


def start_answering(questions: Answering) -> None:
    """Start the thread that answers."""
    threading.Thread(target=serve, args=(questions,), name="lb-ask", daemon=True).start()
