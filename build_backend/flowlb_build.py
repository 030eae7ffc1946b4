"""
What `pip install .` calls: maturin, behind two decisions that maturin would take otherwise.

Without a Rust toolchain maturin downloads one into a temporary directory; here the build stops with a message that
names the ways out. And with `FLOWLB_PURE=1` it needs none: a wheel of the Python files alone, which has the python
backend only. Standard library only (PEP 517, PEP 427).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

MINIMUM_RUST = (1, 85)
WAYS_OUT = """\
  - install Rust from https://rustup.rs (Debian 13 and later: apt install cargo), then `pip install .` again; or
  - install without it: FLOWLB_PURE=1 pip install .
    That leaves out the rust backend: packets are processed in Python, some hundred times slower.\
"""

Settings = dict[str, Any] | None


def is_pure() -> bool:
    """Return whether a wheel without the extension was asked for."""
    return os.environ.get("FLOWLB_PURE", "") not in ("", "0")


def check_rust() -> None:
    """End the build with the ways out when there is no usable Rust toolchain."""
    if not shutil.which("cargo"):
        sys.exit(f"flowlb is built with Rust, and there is no `cargo` on the PATH. Either\n{WAYS_OUT}")
    answer = subprocess.run(["cargo", "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"cargo (\d+)\.(\d+)", answer.stdout)
    if found and (int(found[1]), int(found[2])) < MINIMUM_RUST:
        needed = ".".join(map(str, MINIMUM_RUST))
        sys.exit(f"flowlb needs Rust {needed} or later; this is {answer.stdout.strip()}. Either\n{WAYS_OUT}")


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Answer what else is needed; being asked first, this is where a missing toolchain is told."""
    if is_pure():
        return []
    check_rust()
    import maturin  # type: ignore[import-untyped]

    return list(maturin.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """Answer what else an editable install needs."""
    check_rust()
    import maturin

    return list(maturin.get_requires_for_build_editable(config_settings))


def prepare_metadata_for_build_wheel(directory: str, config_settings: Settings = None) -> str:
    """Write the wheel's metadata into a directory; return the name of its folder."""
    if is_pure():
        name = dist_info()
        (Path(directory) / name).mkdir()
        for file, content in metadata_files().items():
            path = Path(directory) / name / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return name
    import maturin

    return str(maturin.prepare_metadata_for_build_wheel(directory, config_settings))


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def build_wheel(directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """Build the wheel into a directory; return its name."""
    if is_pure():
        return build_pure_wheel(Path(directory))
    import maturin

    return str(maturin.build_wheel(directory, config_settings, metadata_directory))


def build_editable(directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """Build an editable wheel into a directory; return its name."""
    import maturin

    return str(maturin.build_editable(directory, config_settings, metadata_directory))


def build_sdist(directory: str, config_settings: Settings = None) -> str:
    """Build the source distribution into a directory; return its name."""
    import maturin

    return str(maturin.build_sdist(directory, config_settings))


def project() -> dict[str, Any]:
    """Return the project table, with the version that Cargo.toml holds."""
    table: dict[str, Any] = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    workspace = tomllib.loads(Path("Cargo.toml").read_text())["workspace"]
    return table | {"version": workspace["package"]["version"]}


def dist_info() -> str:
    """Return the name of the metadata folder."""
    table = project()
    return f"{table['name']}-{table['version']}.dist-info"


def metadata_files() -> dict[str, bytes]:
    """Return the files of the metadata folder, but for RECORD."""
    table = project()
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {table['name']}",
        f"Version: {table['version']}",
        f"Summary: {table['description']}",
        f"License-Expression: {table['license']}",
        *(f"License-File: {name}" for name in table["license-files"]),
        f"Requires-Python: {table['requires-python']}",
        *(f"Requires-Dist: {needed}" for needed in table["dependencies"]),
    ]
    for extra, dependencies in table["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f'Requires-Dist: {needed} ; extra == "{extra}"' for needed in dependencies]
    scripts = [f"{name} = {target}" for name, target in table["scripts"].items()]
    wheel = ["Wheel-Version: 1.0", "Generator: flowlb_build", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    files = {"METADATA": lines, "WHEEL": wheel, "entry_points.txt": ["[console_scripts]", *scripts]}
    written = {name: "\n".join([*content, ""]).encode() for name, content in files.items()}
    return written | {f"licenses/{name}": Path(name).read_bytes() for name in table["license-files"]}


def build_pure_wheel(directory: Path) -> str:
    """Write a wheel of the Python files alone."""
    sources = (path for path in sorted(Path("python").rglob("*")) if path.is_file() and is_source(path))
    files = {path.relative_to("python").as_posix(): path.read_bytes() for path in sources}
    files |= {f"{dist_info()}/{name}": content for name, content in metadata_files().items()}
    record = f"{dist_info()}/RECORD"
    rows = [f"{name},sha256={digest(content)},{len(content)}" for name, content in files.items()]
    name = f"{dist_info().removesuffix('.dist-info')}-py3-none-any.whl"
    with zipfile.ZipFile(directory / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
        wheel.writestr(record, "\n".join([*rows, f"{record},,", ""]))
    return name


def is_source(path: Path) -> bool:
    """Return whether a file belongs into a pure wheel: no byte code, no extension left by a development build."""
    return "__pycache__" not in path.parts and path.suffix != ".so" and path.name != "_core.pyi"


def digest(content: bytes) -> str:
    """Return a file's hash as RECORD wants it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
