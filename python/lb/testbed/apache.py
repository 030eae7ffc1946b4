"""
Apache for the testbed's servers: is it installed, and the configuration one server of it runs with.

Port 8000 + last octet, a header that names the server, one process tree per server with everything it writes in the
testbed's directory. As root it serves as an unprivileged user. Apache refuses to be root without one, and in a user
namespace there is no second user to become: there the launcher makes a nested namespace in which it is nobody
(`isolation.drop_root_in_user_namespace`).
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
# (identifier, file): loaded unless built in. One multi-processing module first.
_MODULES = (
    ("mpm_event_module", "mod_mpm_event.so"),
    ("unixd_module", "mod_unixd.so"),
    ("log_config_module", "mod_log_config.so"),
    ("authz_core_module", "mod_authz_core.so"),
    ("dir_module", "mod_dir.so"),
    ("headers_module", "mod_headers.so"),
)

_TEMPLATE = """ServerRoot "{directory}"
DefaultRuntimeDir "{directory}"
PidFile "{directory}/apache.pid"
ErrorLog "{directory}/error.log"
LogLevel warn
Mutex pthread
ServerName {name}
Listen 0.0.0.0:{port}
{listen6}
{modules}
{identity}
ServerLimit 1
ThreadsPerChild 64
ThreadLimit 64
StartServers 1
MaxRequestWorkers 64
MinSpareThreads 1
MaxSpareThreads 64
ListenBacklog 1024
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 15
Timeout 30
EnableSendfile On
ServerTokens Prod
LogFormat "%{{%Y-%m-%dT%H:%M:%S}}t.%{{msec_frac}}t %h %>s %B %D \\"%r\\"" timed
CustomLog "{directory}/access.log" timed
DocumentRoot "{content}"
DirectoryIndex index.html
<Directory "{content}">
    Options None
    AllowOverride None
    Require all granted
</Directory>
Header always set X-Served-By "{name}"
Header set Cache-Control "no-store"
"""


def find() -> str | None:
    """Return the path of Apache's program, or None when it is not installed or lacks a module we need."""
    for program in PROGRAMS:
        path = shutil.which(program, path=_SEARCH_PATH)
        if path and _modules_directory():
            return path
    return None


def write_configuration(name: str, port: int, directory: Path, content: Path, ipv6: bool, as_root: bool) -> list[str]:
    """
    Write the configuration of one server.

    Args:
        name: what X-Served-By says.
        port: TCP port, on every address.
        directory: exists; everything Apache writes goes there.
        content: the document root.
        ipv6: whether to listen on IPv6 too.
        as_root: whether Apache starts as root and must become somebody else.

    Returns:
        The command that runs it in the foreground.
    """
    modules = _modules_directory()
    program = find()
    assert modules is not None
    assert program is not None
    text = _TEMPLATE.format(
        name=name,
        port=port,
        directory=directory,
        content=content,
        listen6=f"Listen [::]:{port}" if ipv6 else "",
        modules="\n".join(
            f"<IfModule !{module}>\nLoadModule {module} {modules / file}\n</IfModule>" for module, file in _MODULES
        ),
        identity="User {}\nGroup {}".format(*unprivileged_names()) if as_root else "",
    )
    path = directory / "apache.conf"
    path.write_text(text)
    return [program, "-d", str(directory), "-f", str(path), "-DFOREGROUND"]


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
