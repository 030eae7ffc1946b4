"""
Asking the user's policy about a new flow without waiting for it: a thread of its own answers, one question after the
other, while the flow's packets wait and those of others pass (`docs/datapath.md` rule 8, *ask*).

Used by the selector `ask` while packets come from sockets. Offline the function is called directly: there is no clock
to hold against it. A question that is not answered by its deadline is given up; until its answer has come, nothing else
is asked: packets never queue behind a policy that hangs. The thread is Python's, and a daemon, whichever backend asks:
one that hangs in a user's code does not keep the process from ending.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from lb.model.snapshot import AskFunction

# The function, and what it is called with.
Question: TypeAlias = tuple[Callable[..., Any], str, str, int, Sequence[str]]


class Answering(Protocol):
    """The side of the thread that answers."""

    def wait(self) -> Question | None:
        """Wait for a question; None: there will be none any more."""

    def answer(self, answer: str | None) -> None:
        """Answer the question that `wait` returned last. None: no usable answer."""


class Questions:
    """
    What is asked and answered, between a packet loop and the thread that answers.

    Args:
        wake: called after each answer.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._changed = threading.Condition()
        self._wake = wake
        self._asked: deque[tuple[int, int, Question]] = deque()
        # Of the question that is being answered: its ticket, and when it is overdue.
        self._working: tuple[int, int] | None = None
        self._answers: list[tuple[int, str | None]] = []
        self._closed = False

    def post(self, ticket: int, question: Question, due_ns: int) -> bool:
        """
        Leave a question; False when there can be no answer: the one before it is overdue, or all is closed.

        Args:
            ticket: the number that the answer comes with.
            question: what is asked.
            due_ns: monotonic nanoseconds from which on nobody waits for the answer.
        """
        with self._changed:
            is_overdue = self._working is not None and time.monotonic_ns() >= self._working[1]
            if self._closed or is_overdue:
                return False
            self._asked.append((ticket, due_ns, question))
            self._changed.notify_all()
            return True

    def take_answers(self) -> list[tuple[int, str | None]]:
        """Return the answers that have come since the last call, with their tickets."""
        with self._changed:
            taken, self._answers = self._answers, []
            return taken

    def wait(self) -> Question | None:
        """Wait for a question that somebody waits for still; None when closed."""
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
        """Answer the question that `wait` returned last."""
        with self._changed:
            if self._working is None or self._closed:
                return
            self._answers.append((self._working[0], answer))
            self._working = None
            # Under the lock: after `close` nothing is woken any more.
            self._wake()

    def close(self) -> None:
        """Let nobody wait any more, and wake nobody."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


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
