"""
Apache for the testbed's servers: is it installed, and how one server of it is run.

The configuration is one file for namespaces and containers, `apache2/testbed.conf`; what differs between servers it
takes from the environment. Everything a server writes goes to its own directory. As root it serves as an
unprivileged user. Apache refuses to be root without one, and in a user namespace there is no second user to become:
there the launcher makes a nested namespace in which it is user `nobody` (`isolation.drop_root_in_user_namespace`).
"""

from __future__ import annotations

import grp
import pwd
import shutil
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("apache2", "httpd")
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MODULE_DIRECTORIES = (
    "/usr/lib/apache2/modules",
    "/usr/lib64/httpd/modules",
    "/usr/lib/httpd/modules",
    "/usr/local/apache2/modules",
)
CONFIGURATION = Path(__file__).parent / "apache2" / "testbed.conf"


def find() -> str | None:
    """Return the path of Apache's program, or None when it is not installed or lacks a module we need."""
    for program in PROGRAMS:
        path = shutil.which(program, path=_SEARCH_PATH)
        if path and _modules_directory():
            return path
    return None


def command(directory: Path, ipv6: bool, as_root: bool) -> list[str]:
    """
    Return the command that runs one server in the foreground.

    Args:
        directory: as `environment`.
        ipv6: whether to listen on IPv6 too.
        as_root: whether Apache starts as root and must become another user.
    """
    program = find()
    assert program is not None
    defines = [*(["-DIPv6"] if ipv6 else []), *(["-DAsRoot"] if as_root else [])]
    return [program, "-d", str(directory), "-f", str(CONFIGURATION), *defines, "-DFOREGROUND"]


def environment(name: str, port: int, directory: Path, content: Path) -> dict[str, str]:
    """
    Return what the configuration takes from the environment.

    Args:
        name: what X-Served-By says.
        port: TCP port, on every address.
        directory: exists; everything Apache writes goes there.
        content: the document root.
    """
    user, group = unprivileged_names()
    return {
        "LB_NAME": name,
        "LB_PORT": str(port),
        "LB_CONTENT": str(content),
        "LB_DIRECTORY": str(directory),
        "LB_MODULES": str(_modules_directory()),
        "LB_USER": user,
        "LB_GROUP": group,
    }


def _modules_directory() -> Path | None:
    """Return the directory that holds the modules which some distribution may have built in but Debian has as files."""
    for directory in map(Path, _MODULE_DIRECTORIES):
        if (directory / "mod_headers.so").exists():
            return directory
    return None


def unprivileged_names() -> tuple[str, str]:
    """Return a user and a group for a server that root starts."""
    for user in ("www-data", "apache", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(user)
            return user, grp.getgrgid(entry.pw_gid).gr_name
    return "#65534", "#65534"
