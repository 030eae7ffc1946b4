"""
What each kind of memory of the flow table costs: the whole pipeline in Rust, the kinds in turns. As root.

    python benches/table_memory.py [--rounds 5] [--flows 1M 10M]

The kinds: the process's own memory, a file in a tmpfs with and without huge pages, and a map of the kernel's. Criterion
runs `pipeline/` of rust/benches with `FLOWLB_TABLE`, once per kind and round; of each bench the fastest of all samples
counts, for what else the machine does only adds. The two tmpfs are mounted in a mount namespace of this process alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNS = 0x20000
BENCHES = ("forward", "reply", "batch-forward", "batch-reply")
CRITERION = ("--noplot", "--sample-size", "10", "--measurement-time", "1", "--warm-up-time", "0.3")
ROOT = Path(__file__).resolve().parent.parent


def build() -> str:
    """Build the benches; return the path of the program."""
    command = ["cargo", "bench", "--locked", "--no-run", "-p", "flowlb-benches", "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return str(next(made for line in reversed(lines) if (made := json.loads(line).get("executable"))))


@contextmanager
def mounted(folder: Path) -> Iterator[dict[str, str | None]]:
    """Mount the tmpfs below a directory; give `FLOWLB_TABLE` of each kind, None: unset."""
    places = {huge: folder / huge for huge in ("always", "never")}
    try:
        for huge, place in places.items():
            place.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"huge={huge}", "flowlb-bench", str(place)], check=True)
        files = {"file, huge pages": str(places["always"]), "file, 4 KiB": str(places["never"])}
        yield {"own": None, **files, "map": "map"}
    finally:
        for place in filter(Path.is_mount, places.values()):
            subprocess.run(["umount", str(place)], check=True)


def run(program: str, place: str | None, flows: list[str], results: Path) -> None:
    """Run the benches once with the table in one place; None: the process's own memory."""
    environment = {**os.environ, "CRITERION_HOME": str(results)}
    if place is not None:
        environment["FLOWLB_TABLE"] = place
    pattern = f"^pipeline/({'|'.join(BENCHES)})/({'|'.join(flows)})$"
    command = [program, "--bench", pattern, *CRITERION]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)


def fastest(results: Path, bench: str, flows: str) -> float:
    """Return nanoseconds per packet of the fastest sample of all rounds."""
    found = []
    for path in results.glob(f"*/pipeline/{bench}/{flows}/new/sample.json"):
        sample = json.loads(path.read_text())
        found += [took / count for took, count in zip(sample["times"], sample["iters"], strict=True)]
    return min(found)


def main() -> None:
    """Print a line per bench, a column per kind of memory."""
    parser = argparse.ArgumentParser(description="What each kind of memory of the flow table costs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flows", nargs="+", default=["1M", "10M"], choices=["1k", "100k", "1M", "10M"])
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("this mounts file systems and makes a map of the kernel's: run it as root")
    program = build()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    with tempfile.TemporaryDirectory(prefix="flowlb-bench-") as name, mounted(Path(name)) as kinds:
        for turn in range(options.rounds):
            for kind, place in kinds.items():
                run(program, place, options.flows, Path(name) / kind / str(turn))
        print(f"{'ns per packet':20}" + "".join(f"{kind:>18}" for kind in kinds))
        for flows in options.flows:
            for bench in BENCHES:
                took = [fastest(Path(name) / kind, bench, flows) for kind in kinds]
                print(f"{f'{bench}/{flows}':20}" + "".join(f"{each:>18.0f}" for each in took))


if __name__ == "__main__":
    main()
