"""The proxies to compare: one process each, all on one core and in front of one backend."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import PROXY_CORE, CannotRun, free_port, running, wait_listening, wait_logged

NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
worker_rlimit_nofile {descriptors};
events {{ worker_connections {nginx_connections}; }}
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
    option http-no-delay
frontend front
    bind 127.0.0.1:{port} backlog 1024
    default_backend back
backend back
    server one 127.0.0.1:{backend}
"""

LLMUX = """
port: 0
state_dir: {directory}/{name}-state
limits: {{queued_per_model: 20000}}
models:
  m: &model {{port: {backend}, wake: "true", sleep: "true", alive: "true"}}
  other: *model
"""


RUST = """
models:
  m: &model {{port: {backend}, wake: "true", sleep: "true", alive: "true"}}
  other: *model
"""
"""llmux 2.x in Rust; see docs/from-upstream.md. It takes its port as an option."""

LLAMA_SWAP = """
logLevel: error
performance: {{disabled: true}}
models:
  m:
    cmd: sleep infinity
    proxy: http://127.0.0.1:{backend}
    checkEndpoint: none
    concurrencyLimit: 100000
"""
"""Without `concurrencyLimit`, llama-swap answers 429 above 10 requests at once for a model."""


@dataclass(frozen=True)
class Contestant:
    """A running proxy, or the backend itself.

    Attributes:
        pid: The process to measure; None for the backend, whose cost is not compared.
    """

    name: str
    port: int
    pid: int | None


@dataclass(frozen=True)
class Stage:
    """Settings that all contestants share.

    Attributes:
        directory: For config files, logs and state.
        backend: The backend's port.
        descriptors: Limit of open files of a process.
    """

    directory: Path
    backend: int
    descriptors: int

    def write(self, name: str, text: str, **values: object) -> Path:
        """Fill in a config template, and write it."""
        path = self.directory / name
        filled = text.format(
            directory=self.directory,
            backend=self.backend,
            descriptors=self.descriptors,
            connections=self.descriptors // 2 - 100,
            # nginx uses some connections itself, and closes those of clients when it runs out.
            nginx_connections=self.descriptors + 2000,
            name=path.stem,
            **values,
        )
        path.write_text(filled)
        return path


Starter = Callable[[Stage], AbstractContextManager[Contestant | None]]


@contextmanager
def nginx(stage: Stage) -> Iterator[Contestant | None]:
    """nginx, one process; None if it is not installed."""
    program = which("nginx")
    if program is None:
        yield None
        return
    port = free_port()
    config = stage.write("nginx.conf", NGINX, port=port)
    command = [program, "-c", str(config), "-p", str(stage.directory), "-e", "stderr"]
    with standing(stage, "nginx", port, command) as contestant:
        yield contestant


@contextmanager
def haproxy(stage: Stage) -> Iterator[Contestant | None]:
    """HAProxy, one thread; None if it is not installed."""
    program = which("haproxy")
    if program is None:
        yield None
        return
    port = free_port()
    config = stage.write("haproxy.cfg", HAPROXY, port=port)
    with standing(stage, "haproxy", port, [program, "-db", "-f", str(config)]) as contestant:
        yield contestant


@contextmanager
def llmux(stage: Stage, source: Path | None = None) -> Iterator[Contestant]:
    """`llmux serve`, from the source tree if one is given: the fast lane."""
    log = stage.directory / "llmux.log"
    config = stage.write("llmux.yaml", LLMUX)
    command = [sys.executable, "-m", "llmux", "serve", "-c", str(config)]
    if source is not None:
        check_source(source)
    with running(command, core=PROXY_CORE, log=log, folder=source) as process:
        port = int(wait_logged(process, r"url=http://127\.0\.0\.1:(\d+)", log))
        yield Contestant("llmux", port, process.pid)


def check_source(source: Path) -> None:
    """Check that Python, started in a tree, imports that tree's llmux; raises CannotRun."""
    command = [sys.executable, "-c", "import llmux; print(llmux.__file__)"]
    done = subprocess.run(command, cwd=source, stdout=subprocess.PIPE, text=True, check=False)
    if Path(done.stdout.strip()).parent != source / "llmux":
        raise CannotRun(f"Python in {source} imports llmux from {done.stdout.strip() or 'nowhere'}")


def llmux_asgi(stage: Stage) -> AbstractContextManager[Contestant]:
    """`hypercorn -k trio llmux.app:app`: the ASGI lane."""
    config = stage.write("llmux-asgi.yaml", LLMUX)
    return hypercorn(stage, "llmux-asgi", "llmux.app:app", {"LLMUX_CONFIG": str(config)})


def echo(stage: Stage) -> AbstractContextManager[Contestant]:
    """Hypercorn itself, without proxying."""
    return hypercorn(stage, "echo", "bench.echo:app", {})


def hypercorn(
    stage: Stage, name: str, app: str, environment: Mapping[str, str]
) -> AbstractContextManager[Contestant]:
    """An app under Hypercorn's own command."""
    port = free_port()
    # -w 0: no worker processes, as nginx and llmux have none.
    options = ["-k", "trio", "-w", "0", "--backlog", "1024", "-b", f"127.0.0.1:{port}"]
    command = [sys.executable, "-m", "hypercorn", *options, app]
    return standing(stage, name, port, command, environment)


@contextmanager
def standing(
    stage: Stage,
    name: str,
    port: int,
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Contestant]:
    """Start a server that was told its port, and wait until it listens."""
    log = stage.directory / f"{name}.log"
    with running(command, core=PROXY_CORE, log=log, environment=environment) as process:
        wait_listening(process, port, log)
        yield Contestant(name, port, process.pid)


def which(program: str) -> str | None:
    """Find a program; servers are often installed outside of the PATH of users."""
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")


def given(name: str, program: Path, config: str, listen: Callable[[int], list[str]]) -> Starter:
    """Start a contestant from a binary that the user names.

    Args:
        name: The contestant's, in the report.
        program: The binary; it takes its config file as `--config`.
        config: The template of its config.
        listen: Makes the options that say where it listens, from the port.
    """

    def start(stage: Stage) -> AbstractContextManager[Contestant]:
        if not os.access(program, os.X_OK):
            raise CannotRun(f"{program} is no program")
        port = free_port()
        path = stage.write(f"{name}.yaml", config)
        command = [str(program.resolve()), "--config", str(path), *listen(port)]
        return standing(stage, name, port, command, {"RUST_LOG": "error"})

    return start


STARTERS: Mapping[str, Starter] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "llmux": llmux,
    "llmux-asgi": llmux_asgi,
    "echo": echo,
}


def starters(rust: Path | None = None, llama_swap: Path | None = None) -> Mapping[str, Starter]:
    """All contestants, by name, with those whose binaries are given."""
    found = dict(STARTERS)
    if rust is not None:
        found["rust"] = given("rust", rust, RUST, lambda port: ["--port", str(port)])
    if llama_swap is not None:
        found["llama-swap"] = given(
            "llama-swap", llama_swap, LLAMA_SWAP, lambda port: ["--listen", f"127.0.0.1:{port}"]
        )
    return found
