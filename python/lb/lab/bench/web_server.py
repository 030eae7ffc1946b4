"""
The web server behind the contestants: nginx when it is installed, else what the testbed runs (Apache, or its own).

One worker on server1, no log, connections kept for ever: the load should meet the contestant, not the server.
"""

from __future__ import annotations

from lb.errors import TestbedError
from lb.lab.bench import programs
from lb.lab.testbed import apache, content
from lb.lab.testbed.lifecycle import Testbed

SERVER = "server1"
SMALL_PATH, BULK_PATH = "/", "/1MB"
_TEMPLATE = """{user}
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    keepalive_timeout 60s;
    default_type application/octet-stream;
    open_file_cache max=64;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 0.0.0.0:{port} backlog=4096;
        root {content};
        add_header X-Served-By {name};
    }}
}}
"""


def start(testbed: Testbed, as_root: bool) -> str:
    """
    Start nginx on server1 of a testbed that was built without servers.

    Args:
        testbed: where.
        as_root: whether this process is the machine's root; then the worker becomes another user.

    Returns:
        What serves, with its version.

    Raises:
        TestbedError: it is not installed, or does not start.
    """
    program = programs.find("nginx")
    if program is None:
        raise TestbedError("nginx is not installed")
    host = testbed.topology.host(SERVER)
    files, directory = testbed.directory / "www", testbed.directory / "nginx"
    content.write_stand_ins(files)
    directory.mkdir()
    user = "user {} {};".format(*apache.unprivileged_names()) if as_root else ""
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _TEMPLATE.format(user=user, directory=directory, port=host.web_port, content=files, name=SERVER)
    )
    command = [program, "-e", str(directory / "start.log"), "-c", str(configuration)]
    testbed.spawn(SERVER, "nginx", command, as_nobody=not as_root)
    testbed.wait_listening(host, host.web_port, "nginx")
    return programs.version([program, "-v"]).removeprefix("nginx version: ")
