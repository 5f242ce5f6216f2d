"""What TLS costs: `python -m bench.tls [--rounds N]`, in about a minute.

llmux plain, llmux with TLS, and llmux behind an nginx that terminates TLS take turns before one
backend. CPU time is that of the proxies alone, both together in the last case, from
/proc/PID/schedstat. Only ratios within a run mean something: the machine may be busy.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from bench.machine import machine
from bench.processes import (
    PROXY_CORE,
    CannotRun,
    end_on_sigterm,
    free_port,
    running,
    wait_listening,
    wait_logged,
)
from bench.table import number, render

REQUESTS = 600
CONNECTIONS = 100
STREAMS, CHUNKS, INTERVAL_S = 32, 100, 0.03
"""A stream's pace is that of a model that makes 33 tokens a second."""

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "' + b"x" * 230 + b'"}]}'
CHUNK = b'data: {"choices": [{"delta": {"content": "token"}}]}\n\n'

LLMUX = """
port: 0
state_dir: {directory}/{name}-state
{tls}
models:
  m: {{port: {backend}, wake: "true", sleep: "true", alive: "true"}}
"""

NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream llmux {{ server 127.0.0.1:{llmux}; keepalive 64; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} ssl; keepalive_requests 1000000;
        ssl_certificate {directory}/cert.pem; ssl_certificate_key {directory}/key.pem;
        location / {{
            proxy_pass http://llmux; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; proxy_request_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Way:
    """A way to reach the backend.

    Attributes:
        port: Where clients connect.
        pids: The processes whose CPU time counts.
        is_tls: True if clients speak TLS.
    """

    name: str
    port: int
    pids: tuple[int, ...]
    is_tls: bool


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args(arguments).rounds
    end_on_sigterm()
    try:
        with tempfile.TemporaryDirectory(prefix="llmux-tls-") as name, ExitStack() as stack:
            print(report(measured(list(ways(Path(name), stack)), rounds)))
    except CannotRun as error:
        sys.exit(f"bench: {error}")


# ---- The processes ----


def ways(folder: Path, stack: ExitStack) -> Iterator[Way]:
    """Start everything; raises CannotRun."""
    make_certificate(folder)
    backend = start_backend()
    tls = f"tls: {{cert: {folder}/cert.pem, key: {folder}/key.pem}}"
    port, pid = stack.enter_context(llmux(folder, "plain", "", backend))
    yield Way("llmux", port, (pid,), is_tls=False)
    own_port, own_pid = stack.enter_context(llmux(folder, "tls", tls, backend))
    yield Way("llmux, TLS", own_port, (own_pid,), is_tls=True)
    front = free_port()
    path = folder / "nginx.conf"
    path.write_text(NGINX.format(directory=folder, port=front, llmux=port))
    command = ["nginx", "-e", "stderr", "-c", str(path), "-p", str(folder)]
    log = folder / "nginx.log"
    nginx = stack.enter_context(running(command, core=PROXY_CORE, log=log))
    wait_listening(nginx, front, log)
    yield Way("nginx, TLS + llmux", front, (nginx.pid, pid), is_tls=True)


def make_certificate(folder: Path) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "30", "-subj", "/CN=localhost"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )


@contextmanager
def llmux(folder: Path, name: str, tls: str, backend: int) -> Iterator[tuple[int, int]]:
    path, log = folder / f"{name}.yaml", folder / f"{name}.log"
    path.write_text(LLMUX.format(directory=folder, name=name, tls=tls, backend=backend))
    command = [sys.executable, "-m", "llmux", "-c", str(path)]
    with running(command, core=PROXY_CORE, log=log) as process:
        yield int(wait_logged(process, r"listening .*:(\d+)", log)), process.pid


def start_backend() -> int:
    """Serve small answers and paced streams in threads; returns the port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)

    def accept() -> None:
        while True:
            Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    Thread(target=accept, daemon=True).start()
    return int(listening.getsockname()[1])


def answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = b""
    while more := connection.recv(65536):
        data += more
        if not data.endswith(b"]}"):
            continue
        if b"/stream" in data[:64]:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(CHUNKS):
                connection.sendall(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
                time.sleep(INTERVAL_S)
            connection.sendall(b"0\r\n\r\n")
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n" + bytes(200))
        data = b""


# ---- The load ----


def connect(way: Way) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", way.port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not way.is_tls:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


def ask(connection: socket.socket, path: bytes, end: bytes) -> None:
    head = b"POST /v1/%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % (path, len(BODY)) + BODY)
    data = b""
    while not data.endswith(end):
        more = connection.recv(65536)
        assert more, data
        data = (data + more)[-300:]


def requests(way: Way) -> int:
    with connect(way) as connection:
        for _ in range(REQUESTS):
            ask(connection, b"completions", bytes(200))
    return REQUESTS


def connections(way: Way) -> int:
    for _ in range(CONNECTIONS):
        with connect(way) as connection:
            ask(connection, b"completions", bytes(200))
    return CONNECTIONS


def chunks(way: Way) -> int:
    def stream() -> None:
        with connect(way) as connection:
            ask(connection, b"stream", b"0\r\n\r\n")

    readers = [Thread(target=stream) for _ in range(STREAMS)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return STREAMS * CHUNKS


LOADS: dict[str, Callable[[Way], int]] = {
    "chunk of a stream": chunks,
    "small request": requests,
    "connection with one request": connections,
}


def cpu_s(pids: Sequence[int]) -> float:
    """CPU time of all threads of these processes."""
    files = (path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in files) / 1e9


Measured = dict[str, dict[str, list[float]]]


def measured(standing: Sequence[Way], rounds: int) -> Measured:
    """Return microseconds of CPU time by load and way, one for each round."""
    found: Measured = {load: {way.name: [] for way in standing} for load in LOADS}
    for way in standing:
        requests(way)
    for at in range(rounds):
        for name, load in LOADS.items():
            for way in standing if at % 2 == 0 else reversed(standing):
                before = cpu_s(way.pids)
                count = load(way)
                found[name][way.name].append((cpu_s(way.pids) - before) / count * 1e6)
    return found


def report(found: Measured) -> str:
    ways_shown = list(next(iter(found.values())))
    rows = [["CPU us per ...", *ways_shown, "TLS : plain", "TLS : nginx"]]
    for load, by_way in found.items():
        plain, own, behind = (statistics.median(values) for values in by_way.values())
        cells = [number(each) for each in (plain, own, behind, own / plain, own / behind)]
        rows.append([load, *cells])
    return f"{render(rows)}\n\n{machine()}"


if __name__ == "__main__":
    main()
