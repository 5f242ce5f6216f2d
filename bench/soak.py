"""llmux under faults for as long as you like: `python -m bench.soak`.

A real llmux with real hooks that start and stop real processes, each a model server that crashes,
hangs, refuses and lies at random; clients of all sorts, operators that force switches, and now and
then a SIGKILL for llmux itself. What the contract promises is checked all the time:

- The servers and hooks check that a group has one model awake, that its wake and sleep hooks do not
  overlap, and that no request is inside of a model whose sleep hook was started. Requests that are
  cut (a drain over its time, a model found down) or whose client has left are closed before that
  hook starts, so one that is still connected then is a violation; there are no exceptions.
- The clients check that each request ends in time and once: with the whole answer of the right
  model, an error of the contract's table, or a cut; and that each 502, 500 and cut has a cause: a
  fault that was injected into that model then, or a drain over its time.
- At the end nothing waits, the counts of llmux are those of the clients, no descriptor has leaked,
  memory has not grown, and no process is left.

What clients and faults do follows from the seed; when they meet does not.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import random
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import h11
import trio

from bench import soak_backend
from bench.processes import CannotRun, end_on_sigterm, raise_descriptor_limit, resident_bytes
from bench.soak_backend import MARK_VARIABLE, marked, plain_body, stream_events
from bench.table import number, render

# ---- The config's numbers: short, so that all of it happens often ----

WAIT_S = 8.0
DRAIN_S = 5.0
STALL_S = 3.0
HOOK_S = {"wake": 4, "sleep": 3, "alive": 1, "prefetch": 2, "verify_asleep": 2}
BODY_BYTES = 2_200_000
POLICY = {
    "max_wait_secs": 3,
    "request_timeout_secs": WAIT_S,
    "drain_timeout_secs": DRAIN_S,
    "alive_interval_secs": 1,
    "alive_failures": 2,
}
LIMITS = {
    "body_bytes": BODY_BYTES,
    "queued_per_model": 20,
    "queued_bytes": 8_000_000,
    "client_stall_secs": STALL_S,
    "body_secs": 10,
}

# ---- The load ----

CLIENTS = 40
THINK_S = 0.4
"""Mean pause between two requests of a client."""

REQUEST_S = 90.0
"""A request that takes longer is a hang: waits twice WAIT_S (refused once), a drain or the time to
be found down each, and whatever hooks run meanwhile."""

FAVOURITE_S = 20.0
"""How long some models are asked for more than others."""

# ---- Faults: mean seconds between two ----

EVERY_S = {
    "wake hook": 6.0,
    "sleep hook": 10.0,
    "verify_asleep hook": 10.0,
    "backend killed": 8.0,
    "backend stopped": 20.0,
    "forced switch": 3.0,
    "manual mode": 40.0,
}
MOST_KILLS = 12
"""Of llmux itself; all in the first half of a run, so that the second can say what it leaks."""

WAKE_FAULTS = (
    "fails", "fails late", "hangs", "hangs late", "ignores SIGTERM", "prints 10 MB", "is no UTF-8",
    "fails, no UTF-8",
)  # fmt: skip
SLEEP_FAULTS = ("fails", "hangs", "ignores SIGTERM")
SLEEP_FAULTS_VERIFIED = (*SLEEP_FAULTS, "does nothing")
"""Who has no verify_asleep hook is believed to be asleep (contract, section 3)."""

LIES = {
    "garbage head": 8, "resets": 6, "length too long": 6, "length too short": 4, "breaks off": 6,
    "resets half-way": 4, "breaks framing": 4, "stalls": 6, "says 503": 4, "refuses": 1,
    "crashes": 1, "crashes half-way": 1, "hangs": 1,
}  # fmt: skip
LIES_OF_PLAIN = {"length too long", "length too short", "says 503"}
LIES_OF_STREAM = {"breaks framing"}
LIE_SHARE = 0.08

# ---- What is judged ----

CODES = {
    "no_model": 404, "model_not_found": 404, "bad_request": 400, "body_too_large": 413,
    "queue_full": 429, "switch_timeout": 504, "hook_failed": 500, "manual_mode": 503,
    "not_ready": 503, "shutting_down": 503, "backend_error": 502,
}  # fmt: skip
"""The contract's table."""

MAY_FOLLOW = {
    "garbage head": {"backend_error"},
    "resets": {"backend_error"},
    "length too long": {"cut"},
    "length too short": {"ok"},
    "breaks off": {"cut"},
    "resets half-way": {"cut", "backend_error"},
    "breaks framing": {"cut", "backend_error"},
    "stalls": {"cut", "left"},
    "says 503": {"ok"},
    "refuses": {"ok"},
    "crashes": {"backend_error"},
    "crashes half-way": {"cut", "backend_error"},
    "hangs": {"not_ready", "backend_error"},
}
"""What a client may see of its own request's fault. A reset overtakes what was sent before it."""

NEEDS_CAUSE = frozenset({"backend_error", "cut", "not_ready", "hook_failed"})
CAUSE_BEFORE_S = 15.0
CAUSE_AFTER_S = 2.0
END_S = 60.0
SAMPLE_S = 2.0
ROWS = 10
DESCRIPTOR_MARGIN = 4
MEMORY_FROM_MINUTES = 8.0
"""Shorter runs have too short a second half to say anything of memory."""

MEMORY_MARGIN_BYTES = 8 << 20

ROOT = Path(__file__).parents[1]
PR_SET_CHILD_SUBREAPER = 36

HOOKS = r"""
# Sourced by each hook: its functions take the group, and the words that start a server.
slug=$(printf %s "$LLMUX_MODEL" | tr -c 'A-Za-z0-9\n' _)

complain() {
    printf '{"at": %s, "what": "%s"}\n' "$(date +%s.%N)" "$*" >> violations
}

alone() {  # wake and sleep hooks of a group never overlap
    gpu=gpu-$1
    exec 9> "hooks-$1"
    flock -n 9 || complain "two hooks at once: $LLMUX_HOOK of $LLMUX_MODEL"
}

fault() {  # takes the ticket for this hook, if there is one
    kind=
    taken=tickets/taken-$slug-$$
    if mv "tickets/$LLMUX_HOOK-$slug" "$taken" 2> /dev/null; then
        kind=$(cat "$taken")
        rm "$taken"
        printf '{"at": %s, "kind": "%s hook %s", "model": "%s"}\n' \
            "$(date +%s.%N)" "$LLMUX_HOOK" "$kind" "$LLMUX_MODEL" >> faults
    fi
}

end_server() {
    for file in $(grep -ls -e "[-]-id=$LLMUX_SOAK-$slug-" /proc/[0-9]*/cmdline); do
        pid=${file#/proc/}
        kill -9 "${pid%/cmdline}" 2> /dev/null
        ended=1
    done
    [ -z "$ended" ] || flock -s -w 2 "$gpu" true
}

wake_up() {
    alone "$1"
    fault
    case $kind in
        fails) echo "no memory left"; exit 1 ;;
        hangs) sleep 60 ;;
        "ignores SIGTERM") trap '' TERM; sleep 60 ;;
        "prints 10 MB") head -c 10485760 /dev/zero | tr '\0' x ;;
        "is no UTF-8") printf '\377\376\200 \303(\n' ;;
        "fails, no UTF-8") printf '\377\376\200 \303(\033[31m\n'; exit 3 ;;
    esac
    end_server
    flock -s -w 0.5 "$gpu" true || complain "$LLMUX_MODEL is woken while $(cat "$gpu") is awake"
    rm -f "ready-$slug"
    $2 "$SOAK_PYTHON" -I -S "$SOAK_SERVER" "--id=$LLMUX_SOAK-$slug-" --model "$LLMUX_MODEL" \
        --slug "$slug" --group "$1" --port "$LLMUX_PORT" 9>&- &
    until [ -s "ready-$slug" ]; do sleep 0.02; done
    case $kind in
        "fails late") echo "found no weights"; exit 1 ;;
        "hangs late") sleep 60 ;;
    esac
    : > "awake-$slug"
}

go_to_sleep() {
    alone "$1"
    rm -f "awake-$slug"
    fault
    [ "$kind" = "does nothing" ] && exit 1
    sleep 0.06  # for the server to look whether a request is inside
    end_server
    case $kind in
        fails) exit 1 ;;
        hangs) sleep 60 ;;
        "ignores SIGTERM") trap '' TERM; sleep 60 ;;
    esac
    true
}

is_alive() {
    curl -sf -m 0.8 "http://127.0.0.1:$LLMUX_PORT/health"
}

is_asleep() {
    fault
    [ -z "$kind" ] && flock -s -n "gpu-$1" true
}
"""


# ---- The stage ----


@dataclass(frozen=True)
class Member:
    """A model of the run."""

    name: str
    alias: str
    group: str
    port: int
    starter: str
    is_verified: bool
    limit: int | None

    @property
    def slug(self) -> str:
        """Its name in file names; the hooks make the same."""
        return re.sub(r"[^A-Za-z0-9]", "_", self.name)

    def config(self) -> dict[str, Any]:
        """As in llmux's config."""
        keys: dict[str, Any] = {
            "port": self.port,
            "group": self.group,
            "aliases": [self.alias],
            "wake": f". ./hooks.sh; wake_up {self.group} {self.starter}",
            "sleep": f". ./hooks.sh; go_to_sleep {self.group}",
            "alive": ". ./hooks.sh; is_alive",
            "hook_timeouts": HOOK_S,
        }
        if self.is_verified:
            keys["verify_asleep"] = f". ./hooks.sh; is_asleep {self.group}"
        else:
            keys["prefetch"] = "sleep 0.05"
        if self.limit is not None:
            keys["max_in_flight"] = self.limit
        return keys


@dataclass(frozen=True)
class Fault:
    """Something that was done to a model; or by llmux, for a reason that is not a fault."""

    at: float
    kind: str
    model: str


class Stage:
    """The folder of a run: config, hooks, and what hooks and servers have seen."""

    def __init__(self, folder: Path, *, models: int, groups: int, ports: Sequence[int]) -> None:
        self.folder = folder
        self.mark = secrets.token_hex(8)
        self.port, *backends = ports
        self.members = [
            Member(
                name=f"maker/model-{index}" if index % 3 == 1 else f"model-{index}",
                alias=f"also-{index}",
                group=f"g{index % groups}",
                port=backends[index],
                starter="setsid" if (index // groups) % 2 else "",
                is_verified=(index // groups) % 3 != 1,
                limit=4 if (index // groups) % 3 == 2 else None,
            )
            for index in range(models)
        ]
        self.by_name = {member.name: member for member in self.members}
        self.environment = {
            MARK_VARIABLE: self.mark,
            "SOAK_PYTHON": sys.executable,
            "SOAK_SERVER": soak_backend.__file__,
        }
        self.tickets = folder / "tickets"
        self.tickets.mkdir()
        (folder / "hooks.sh").write_text(HOOKS)
        self.config = folder / "llmux.json"
        self.config.write_text(
            json.dumps({
                "port": self.port,
                "state_dir": "state",
                "policy": POLICY,
                "limits": LIMITS,
                "shutdown_grace_secs": 10,
                "on_shutdown": "sleep",
                "models": {member.name: member.config() for member in self.members},
            })
        )  # fmt: skip

    def faults(self) -> list[Fault]:
        """All that hooks, servers and this program have noted."""
        return [Fault(**entry) for entry in read_lines(self.folder / "faults")]

    def note(self, kind: str, model: str) -> None:
        """Note a fault."""
        with (self.folder / "faults").open("a") as file:
            print(json.dumps({"at": time.time(), "kind": kind, "model": model}), file=file)

    def server_of(self, member: Member) -> int | None:
        """The process of a model's server, if it runs."""
        with suppress(OSError, ValueError):
            pid = int((self.folder / f"ready-{member.slug}").read_text())
            wanted = f"--id={self.mark}-{member.slug}-".encode()
            if wanted in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        return None

    def hook_runs(self) -> bool:
        """Whether a wake or sleep hook runs at this instant."""
        groups = {member.group for member in self.members}
        locks = Path("/proc/locks").read_text()
        return any(is_locked(self.folder / f"hooks-{group}", locks) for group in groups)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that others append to, each whole."""
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                yield json.loads(line)


def is_locked(path: Path, locks: str) -> bool:
    """Whether /proc/locks has a file. To try the lock would be in the way of who wants it."""
    return path.exists() and f":{path.stat().st_ino} " in locks


def free_ports(count: int) -> list[int]:
    """Ports that no client is given for its own side meanwhile; no two runs try the same."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    for port in random.sample(range(max(1025, lowest - 12_000), lowest), k=500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) and len(found) < count:
                found.append(port)
    return found


# ---- llmux itself ----


class Llmux:
    """The llmux process, which may be killed and started again.

    Attributes:
        pid: Of the present one.
        lives: How many there were.
        since: When the present one began to listen (wall clock).
        away: From when to when there was none that listened (wall clock).
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.lives = 0
        self.since = 0.0
        self.away: list[tuple[float, float]] = []
        self.logs: list[Path] = []

    async def start(self) -> None:
        """Start it; returns once it listens."""
        self.lives += 1
        log = self._stage.folder / f"llmux-{self.lives}.log"
        self.logs.append(log)
        command = [
            sys.executable, "-m", "llmux", "--log-format", "json", "-c", str(self._stage.config),
        ]  # fmt: skip
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - a few times in all
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | self._stage.environment,
                start_new_session=True,
            )
        self.pid = self._process.pid
        with trio.move_on_after(30):
            while b'"serving"' not in log.read_bytes():
                if self.has_ended:
                    break
                await trio.sleep(0.02)
            else:
                self.since = time.time()
                return
        raise CannotRun(f"llmux does not start: {log.read_text(errors='replace')[-1000:]}")

    @property
    def has_ended(self) -> bool:
        """Whether it has, wanted or not."""
        return self._process is not None and self._process.poll() is not None

    async def kill_and_restart(self, down_s: float) -> None:
        """SIGKILL, and a new one after a while."""
        assert self._process is not None
        killed_at = time.time()
        self.away.append((killed_at, math.inf))
        self.since = math.inf
        self._process.kill()
        self._process.wait()
        await trio.sleep(down_s)
        await self.start()
        self.away[-1] = (killed_at, self.since)

    def was_away(self, begun_at: float, ended_at: float) -> bool:
        """Whether it was killed, or was not there, at some time between."""
        return any(begun_at <= until and since <= ended_at for since, until in self.away)

    async def stop(self) -> int | None:
        """SIGTERM; returns its exit code, None if it does not end."""
        assert self._process is not None
        self._process.terminate()
        with trio.move_on_after(30):
            while not self.has_ended:  # noqa: ASYNC110 - Popen, for kill() must not wait
                await trio.sleep(0.05)
        return self._process.poll()

    @property
    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - names only

    def open_files(self) -> list[str]:
        """What its descriptors are."""
        return [str(entry.readlink()) for entry in Path(f"/proc/{self.pid}/fd").iterdir()]

    def connections_to(self, ports: set[int]) -> int:
        """How many of them lead to these ports: pools keep some, that is no leak."""
        remote: dict[str, int] = {}
        for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            remote[fields[9]] = int(fields[2].partition(":")[2], 16)
        count = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):
                found = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
                count += found is not None and remote.get(found[1]) in ports
        return count


# ---- One request ----


@dataclass
class Ask:
    """What one client asks for, and how it behaves.

    Attributes:
        called: The name that it uses.
        wants: The only code that llmux may answer it with; empty for a request that is right.
        leave_after_s: When it goes, whatever has come.
        pace: Bytes that it takes at a time, with pauses; 0 for all that there is.
        is_slow_upload: Whether it sends its body in pieces, with pauses.
        stalls: Whether it reads the head of the answer, and no more.
    """

    id: str
    model: str
    called: str
    body_bytes: int
    size: int
    chunks: int
    gap_s: float
    work_s: float
    lie: str = ""
    wants: str = ""
    leave_after_s: float = math.inf
    leaves_by_reset: bool = False
    pace: int = 0
    is_slow_upload: bool = False
    stalls: bool = False
    body: bytes = b""

    def make_body(self) -> bytes:
        """The request's body; the id makes each another."""
        model = {"model": self.called} if self.wants != "no_model" else {}
        text = json.dumps({**model, "id": self.id, "stream": bool(self.chunks), "prompt": ""})
        if self.wants == "bad_request":
            text = text[:-1] + ', "model": "other"}'
        filler = f"{self.id} " * (self.body_bytes // (len(self.id) + 1))
        return (text[:-1] + f', "filler": "{filler}"' + "}").encode()

    def expected(self) -> bytes:
        """The body of a right answer."""
        checksum = zlib.crc32(self.body)
        if self.chunks:
            return b"".join(stream_events(self.model, self.id, checksum, self.chunks))
        body = plain_body(self.model, self.id, checksum, self.size)
        return body[:-20] if self.lie == "length too short" else body

    def head(self) -> h11.Request:
        """The request's head."""
        soak = {name: getattr(self, name) for name in ("id", "size", "chunks", "gap_s", "work_s")}
        return h11.Request(
            method="POST",
            target="/v1/chat/completions",
            headers=[
                ("Host", "llmux"),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(self.body))),
                ("x-soak", json.dumps(soak | {"lie": self.lie})),
            ],
        )


@dataclass
class Seen:
    """How a request ended.

    Attributes:
        outcome: ok, left, cut, lost, hang, wrong, or the code of llmux's error.
        status: Of the status line, if one came.
        model: As llmux named it.
        detail: More for people.
    """

    outcome: str
    status: int = 0
    model: str = ""
    detail: str = ""
    ask: Ask | None = None
    begun_at: float = 0.0
    ended_at: float = 0.0


class Line:
    """A client's connection; it carries requests until one side has enough.

    Attributes:
        opened_at: When (wall clock): whoever was killed since then has closed it.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.opened_at = time.time()
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        self._head: h11.Response | None = None
        self._body = bytearray()

    async def ask(self, ask: Ask) -> Seen:
        """Send a request and take its answer."""
        self._head, self._body = None, bytearray()
        data = (self._http.send(ask.head()) or b"") + (
            self._http.send(h11.Data(data=ask.body)) or b""
        )
        self._http.send(h11.EndOfMessage())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, data, ask)
            seen = await self._take(ask)
            nursery.cancel_scope.cancel()
        return seen

    @property
    def can_go_on(self) -> bool:
        """Whether it may carry another request."""
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def next(self) -> None:
        """Make ready for another."""
        self._http.start_next_cycle()

    async def _send(self, data: bytes, ask: Ask) -> None:
        # A server may answer before it has read it all: then the answer counts.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if not ask.is_slow_upload:
                await self.stream.send_all(data)
                return
            step = max(1, len(data) // 20)
            for start in range(0, len(data), step):
                await self.stream.send_all(data[start : start + step])
                await trio.sleep(0.1)

    async def _take(self, ask: Ask) -> Seen:
        while True:
            try:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self._receive(ask))
                    continue
            except h11.RemoteProtocolError as error:
                return self._broken(str(error))
            except trio.BrokenResourceError as error:
                return self._broken(str(error.__cause__ or error))
            if isinstance(event, h11.Response):
                self._head = event
                if ask.stalls:
                    await trio.sleep(STALL_S + 2)
                    return self._seen("left")
            elif isinstance(event, h11.Data):
                self._body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return self._judge(ask)
            elif isinstance(event, h11.ConnectionClosed):
                return self._broken("closed")

    async def _receive(self, ask: Ask) -> bytes:
        if ask.pace:
            await trio.sleep(0.02)
        return bytes(await self.stream.receive_some(ask.pace or 1 << 16))

    def _broken(self, detail: str) -> Seen:
        if self._head is None:
            return Seen("lost", detail=f"no answer: {detail}")
        return self._seen("cut", f"{detail}, after {len(self._body)} bytes")

    def _seen(self, outcome: str, detail: str = "") -> Seen:
        assert self._head is not None
        return Seen(outcome, self._head.status_code, self._header(b"x-llmux-model"), detail)

    def _header(self, name: bytes) -> str:
        assert self._head is not None
        return next((value.decode() for key, value in self._head.headers if key == name), "")

    def _judge(self, ask: Ask) -> Seen:
        """A whole answer: is it the right one?"""
        assert self._head is not None
        status, body = self._head.status_code, bytes(self._body)
        if status == (503 if ask.lie == "says 503" else 200) and body == ask.expected():
            right = not ask.wants and self._header(b"x-llmux-model") == ask.model
            return self._seen("ok" if right else "wrong", "" if right else "named wrongly")
        try:
            error = json.loads(body)["error"]
            code, message = error["code"], error["message"]
        except (ValueError, KeyError, TypeError):
            detail = f"{status}, {len(body)} bytes, not as expected: {body[:200]!r}"
            return self._seen("wrong", detail)
        if CODES.get(code) != status or error.get("type") != "llmux_error":
            return self._seen("wrong", f"{status} {code}: {message}")
        if code == "queue_full" and not self._header(b"retry-after").isdigit():
            return self._seen("wrong", "429 without Retry-After")
        return self._seen(code, message)


# ---- The run ----


@dataclass
class Sample:
    """llmux at one moment."""

    at_s: float
    life: int
    rss_bytes: int
    descriptors: int
    to_backends: int
    requests: int


@dataclass
class Record:
    """What was seen so far.

    Attributes:
        outcomes: By label, for the table.
        counted: In the present life: what llmux must have counted, by model and status.
        unknown: How many left in it, or came while it began: they are counted in one way or
            another, or not at all.
        doubtful: What needs a cause.
        violations: What must not be.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    counted: Counter[tuple[str, int]] = field(default_factory=Counter)
    unknown: int = 0
    done: int = 0
    doubtful: list[Seen] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    manual: list[tuple[float, float]] = field(default_factory=list)
    longest_s: float = 0.0


class Soak:
    """One run."""

    def __init__(self, stage: Stage, *, seconds: float, seed: int) -> None:
        self.stage = stage
        self.llmux = Llmux(stage)
        self.record = Record()
        self._seconds = seconds
        self._seed = seed
        self._began_at = 0.0
        self._idle_descriptors = 0
        self._backend_ports = {member.port for member in stage.members}

    async def run(self) -> None:
        """All of it; what is found is in `record`."""
        await self.llmux.start()
        self._began_at = trio.current_time()
        self._idle_descriptors = self.llmux.descriptors
        async with trio.open_nursery() as always:
            always.start_soon(self._sample)
            always.start_soon(self._look)
            async with trio.open_nursery() as clients:
                async with trio.open_nursery() as faults:
                    for index in range(CLIENTS):
                        clients.start_soon(self._client, self._rng(f"client {index}"), index)
                    for task in (self._tickets, self._servers, self._operators, self._kills):
                        faults.start_soon(task)
                    await trio.sleep(self._seconds)
                    faults.cancel_scope.cancel()
                await self._control("mode", {"mode": "auto"})
            await self._wait_idle()
            always.cancel_scope.cancel()
        await self._judge_counts()
        await self._judge_descriptors()
        self._judge_memory()
        await self._end()
        self._judge_causes()
        self._judge_logs()
        found = read_lines(self.stage.folder / "violations")
        self.record.violations += [entry["what"] for entry in found]

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self._seed} {name}")

    @property
    def _is_over(self) -> bool:
        return trio.current_time() >= self._began_at + self._seconds

    # ---- Clients ----

    async def _client(self, rng: random.Random, index: int) -> None:
        for turn in range(sys.maxsize):
            await trio.sleep(rng.expovariate(1 / THINK_S))
            count = rng.choice((1, 1, 3, 10))
            asks = [self._ask(rng, f"{index}.{turn}.{number}") for number in range(count)]
            if self._is_over:
                return
            await self._connection(asks)

    async def _connection(self, asks: Sequence[Ask]) -> None:
        """Ask one after the other, over one connection if it lasts."""
        line: Line | None = None
        try:
            for ask in asks:
                if self._is_over:
                    return
                begun_at = time.time()
                ask.body = ask.make_body()
                seen = Seen("hang", detail=f"no end after {REQUEST_S:g} s")
                with trio.move_on_after(REQUEST_S), trio.move_on_after(ask.leave_after_s) as leave:
                    try:
                        line = line or Line(await self._connect(ask))
                        seen = await line.ask(ask)
                    except OSError as error:
                        seen = Seen("lost", detail=str(error))
                if leave.cancelled_caught:
                    seen = Seen("left")
                seen.ask, seen.begun_at, seen.ended_at = ask, begun_at, time.time()
                if line is not None and seen.outcome == "left" and ask.leaves_by_reset:
                    option = struct.pack("ii", 1, 0)
                    line.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
                self._note(seen, line.opened_at if line else begun_at)
                if seen.outcome in {"lost", "queue_full", "manual_mode"}:
                    await trio.sleep(1.0)
                if line is not None and not line.can_go_on:
                    line.stream.socket.close()
                    line = None
                elif line is not None:
                    line.next()
        finally:
            if line is not None:
                line.stream.socket.close()

    async def _connect(self, ask: Ask) -> trio.SocketStream:
        plain = trio.socket.socket()
        try:
            if ask.pace or ask.stalls:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
            await plain.connect(("127.0.0.1", self.stage.port))
        except BaseException:
            plain.close()
            raise
        return trio.SocketStream(plain)

    def _ask(self, rng: random.Random, request_id: str) -> Ask:
        """The next thing that a client wants."""
        favourite = int((trio.current_time() - self._began_at) / FAVOURITE_S)
        members = self.stage.members
        ranks = [(index + favourite) % len(members) for index in range(len(members))]
        member = rng.choices(members, [1 / (1 + rank) ** 2 for rank in ranks])[0]
        large, lies = rng.random(), rng.random() < LIE_SHARE
        body_bytes = rng.randrange(2000)
        if large > 0.7:
            body_bytes = rng.randrange(200_000 if large < 0.95 else 2_000_000)
        ask = Ask(
            id=request_id,
            model=member.name,
            called=rng.choice((member.name, member.name, member.alias)),
            body_bytes=body_bytes,
            size=rng.randrange(20_000 if rng.random() < 0.9 else 500_000),
            chunks=rng.choice((0, 0, rng.randrange(1, 30))),
            gap_s=rng.choice((0.0, 0.01, 0.05)),
            work_s=rng.choice((0.0, 0.0, 0.05, rng.random())),
        )
        if lies:
            ask.lie = rng.choices(list(LIES), list(LIES.values()))[0]
            if ask.lie in LIES_OF_PLAIN:
                ask.chunks = 0
            elif ask.lie in LIES_OF_STREAM:
                ask.chunks = ask.chunks or 5
            elif ask.lie == "stalls":
                ask.leave_after_s = 8.0
            return ask
        self._behave(ask, rng)
        return ask

    def _behave(self, ask: Ask, rng: random.Random) -> None:
        style = rng.random()
        if style < 0.12:
            ask.leave_after_s = rng.choice((rng.random() * 0.05, rng.random() * 3))
            ask.leaves_by_reset = rng.random() < 0.5
        elif style < 0.17:
            ask.pace, ask.size, ask.chunks = 4096, rng.randrange(400_000), 0
        elif style < 0.18:
            ask.stalls, ask.size, ask.chunks = True, 4_000_000, 0
        elif style < 0.22:
            ask.is_slow_upload = True
        elif style < 0.25:
            ask.wants = rng.choice(("no_model", "model_not_found", "bad_request", "body_too_large"))
            if ask.wants == "model_not_found":
                ask.called = "nobody"
            elif ask.wants == "body_too_large":
                ask.body_bytes = BODY_BYTES + 1000

    def _note(self, seen: Seen, since: float) -> None:
        """Count how a request ended, and say what is wrong about it.

        Args:
            seen: How it ended.
            since: When its connection was opened.
        """
        record, ask = self.record, seen.ask
        assert ask is not None
        record.done += 1
        record.longest_s = max(record.longest_s, seen.ended_at - seen.begun_at)
        was_away = self.llmux.was_away(seen.begun_at, seen.ended_at)
        if (was_away and seen.outcome in {"lost", "cut"}) or (
            seen.outcome == "lost" and self.llmux.was_away(min(since, seen.begun_at), seen.ended_at)
        ):
            record.outcomes["llmux killed"] += 1
            return
        if was_away or seen.outcome == "left":
            record.unknown += 1
        elif seen.status and seen.begun_at > self.llmux.since:
            record.counted[seen.model, seen.status] += 1
        record.outcomes[self._label(seen, ask)] += 1
        if seen.outcome in {"lost", "hang", "wrong"} or (
            ask.wants and seen.outcome not in {ask.wants, "left", "queue_full"}
        ):
            self._violate(seen, "must not be")
        elif seen.outcome == "manual_mode" and not self._was_manual(seen):
            self._violate(seen, "in auto mode")
        elif seen.outcome == "switch_timeout" and seen.ended_at - seen.begun_at < WAIT_S - 0.1:
            self._violate(seen, "too early")
        elif seen.outcome == "ok" and "ok" not in MAY_FOLLOW.get(ask.lie, {"ok"}):
            self._violate(seen, "a fault that shows as success")
        elif seen.outcome in NEEDS_CAUSE - MAY_FOLLOW.get(ask.lie, set()):
            record.doubtful.append(seen)

    def _label(self, seen: Seen, ask: Ask) -> str:
        if seen.outcome == "ok":
            kind = "stream" if ask.chunks else "plain"
            return f"{seen.status} {kind}, whole and right"
        if seen.outcome == "left":
            return "client left" if not ask.stalls else "client did not read, and left"
        if seen.outcome == "cut":
            return f"{seen.status} cut"
        return f"{seen.status} {seen.outcome}" if seen.status else seen.outcome

    def _was_manual(self, seen: Seen) -> bool:
        return any(
            since <= seen.ended_at and seen.begun_at <= until for since, until in self.record.manual
        )

    def _violate(self, seen: Seen, why: str) -> None:
        self.record.violations.append(f"{why}: {describe(seen)}")

    # ---- Faults ----

    async def _now_and_then(
        self, what: str, act: Callable[[random.Random], Awaitable[None]]
    ) -> None:
        rng = self._rng(what)
        while True:
            await trio.sleep(rng.expovariate(1 / EVERY_S[what]))
            await act(rng)

    async def _tickets(self) -> None:
        """Hooks fail by tickets that they find, so that it is known which have."""

        async def put(hook: str, kinds: Sequence[str], member: Member) -> None:
            path = self.stage.tickets / f"{hook}-{member.slug}"
            new = path.with_suffix(".new")
            new.write_text(kinds[0])
            new.replace(path)

        async def wake(rng: random.Random) -> None:
            member = rng.choice(self.stage.members)
            await put("wake", [rng.choice(WAKE_FAULTS)], member)

        async def sleep(rng: random.Random) -> None:
            member = rng.choice(self.stage.members)
            kinds = SLEEP_FAULTS_VERIFIED if member.is_verified else SLEEP_FAULTS
            await put("sleep", [rng.choice(kinds)], member)

        async def verify(rng: random.Random) -> None:
            verified = [member for member in self.stage.members if member.is_verified]
            await put("verify_asleep", ["says no"], rng.choice(verified))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._now_and_then, "wake hook", wake)
            nursery.start_soon(self._now_and_then, "sleep hook", sleep)
            nursery.start_soon(self._now_and_then, "verify_asleep hook", verify)

    async def _servers(self) -> None:
        """Servers crash and hang by themselves, too, whatever they are doing."""

        async def hit(rng: random.Random, kind: str, number: signal.Signals) -> None:
            running = [member for member in self.stage.members if self.stage.server_of(member)]
            if not running:
                return
            member = rng.choice(running)
            if (pid := self.stage.server_of(member)) is not None:
                with suppress(ProcessLookupError):
                    self.stage.note(kind, member.name)
                    os.kill(pid, number)

        async def kill(rng: random.Random) -> None:
            await hit(rng, "backend killed", signal.SIGKILL)

        async def stop(rng: random.Random) -> None:
            await hit(rng, "backend stopped", signal.SIGSTOP)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._now_and_then, "backend killed", kill)
            nursery.start_soon(self._now_and_then, "backend stopped", stop)

    async def _operators(self) -> None:
        async def switch(rng: random.Random) -> None:
            member = rng.choice(self.stage.members)
            await self._control("switch", {"model": member.name})

        async def manual(rng: random.Random) -> None:
            since = time.time()
            self.record.manual.append((since, math.inf))
            try:
                await self._control("mode", {"mode": "manual"})
                await trio.sleep(rng.uniform(0.5, 3))
            finally:
                with trio.CancelScope(shield=True):
                    await self._control("mode", {"mode": "auto"})
                    # Who was refused then may hear of it a little later.
                    self.record.manual[-1] = (since, time.time() + 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._now_and_then, "forced switch", switch)
            nursery.start_soon(self._now_and_then, "manual mode", manual)

    async def _control(self, path: str, body: Mapping[str, str]) -> None:
        """Ask the control API; a switch may fail, but only as the table says."""
        begun_at = time.time()
        try:
            with trio.fail_after(REQUEST_S):
                status, answer = await self._fetch("POST", f"/control/{path}", json.dumps(body))
        except trio.TooSlowError:
            self.record.violations.append(f"control {path} {body}: no answer")
            return
        except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            if not self.llmux.was_away(begun_at, time.time()):
                self.record.violations.append(f"control {path}: {error!r}")
            return
        code = "" if status == 200 else json.loads(answer)["error"]["code"]
        if code and (path != "switch" or code not in {"hook_failed", "not_ready"}):
            self.record.violations.append(f"control {path} {body}: {status} {answer!r}")
        self.stage.note(f"control {path}" + (f": {status}" if code else ""), body.get("model", ""))

    async def _kills(self) -> None:
        """SIGKILL for llmux, a few times in the first half, mostly while a hook runs."""
        rng = self._rng("kills")
        count = max(1, min(MOST_KILLS, round(self._seconds / 30)))
        for instant in sorted(rng.uniform(0.15, 0.5) for _ in range(count)):
            await trio.sleep_until(self._began_at + instant * self._seconds)
            if rng.random() < 0.75:
                with trio.move_on_after(3):
                    while not self.stage.hook_runs():  # noqa: ASYNC110 - of another process
                        await trio.sleep(0.005)
                await trio.sleep(rng.random() * 0.15)
            self.record.counted.clear()
            self.record.unknown = 0
            with trio.CancelScope(shield=True):
                self.stage.note("llmux killed", "")
                await self.llmux.kill_and_restart(rng.random())

    # ---- Watching ----

    async def _sample(self) -> None:
        while True:
            with suppress(OSError, AssertionError):  # it is just being started again
                self.record.samples.append(
                    Sample(
                        trio.current_time() - self._began_at,
                        self.llmux.lives,
                        resident_bytes(self.llmux.pid),
                        self.llmux.descriptors,
                        self.llmux.connections_to(self._backend_ports),
                        self.record.done,
                    )
                )
            if self.llmux.has_ended and not self.llmux.was_away(time.time(), time.time()):
                log = self.llmux.logs[-1].read_text(errors="replace")
                raise CannotRun(f"llmux has ended by itself: {log[-2000:]}")
            await trio.sleep(SAMPLE_S)

    async def _look(self) -> None:
        """Invariant 4: nobody waits for a model that is awake and has room."""
        stuck: set[str] = set()
        while True:
            await trio.sleep(0.3)
            with suppress(OSError, trio.BrokenResourceError, h11.RemoteProtocolError, ValueError):
                models = (await self._status())["models"]
                before, stuck = stuck, {
                    member.name
                    for member in self.stage.members
                    if (seen := models[member.name])["awake"]
                    and seen["queued"]
                    and seen["in_flight"] < (member.limit or math.inf)
                }  # fmt: skip
                self.record.violations += [
                    f"requests wait for {name}, which is awake: {models[name]}"
                    for name in before & stuck
                ]

    async def _fetch(self, method: str, target: str, body: str = "") -> tuple[int, bytes]:
        """One request to llmux's own paths."""
        http = h11.Connection(h11.CLIENT)
        async with await trio.open_tcp_stream("127.0.0.1", self.stage.port) as stream:
            length = ("Content-Length", str(len(body)))
            headers = [("Host", "localhost"), ("Connection", "close"), length]
            request = h11.Request(method=method, target=target, headers=headers)
            head = http.send(request) or b""
            await stream.send_all(head + (http.send(h11.Data(data=body.encode())) or b""))
            http.send(h11.EndOfMessage())
            status, data = 0, b""
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    data += event.data
                elif isinstance(event, h11.EndOfMessage):
                    return status, data

    async def _status(self) -> dict[str, Any]:
        _, body = await self._fetch("GET", "/control/status")
        status: dict[str, Any] = json.loads(body)
        return status

    async def _wait_idle(self) -> None:
        """Nobody asks any more: soon nothing may wait, nor be in flight."""
        status: dict[str, Any] = {}
        with trio.move_on_after(END_S):
            while True:
                status = await self._status()
                busy = any(m["in_flight"] or m["queued"] for m in status["models"].values())
                if not busy and status["state"] != "switching":
                    return
                await trio.sleep(0.2)
        self.record.violations.append(f"not idle after {END_S:g} s: {json.dumps(status)}")

    async def _judge_counts(self) -> None:
        _, body = await self._fetch("GET", "/metrics")
        text = body.decode()
        gauge = r"^(llmux_request_queue_depth|llmux_model_in_flight)\{.*\} (\S+)$"
        for found in re.finditer(gauge, text, re.MULTILINE):
            if float(found[2]):
                self.record.violations.append(f"at the end: {found[0]}")
        counted: Counter[tuple[str, int]] = Counter()
        series = r'^llmux_requests_total\{model="(.*)",status="(\d+)",waited="\w+"\} (\S+)$'
        for found in re.finditer(series, text, re.MULTILINE):
            counted[found[1], int(found[2])] += int(float(found[3]))
        missing = self.record.counted - counted
        excess = counted - self.record.counted
        if missing or excess.total() > self.record.unknown:
            self.record.violations.append(
                f"requests by model and status: llmux has {dict(missing)} too few, "
                f"{dict(excess)} too many, and {self.record.unknown} may count as anything"
            )
        elif not counted:
            self.record.violations.append("llmux has counted nothing")

    async def _judge_descriptors(self) -> None:
        most = self._idle_descriptors + DESCRIPTOR_MARGIN
        own = math.inf
        with trio.move_on_after(15):
            while own > most:
                pooled = self.llmux.connections_to(self._backend_ports)
                own = self.llmux.descriptors - pooled
                await trio.sleep(0.2)
            return
        self.record.violations.append(
            f"{own} descriptors at the end, without those to backends; "
            f"{self._idle_descriptors} at the start: {self.llmux.open_files()}"
        )

    def growth_bytes(self) -> float:
        """Of the last life's second half: medians of its two halves."""
        last = [sample for sample in self.record.samples if sample.life == self.llmux.lives]
        half = [sample.rss_bytes for sample in last[len(last) // 2 :]]
        if len(half) < 4:
            return math.nan
        middle = len(half) // 2
        return median(half[middle:]) - median(half[:middle])

    def _judge_memory(self) -> None:
        long_enough = self._seconds >= 60 * MEMORY_FROM_MINUTES
        if long_enough and self.growth_bytes() > MEMORY_MARGIN_BYTES:
            self.record.violations.append(f"memory grows: {self.growth_bytes():,.0f} bytes")

    async def _end(self) -> None:
        code = await self.llmux.stop()
        if code != 0:
            self.record.violations.append(f"llmux ends with {code} on SIGTERM")
        with trio.move_on_after(2):
            while list(marked(self.stage.mark)):  # noqa: ASYNC110 - other processes
                await trio.sleep(0.05)
        found = {pid: command_of(pid) for pid in marked(self.stage.mark)}
        self.record.violations += [f"left behind: {pid} {text}" for pid, text in found.items()]

    def _judge_causes(self) -> None:
        """Each 502, 500 and cut has a cause, or is a violation."""
        causes = self.stage.faults() + [
            Fault(
                datetime.fromisoformat(line["timestamp"]).timestamp(), line["event"], line["model"]
            )
            for log in self.llmux.logs
            for line in read_lines(log)
            if line.get("event") in {"drain_cut", "model_down"}
        ]
        causes = [cause for cause in causes if not cause.kind.startswith("control")]
        for seen in self.record.doubtful:
            if not any(is_cause(cause, seen) for cause in causes):
                self._violate(seen, "for no reason")

    def _judge_logs(self) -> None:
        """No traceback, nothing internal."""
        for log in self.llmux.logs:
            for line in log.read_text(errors="replace").splitlines():
                if (
                    not line.startswith("{")
                    or '"exception"' in line
                    or '"level": "critical"' in line
                ):
                    self.record.violations.append(f"{log.name}: {line[:3000]}")


def command_of(pid: int) -> str:
    """A process's command line, for people."""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return command.replace(b"\0", b" ").decode(errors="replace")[:300]
    return "gone"


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def describe(seen: Seen) -> str:
    """A request and its end, for people."""
    ask = seen.ask
    assert ask is not None
    about = {
        name: value
        for name, value in vars(ask).items()
        if value and name != "body" and value != math.inf
    }
    begun = datetime.fromtimestamp(seen.begun_at).astimezone().isoformat()
    took = f"{seen.ended_at - seen.begun_at:.2f} s"
    return f"{seen.status} {seen.outcome} ({seen.detail}) after {took} from {begun}: {about}"


FATAL = re.compile(
    r"backend (killed|stopped|crashes|crashes half-way|hangs|refuses)|drain_cut|model_down"
)


def is_cause(cause: Fault, seen: Seen) -> bool:
    """Whether a fault explains how another's request has ended."""
    assert seen.ask is not None
    if not seen.begun_at - CAUSE_BEFORE_S <= cause.at <= seen.ended_at + CAUSE_AFTER_S:
        return False
    if seen.outcome == "hook_failed":
        # That of its own model's wake hook, or of what would not sleep before it.
        found = re.match(r"Hook failed for (\S+): ", seen.detail)
        return found is not None and cause.model == found[1]
    return cause.model == seen.ask.model and FATAL.fullmatch(cause.kind) is not None


# ---- Processes ----


@contextmanager
def watchdog(mark: str) -> Iterator[None]:
    """Whatever happens, SIGKILL included, nothing of the run outlives it."""
    command = [sys.executable, "-I", "-S", soak_backend.__file__, "--watch", mark]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
            reap(set())


@asynccontextmanager
async def reaping(llmux: Llmux) -> AsyncIterator[None]:
    """Take the place of process 1 for what llmux leaves behind: reap it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    async def reap_for_ever() -> None:
        while True:
            reap({llmux.pid})
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_for_ever)
        yield
        nursery.cancel_scope.cancel()


def reap(spared: set[int]) -> None:
    """Reap children that have ended, until one comes that somebody else waits for."""
    with suppress(ChildProcessError):
        while info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if info.si_pid in spared:
                return
            os.waitpid(info.si_pid, 0)


# ---- The report ----


def report(soak: Soak) -> str:
    """All tables."""
    record = soak.record
    kinds = Counter(fault.kind for fault in soak.stage.faults())
    outcomes = [(label, f"{count:,}") for label, count in sorted(record.outcomes.items())]
    parts = [
        render([("requests by outcome", "count"), *outcomes, ("all", f"{record.done:,}")]),
        f"longest request: {number(record.longest_s)} s",
        render([("faults by kind", "count"), *((k, str(n)) for k, n in sorted(kinds.items()))]),
        render([
            ("llmux over time", "life", "RSS MB", "descriptors", "to backends", "requests"),
            *(
                (
                    f"{sample.at_s:.0f} s",
                    str(sample.life),
                    f"{sample.rss_bytes / 1e6:.1f}",
                    str(sample.descriptors),
                    str(sample.to_backends),
                    f"{sample.requests:,}",
                )
                for sample in spread(record.samples, ROWS)
            ),
        ]),
        f"RSS, second half of the last life: {soak.growth_bytes() / 1e6:+.1f} MB",
        f"violations: {len(record.violations)}",
        *record.violations[:50],
    ]  # fmt: skip
    return "\n\n".join(parts)


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """So many of them, the first and the last included."""
    if len(samples) <= count:
        return list(samples)
    return [samples[index * (len(samples) - 1) // (count - 1)] for index in range(count)]


async def carry_out(soak: Soak) -> None:
    async with reaping(soak.llmux):
        await soak.run()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy logs and config there")
    options = parser.parse_args()
    end_on_sigterm()
    raise_descriptor_limit()
    missing = [tool for tool in ("flock", "curl", "setsid") if shutil.which(tool) is None]
    if missing or not Path("/proc/self/environ").exists():
        sys.exit(f"soak: needs Linux and {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="llmux-soak-") as name:
        ports = free_ports(options.models + 1)
        stage = Stage(Path(name), models=options.models, groups=options.groups, ports=ports)
        soak = Soak(stage, seconds=60 * options.minutes, seed=options.seed)
        try:
            with watchdog(stage.mark):
                trio.run(carry_out, soak)
        except* CannotRun as errors:
            soak.record.violations += [str(error) for error in errors.exceptions]
        except* KeyboardInterrupt:
            sys.exit(130)
        finally:
            if options.keep is not None:
                shutil.copytree(name, options.keep, dirs_exist_ok=True)
        print(f"seed {options.seed}, {options.minutes:g} min, {options.models} models\n")
        print(report(soak))
        sys.exit(1 if soak.record.violations else 0)


if __name__ == "__main__":
    main()
