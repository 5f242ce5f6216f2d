"""What is measured: proxies in front of one backend, each one process on one core."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from bench.processes import PROXY_CORE, free_port, running, wait_listening, wait_logged

NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
worker_rlimit_nofile {descriptors};
events {{ worker_connections {descriptors}; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    upstream backend {{
        server 127.0.0.1:{backend};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""

HAPROXY = """
global
    nbthread 1
    maxconn {connections}
defaults
    mode http
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    http-reuse always
frontend front
    bind 127.0.0.1:{port} backlog 1024
    default_backend back
backend back
    server one 127.0.0.1:{backend}
"""

LLMUX = """
port: 0
state_dir: {directory}/{name}-state
models:
  m: {{port: {backend}, wake: "true", sleep: "true", alive: "true"}}
"""


@dataclass(frozen=True)
class Contestant:
    """A running proxy, or the backend itself.

    Attributes:
        pid: Its process; None for the backend, whose costs are not compared.
    """

    name: str
    port: int
    pid: int | None


@dataclass(frozen=True)
class Stage:
    """What every contestant gets.

    Attributes:
        directory: For config files, logs and state.
        backend: The backend's port.
        descriptors: How many files a process may open.
    """

    directory: Path
    backend: int
    descriptors: int

    def write(self, name: str, text: str, **values: object) -> Path:
        """Fill in a config and write it."""
        path = self.directory / name
        filled = text.format(
            directory=self.directory,
            backend=self.backend,
            descriptors=self.descriptors,
            connections=self.descriptors // 2 - 100,
            name=path.stem,
            **values,
        )
        path.write_text(filled)
        return path


Starter = Callable[[Stage], AbstractContextManager[Contestant | None]]


@contextmanager
def listening(name: str, process: Popen[bytes], port: int, log: Path) -> Iterator[Contestant]:
    wait_listening(process, port, log)
    yield Contestant(name, port, process.pid)


@contextmanager
def nginx(stage: Stage) -> Iterator[Contestant | None]:
    """nginx, one process; None if it is not installed."""
    program = which("nginx")
    if program is None:
        yield None
        return
    port, log = free_port(), stage.directory / "nginx.log"
    config = stage.write("nginx.conf", NGINX, port=port)
    command = [program, "-c", config, "-p", stage.directory, "-e", "stderr"]
    with running(command, core=PROXY_CORE, log=log) as process:
        with listening("nginx", process, port, log) as contestant:
            yield contestant


@contextmanager
def haproxy(stage: Stage) -> Iterator[Contestant | None]:
    """HAProxy, one thread; None if it is not installed."""
    program = which("haproxy")
    if program is None:
        yield None
        return
    port, log = free_port(), stage.directory / "haproxy.log"
    config = stage.write("haproxy.cfg", HAPROXY, port=port)
    with running([program, "-db", "-f", config], core=PROXY_CORE, log=log) as process:
        with listening("haproxy", process, port, log) as contestant:
            yield contestant


@contextmanager
def llmux(stage: Stage) -> Iterator[Contestant]:
    """`llmux serve`: the fast lane."""
    log = stage.directory / "llmux.log"
    config = stage.write("llmux.yaml", LLMUX)
    command = [sys.executable, "-m", "llmux", "serve", "-c", config]
    with running(command, core=PROXY_CORE, log=log) as process:
        port = int(wait_logged(process, r"url=http://127\.0\.0\.1:(\d+)", log))
        yield Contestant("llmux", port, process.pid)


@contextmanager
def llmux_asgi(stage: Stage) -> Iterator[Contestant]:
    """`hypercorn -k trio llmux.app:app`: the ASGI lane."""
    config = stage.write("llmux-asgi.yaml", LLMUX)
    with hypercorn(stage, "llmux-asgi", "llmux.app:app", {"LLMUX_CONFIG": str(config)}) as served:
        yield served


@contextmanager
def echo(stage: Stage) -> Iterator[Contestant]:
    """Hypercorn itself, without proxying."""
    with hypercorn(stage, "echo", "bench.echo:app", {}) as served:
        yield served


@contextmanager
def hypercorn(
    stage: Stage, name: str, app: str, environment: dict[str, str]
) -> Iterator[Contestant]:
    port, log = free_port(), stage.directory / f"{name}.log"
    # -w 0: in one process, so that what is measured is that process.
    options = ["-k", "trio", "-w", "0", "--backlog", "1024", "-b", f"127.0.0.1:{port}"]
    command = [sys.executable, "-m", "hypercorn", *options, app]
    with running(command, core=PROXY_CORE, log=log, environment=environment) as process:
        with listening(name, process, port, log) as contestant:
            yield contestant


def which(program: str) -> str | None:
    """Where a program is; servers are often outside of users' PATH."""
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")
