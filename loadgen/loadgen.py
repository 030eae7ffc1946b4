#!/usr/bin/env python3
"""The load generator as the course has it: `python3 loadgen.py -e FILE [-v] [-l LOG]`. The same as `lb loadgen`."""

import sys
from pathlib import Path

# From a source tree that is not installed, too.
sys.path.append(str(Path(__file__).resolve().parents[1] / "python"))

try:
    from lb.__main__ import main
except ImportError as error:
    sys.exit(f"loadgen: {error.name} is not installed: pip install .")

if __name__ == "__main__":
    sys.argv[1:1] = ["loadgen"]
    main()
