"""Print what pyproject.toml requires, for pip: `build`, to build the package; `run`, to run it with its reports."""

import sys
import tomllib
from pathlib import Path

table = tomllib.loads(Path("pyproject.toml").read_text())
project = table["project"]
required = {
    "build": table["build-system"]["requires"],
    "run": project["dependencies"] + project["optional-dependencies"]["report"],
}
print(*required[sys.argv[1]])
