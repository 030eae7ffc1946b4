"""What all tests need."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let children hear SIGINT: jobs that a shell starts in the background ignore it, and so do their children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
