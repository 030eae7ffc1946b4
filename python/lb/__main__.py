"""The command `lb`, and `python -m lb`."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line and exit the process with its exit code."""
    # While the modules load nothing catches a KeyboardInterrupt: Ctrl-C just ends the process.
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lb.cli import main as run

    signal.signal(signal.SIGINT, interrupt)
    run()


if __name__ == "__main__":
    main()
