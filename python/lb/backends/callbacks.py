"""
The callback channel: a separate thread asks the user's policy about new flows, one question at a time, while the
flow's packets are held and those of other flows pass (`docs/rules.md` rule 8.21, asking a policy).

Used by the selector `ask` while packets come from sockets; offline the function is called directly, without a
deadline. A question without an answer by its deadline is given up; until that answer has come, nothing else is asked,
so packets never queue behind a policy that hangs. Both backends use a Python daemon thread: a policy that hangs does
not keep the process from ending.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from lb.model.snapshot import AskFunction

# The function and its arguments.
Question: TypeAlias = tuple[Callable[..., Any], str, str, int, Sequence[str]]


class CallbackSource(Protocol):
    """The side of the channel that the answering thread uses."""

    def wait(self) -> Question | None:
        """Wait for a question and return it; None: the channel is closed."""

    def answer(self, answer: str | None) -> None:
        """Answer the question that the last `wait` returned. None: no usable answer."""


class CallbackChannel:
    """
    Questions and answers between a packet loop and the answering thread.

    Args:
        wake: called after each answer.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._changed = threading.Condition()
        self._wake = wake
        self._asked: deque[tuple[int, int, Question]] = deque()
        # Ticket and deadline of the question being answered.
        self._working: tuple[int, int] | None = None
        self._answers: list[tuple[int, str | None]] = []
        self._closed = False

    def post(self, ticket: int, question: Question, due_ns: int) -> bool:
        """
        Queue a question. Return False when there can be no answer: the one before is overdue, or the channel closed.

        Args:
            ticket: the number that the answer comes with.
            question: what is asked.
            due_ns: the deadline, monotonic nanoseconds.
        """
        with self._changed:
            is_overdue = self._working is not None and time.monotonic_ns() >= self._working[1]
            if self._closed or is_overdue:
                return False
            self._asked.append((ticket, due_ns, question))
            self._changed.notify_all()
            return True

    def take_answers(self) -> list[tuple[int, str | None]]:
        """Return the answers since the last call, with their tickets."""
        with self._changed:
            taken, self._answers = self._answers, []
            return taken

    def wait(self) -> Question | None:
        """Wait for a question whose deadline has not passed and return it; None when closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._asked or self._closed)
                if self._closed:
                    return None
                ticket, due_ns, question = self._asked.popleft()
                if time.monotonic_ns() < due_ns:
                    self._working = ticket, due_ns
                    return question

    def answer(self, answer: str | None) -> None:
        """Answer the question that the last `wait` returned."""
        with self._changed:
            if self._working is None or self._closed:
                return
            self._answers.append((self._working[0], answer))
            self._working = None
            # Under the lock: `wake` is never called after `close`.
            self._wake()

    def close(self) -> None:
        """Close the channel: end the answering thread's wait, and call `wake` no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def serve(channel: CallbackSource) -> None:
    """Answer questions until the channel is closed; what the user's function raises counts as no answer."""
    while (question := channel.wait()) is not None:
        channel.answer(call(*question))


def call(function: AskFunction, service: str, client: str, client_port: int, names: Sequence[str]) -> str | None:
    """Call the user's function; None when it raises, or returns no name."""
    try:
        answer = function(service, client, client_port, names)
    except BaseException:  # SystemExit included: a packet gets its verdict
        return None
    return answer if isinstance(answer, str) else None


def start_answering(channel: CallbackSource) -> None:
    """Start the answering thread."""
    threading.Thread(target=serve, args=(channel,), name="lb-ask", daemon=True).start()
