"""The terminal without a llmux: what is drawn, what is sent, and how each failure ends."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import BadStatusLine, HTTPConnection, RemoteDisconnected
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result
from rich.console import Console, RenderableType

from llmux.cli.main import main
from llmux.cli.terminal import views
from llmux.cli.terminal.client import Client
from llmux.cli.terminal.dialling import dial
from llmux.cli.terminal.events import Event, read_events
from llmux.cli.terminal.picture import Picture
from llmux.cli.terminal.progress import describe
from llmux.cli.terminal.target import Target, find_key, find_url
from llmux.observe.schemas import (
    AliveTrouble,
    GroupStatus,
    History,
    ModelStatus,
    Pin,
    RequestInfo,
    RequestList,
    Status,
    SwitchRecord,
)

NOW = 1_800_000_000.0


def model(state: Any = "asleep", **fields: Any) -> ModelStatus:
    facts: dict[str, Any] = {
        "group": "default", "since": NOW - 42, "in_flight": 0, "queued": 0,
        "awake": state == "awake", "oldest_wait_secs": None, "last_error": None,
        "retry_in_secs": None, "cost_secs": None, "eta_secs": None, "aliases": [],
        "backend": "http://127.0.0.1:8001", "max_in_flight": None, "idle_sleep_secs": None,
        "hooks": ["wake", "sleep", "alive"],
    }  # fmt: skip
    return ModelStatus(state=state, **(facts | fields))


SWITCH = SwitchRecord(
    id=12, group="default", source="llama", target="mistral", started=NOW - 12,
    reason="6 requests wait, the oldest 14 s", rule="weight", request="r-77", waiting=6,
    expected_secs=40.0,
)  # fmt: skip

STATUS = Status(
    at=NOW, version="1.2.3", boot="b1", started=NOW - 9000, state="switching",
    active_model="whisper", mode="auto", policy="adaptive", queue_depth={"mistral": 6},
    groups={
        "default": GroupStatus(
            state="switching", since=NOW - 12, active_model=None,
            models=["facebook/opt-125m", "llama", "mistral"], pinned=None, switch=SWITCH,
            standby=None,
        ),
        "second": GroupStatus(
            state="active", since=NOW - 300, active_model="whisper", models=["whisper"],
            pinned=Pin(model="whisper", wait=True), switch=None, standby=None,
        ),
    },
    models={
        "facebook/opt-125m": model(
            "failed", last_error="Hook failed: [bold]exit 1\nno\x1b[31m memory", retry_in_secs=4.0,
            aliases=["opt", "opt:125m"],
        ),
        "llama": model(cost_secs=31.2, eta_secs=35.0),
        "mistral": model("waking", queued=6, oldest_wait_secs=14.0),
        "whisper": model("awake", group="second", since=NOW - 300, in_flight=2, max_in_flight=8),
    },
    estimated_costs={},
)  # fmt: skip


def request(name: str, phase: Any, **fields: Any) -> RequestInfo:
    facts: dict[str, Any] = {
        "model": "mistral", "arrived": NOW - 14, "waited_secs": 14.0, "client": "10.0.0.7:51322",
        "method": "POST", "path": "/v1/chat/completions", "bytes_in": 512, "bytes_out": 0,
    }  # fmt: skip
    return RequestInfo(id=name, phase=phase, **(facts | fields))


REQUESTS = RequestList(
    at=NOW,
    total=3,
    requests=[
        request("r-77", "waiting"),
        request("r-78", "answering", model="whisper", waited_secs=0.0, bytes_out=123_456),
    ],
)

URL = "http://127.0.0.1:3000"


def drawn(what: RenderableType, width: int = 80, **options: Any) -> str:
    """As lines of text, without the blanks at their ends."""
    file = io.StringIO()
    Console(file=file, width=width, **options).print(what)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


# ---- What is drawn ----


def test_a_failing_model_is_told() -> None:
    failing = model("failed", failing=True, failed_wakes=3, last_error="Hook failed: exit 1")
    status = msgspec.structs.replace(STATUS, models={"b": failing})
    lines = [str(line) for line in views.remark_lines(status, NOW)]
    assert lines[1:] == [
        "b: failing, 3 failed wakes in a row; tried only while no other model is used, or by "
        "`llmux switch`",
        "b: Hook failed: exit 1",
    ]


def test_the_last_lines_of_a_hook_are_kept_apart() -> None:
    output = "\n".join(f"line {number}" for number in range(9))
    failed = model("failed", last_error=f"Hook failed for b: {output}\n", retry_in_secs=4.0)
    status = msgspec.structs.replace(STATUS, groups={}, models={"b": failed})
    assert [str(line) for line in views.remark_lines(status, NOW)] == [
        "b: Hook failed for b: line 0 (next try in 4.0 s)", "  ...",
        "  line 5", "  line 6", "  line 7", "  line 8",
    ]  # fmt: skip


def test_the_progress_of_an_order() -> None:
    def told(model: str, **states: tuple[Any, dict[str, Any]]) -> str:
        models = {name: model_of(*state) for name, state in states.items()}
        group = msgspec.structs.replace(STATUS.groups["default"], models=list(models))
        status = msgspec.structs.replace(STATUS, groups={"default": group}, models=models)
        return describe(status, model)

    def model_of(state: Any, fields: dict[str, Any]) -> ModelStatus:
        return model(state, since=NOW - 4, **fields)

    asleep: tuple[Any, dict[str, Any]] = ("asleep", {"aliases": ["m"]})
    drain: tuple[Any, dict[str, Any]] = ("draining", {"in_flight": 3})
    whole = " (12 s of ~40 s in all)"
    assert told("mistral", llama=drain, mistral=asleep) == (
        "drains llama for 4.0 s, 3 requests left" + whole
    )
    assert told("m", llama=("sleeping", {}), mistral=asleep) == "sleep hook of llama, 4.0 s" + whole
    assert told("mistral", mistral=("waking", {})) == "wake hook of mistral, 4.0 s" + whole
    assert told("mistral", mistral=("awake", {})) == "lets in who has waited for mistral"
    assert told("llama", llama=asleep, mistral=("waking", {})) == (
        "first a switch to mistral: wake hook of mistral, 4.0 s" + whole
    )
    assert told("unknown", llama=asleep) == ""


def test_failing_checks_and_why_a_model_stays_are_told() -> None:
    trouble = AliveTrouble(failures=2, limit=3, error="took longer than 10 s (hook_timeouts.alive)")
    whisper = msgspec.structs.replace(STATUS.models["whisper"], alive_trouble=trouble)
    second = msgspec.structs.replace(STATUS.groups["second"], stays="it still has work")
    status = msgspec.structs.replace(STATUS, groups={"second": second}, models={"whisper": whisper})
    assert [str(line) for line in views.remark_lines(status, NOW)] == [
        "second: stays with whisper: it still has work",
        "whisper: alive failed 2 of 3: took longer than 10 s (hook_timeouts.alive)",
    ]


def test_a_status_at_80_columns() -> None:
    assert (
        drawn(views.show_status(STATUS, URL))
        == """\
llmux 1.2.3 at http://127.0.0.1:3000, up 2.5 h, policy adaptive, mode auto

GROUP     MODEL             STATE                 IN FLIGHT  WAITING  PINNED
default   llama -> mistral  waking 12 s of ~40 s          0        6  -
second    whisper           active 5 min                  2        0  yes, wait

MODEL              STATE     FOR  IN FLIGHT  WAITING  OLDEST  COST   ETA
facebook/opt-125m  failed   42 s          0        0       -     -     -
llama              asleep   42 s          0        0       -  31 s  35 s
mistral            waking   42 s          0        6    14 s     -     -
whisper            awake   5 min        2/8        0       -     -     -

default: switch 12, weight: 6 requests wait, the oldest 14 s, request r-77
facebook/opt-125m: Hook failed: [bold]exit 1 (next try in 4.0 s)
  no\N{REPLACEMENT CHARACTER}[31m memory"""
    )


def test_requests_at_80_columns() -> None:
    assert (
        drawn(views.show_requests(REQUESTS))
        == """\
ID    MODEL     PHASE       AGE  WAITED  CLIENT             OUT  REQUEST
r-77  mistral   waiting    14 s    14 s  10.0.0.7:513…      0 B  POST /v1/chat/…
r-78  whisper   answering  14 s   0.0 s  10.0.0.7:513…  121 KiB  POST /v1/chat/…
... and 1 more"""
    )


def test_no_requests() -> None:
    nothing = RequestList(at=NOW, total=0, requests=[])
    assert drawn(views.show_requests(nothing)) == "no requests"


def test_switches_at_80_columns() -> None:
    done = msgspec.structs.replace(
        SWITCH,
        source=None,
        ended=NOW - 2,
        result="failure",
        error="exit 1",
        reason="",
        request=None,
    )
    assert (
        drawn(views.switches_table([SWITCH, done], NOW))
        == """\
 AGO  SWITCH              RESULT   TOOK  DRAIN  WHY
12 s  llama -> mistral    running  12 s  0.0 s  weight: 6 requests wait, the ol…
12 s  nothing -> mistral  failure  10 s  0.0 s  weight: no reason given; exit 1"""
    )


def test_names_are_whole_where_nobody_has_columns() -> None:
    file = io.StringIO()
    views.console(file).print(views.show_requests(REQUESTS))
    assert "10.0.0.7:51322" in file.getvalue()
    assert "/v1/chat/completions" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_narrow_and_wide_terminals() -> None:
    for width in (20, 40, 200):
        for what in (views.show_status(STATUS, URL), views.show_requests(REQUESTS)):
            assert all(len(line) <= width for line in drawn(what, width).splitlines())
    assert (
        drawn(views.models_table(STATUS, NOW), 40)
        == """\
MODEL         STATE   IN FLIGHT  WAITING
facebook/op…  failed          0        0
llama         asleep          0        0
mistral       waking          0        6
whisper       awake         2/8        0"""
    )


def test_colours_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    what = views.show_status(STATUS, URL)
    assert "\x1b[32mawake" in drawn(what, color_system="standard", force_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = drawn(what, color_system="standard", force_terminal=True)
    assert not {"\x1b[31m", "\x1b[32m", "\x1b[33m"} & set(plain.split("m"))
    assert "\x1b[3" not in plain


def test_what_the_locale_cannot_show_is_replaced() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    views.console(file).print(views.word("modèle"))
    file.flush()
    assert file.buffer.getvalue() == b"mod?le\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (-0.1, "0.0 s"), (4.25, "4.2 s"), (9.96, "10 s"), (119.4, "119 s"),
        (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (172_800, "2.0 d"),
    ],
)  # fmt: skip
def test_spans(seconds: float | None, text: str) -> None:
    assert views.span(seconds) == text


def test_sizes() -> None:
    for count, text in {
        0: "0 B",
        9999: "9999 B",
        10_000: "9.8 KiB",
        123_456: "121 KiB",
        20 << 20: "20 MiB",
        (1 << 30) - 1: "1 GiB",
        3 << 29: "1.5 GiB",
        4 << 30: "4 GiB",
        -(5 << 30): "-5 GiB",
        80 << 30: "80 GiB",
        3 << 40: "3072 GiB",
    }.items():
        assert views.size(count) == text


def test_sparklines() -> None:
    assert views.sparkline([], 4) == "    "
    assert views.sparkline([0, 1, 8, 4], 4) == " ▁█▄"
    assert views.sparkline([9, 9, 0, 1], 2) == " █"


# ---- Which llmux ----


@pytest.mark.parametrize(
    ("config", "url"),
    [
        ("port: 4000\nmodels: 3", "http://127.0.0.1:4000"),
        ("host: 0.0.0.0", "http://127.0.0.1:3000"),
        ('host: "::"\nport: 1', "http://[::1]:1"),
        ("host: gpu.example\nport: 1", "http://gpu.example:1"),
        ("port: [broken", "http://127.0.0.1:3000"),
        ("port: x", "http://127.0.0.1:3000"),
        ("[]", "http://127.0.0.1:3000"),
    ],
)
def test_the_config_says_where(config: str, url: str, tmp_path: Path) -> None:
    path = tmp_path / "llmux.yaml"
    path.write_text(config)
    assert find_url(None, None, {"LLMUX_CONFIG": str(path)}) == url


def test_the_command_line_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llmux.yaml").write_text("port: 4000")
    (tmp_path / "other.yaml").write_text("port: 5000")
    environ = {"LLMUX_URL": "https://far.example/llmux/"}
    assert find_url("far:99", tmp_path / "other.yaml", environ) == "http://far:99"
    assert find_url(None, tmp_path / "other.yaml", environ) == "https://far.example/llmux"
    assert find_url(None, tmp_path / "other.yaml", {}) == "http://127.0.0.1:5000"
    assert find_url(None, None, {}) == "http://127.0.0.1:4000"
    (tmp_path / "llmux.yaml").unlink()
    assert find_url(None, None, {}) == URL


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://x:y", "http://u:p@x", "http://x?y", "http://x#y", "http://[::1"]
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(click.UsageError):
        find_url(url, None, {})


def test_a_named_config_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="cannot be read"):
        find_url(None, tmp_path / "none.yaml", {})
    (tmp_path / "any.yaml").write_text("port: 0")
    with pytest.raises(click.UsageError, match="give --url"):
        find_url(None, tmp_path / "any.yaml", {})


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# mine\n\n ck-file \nck-second\n")
    environ = {"LLMUX_CONTROL_KEY": "ck-environ"}
    assert find_key("ck-given", None, environ) == "ck-given"
    assert find_key(None, file, environ) == "ck-file"
    assert find_key(None, None, environ) == "ck-environ"
    assert find_key(None, None, {"LLMUX_CONTROL_KEY": ""}) is None
    file.write_text("#\n")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for given, path in (
        ("a", file), ("a b", None), ("", None), (None, file), (None, tmp_path), (None, binary),
    ):  # fmt: skip
        with pytest.raises(click.UsageError) as caught:
            find_key(given, path, {})
        assert "a b" not in caught.value.message
    assert "ck" not in repr(Target(URL, "ck-given"))


# ---- What is sent, and what comes of it ----


class Answer:
    """Stands in for `HTTPResponse`."""

    def __init__(
        self, status: int = 200, content: bytes | Iterator[bytes] = b"", kind: str | None = None
    ) -> None:
        self.status = status
        self._kind = kind
        self._pieces = iter([content] if isinstance(content, bytes) else content)

    def getheader(self, _: str) -> str | None:
        return self._kind

    def read(self) -> bytes:
        return b"".join(self._pieces)

    def read1(self, _: int) -> bytes:
        return next(self._pieces, b"")

    def close(self) -> None:
        pass


def as_json(what: object, status: int = 200) -> Answer:
    return Answer(status, msgspec.json.encode(what), "application/json")


def refusal(status: int, code: str, message: str) -> Answer:
    error = {"message": message, "type": "llmux_error", "param": None, "code": code}
    return as_json({"error": error}, status)


class FakeConnection(HTTPConnection):
    """Notes what is sent, and answers as its fake says."""

    def __init__(self, fake: Fake) -> None:
        super().__init__("nowhere")
        self._fake = fake

    def connect(self) -> None:
        if self._fake.unreachable is not None:
            raise self._fake.unreachable
        self.sock = socket.socket()

    def request(
        self, method: str, url: str, body: Any = None, headers: Any = None, **_: Any
    ) -> None:
        self._fake.asked.append((method, url, body or b""))
        self._fake.headers.append({name.lower(): value for name, value in headers.items()})

    def getresponse(self) -> Any:
        return self._fake.answer()


class Fake:
    """A llmux that is none: notes what it is asked, and answers what it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.unreachable: Exception | None = None
        self.answer: Callable[[], Answer] = lambda: as_json({"message": "it is done"})

    def says(self, what: object, status: int = 200) -> None:
        self.answer = lambda: as_json(what, status)

    def refuses(self, status: int, code: str, message: str) -> None:
        self.answer = lambda: refusal(status, code, message)

    def client(self, target: Target) -> Client:
        return Client(target, lambda _url, _timeout_s: (FakeConnection(self), ""))


@pytest.fixture(autouse=True)
def _no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LLMUX_URL", "LLMUX_CONTROL_KEY", "LLMUX_CONFIG", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()

    monkeypatch.setattr("llmux.cli.terminal.commands.connect", fake.client)
    return fake


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["switch", "a/b"], ("POST", "/control/switch", b'{"model":"a/b"}')),
        (["wake", "a"], ("POST", "/control/wake", b'{"model":"a"}')),
        (["sleep", "a"], ("POST", "/control/sleep", b'{"model":"a"}')),
        (["pin", "a"], ("POST", "/control/pin", b'{"model":"a","wait":false}')),
        (["pin", "a", "--wait"], ("POST", "/control/pin", b'{"model":"a","wait":true}')),
        (["unpin"], ("POST", "/control/unpin", b"{}")),
        (["unpin", "--group", "g"], ("POST", "/control/unpin", b'{"group":"g"}')),
        (["unpin", "a"], ("POST", "/control/unpin", b'{"model":"a"}')),
        (["mode", "manual"], ("POST", "/control/mode", b'{"mode":"manual"}')),
        (["cordon"], ("POST", "/control/cordon", b"")),
        (["uncordon"], ("POST", "/control/uncordon", b"")),
        (["cancel", "r/1"], ("DELETE", "/control/requests/r%2F1", b"")),
        (["reload"], ("POST", "/control/reload", b"")),
    ],
)
def test_orders(fake: Fake, arguments: list[str], asked: object) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.output) == (0, "it is done\n")
    assert fake.asked == [asked]
    assert "authorization" not in fake.headers[0]
    assert run(*arguments, "--json").stdout == '{"message":"it is done"}\n'


def test_status_and_requests(fake: Fake) -> None:
    fake.says(STATUS)
    assert "llama -> mistral  waking 12 s of ~40 s" in run("status").stdout
    assert json.loads(run("status", "--json").stdout) == json.loads(msgspec.json.encode(STATUS))
    fake.says(REQUESTS)
    assert "10.0.0.7:51322" in run("requests", "--limit", "7").stdout
    assert fake.asked[-1][1] == "/control/requests?limit=7"
    assert json.loads(run("requests", "--json").stdout) == msgspec.to_builtins(REQUESTS)


def test_fields_of_a_newer_llmux_are_no_trouble(fake: Fake) -> None:
    fake.says(msgspec.to_builtins(STATUS) | {"weather": "fine"})
    assert run("status").exit_code == 0


def test_logs_come_as_they_are(fake: Fake) -> None:
    pieces = [b"first\n\xff", b"\x1b[31mlast"]
    fake.answer = lambda: Answer(content=iter(pieces))
    assert run("logs", "a/b", "-n", "5").stdout_bytes == b"".join(pieces)
    run("logs", "a", "-f")
    assert [path for _, path, _ in fake.asked] == [
        "/control/logs/a%2Fb?tail=5",
        "/control/logs/a?tail=200&follow=true",
    ]


def test_the_key_is_sent(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("ck-file\n")
    run("reload", "--key-file", "key")
    run("reload", "--key", "ck-given")
    monkeypatch.setenv("LLMUX_CONTROL_KEY", "ck-environ")
    run("reload")
    sent = [headers["authorization"] for headers in fake.headers]
    assert sent == ["Bearer ck-file", "Bearer ck-given", "Bearer ck-environ"]


def test_a_config_before_the_command_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.yaml").write_text("port: 4000")
    (tmp_path / "b.yaml").write_text("port: 5000")
    meant: list[str] = []

    def connect(target: Target) -> Client:
        meant.append(target.url)
        return Fake().client(target)

    monkeypatch.setattr("llmux.cli.terminal.commands.connect", connect)
    run("-c", "a.yaml", "reload")
    run("-c", "a.yaml", "reload", "-c", "b.yaml")
    assert meant == ["http://127.0.0.1:4000", "http://127.0.0.1:5000"]


HTML = "text/html; charset=utf-8"


@pytest.mark.parametrize(
    ("answer", "exit_code", "message"),
    [
        (lambda: Answer(200, b"<html>", HTML), 5, f"{URL} answers with broken JSON"),
        (lambda: Answer(200, b"\xff"), 5, "broken JSON"),
        (lambda: as_json({"a": 1}), 5, "a way that this llmux"),
        (lambda: Answer(404, b"<html>", HTML), 5, "does not answer as llmux does (HTTP 404, text/html)"),
        (lambda: as_json({"detail": "Not Found"}, 404), 5, "does not answer as llmux does"),
        (lambda: as_json({"error": {"message": "m", "type": "x", "code": "y"}}, 404), 5, "does not answer as llmux does"),
        (lambda: Answer(302), 5, "does not answer as llmux does (HTTP 302, nothing)"),
        (lambda: Answer(502, b"<html>", HTML), 5, "HTTP 502"),
        (lambda: Answer(401, b"<html>", HTML), 6, "HTTP 401 (give one of its control_keys"),
        (lambda: refusal(401, "invalid_api_key", "Wrong key"), 6, "Wrong key (give one"),
        (lambda: refusal(403, "forbidden", "Loopback only"), 6, "Loopback only (give one"),
        (lambda: refusal(404, "model_not_found", "Model not found: x"), 1, "Error: Model not found: x\n"),
        (lambda: refusal(500, "hook_failed", "Hook failed\n\x1b]0;x"), 1, "Error: Hook failed\n\N{REPLACEMENT CHARACTER}]0;x\n"),
    ],
)  # fmt: skip
def test_failures_are_one_clear_line(
    fake: Fake, answer: Callable[[], Answer], exit_code: int, message: str
) -> None:
    fake.answer = answer
    for command in (["status"], ["switch", "x"], ["requests"]):
        result = run(*command)
        assert (result.exit_code, result.stdout) == (exit_code, "")
        assert message in result.stderr
        assert result.stderr.startswith("Error: ")


def test_logs_fail_alike(fake: Fake) -> None:
    fake.refuses(404, "model_not_found", "Model not found: x")
    result = run("logs", "x")
    assert (result.exit_code, result.output) == (1, "Error: Model not found: x\n")


def test_json_of_a_refusal_is_llmuxs(fake: Fake) -> None:
    fake.refuses(404, "model_not_found", "Model not found: x")
    result = run("switch", "x", "--json")
    assert json.loads(result.stdout)["error"]["code"] == "model_not_found"
    assert (result.exit_code, result.stderr) == (1, "Error: Model not found: x\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionRefusedError(111, "Connection refused"), f"cannot reach llmux at {URL}: Connection refused (--url"),
        (ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1016)"), "certificate verify failed: self-signed certificate (--url"),
        (socket.gaierror(-2, "Name or service not known"), f"cannot reach llmux at {URL}: Name or service not known (--url"),
        (UnicodeError("label too long"), f"cannot reach llmux at {URL}: label too long (--url"),
        (TimeoutError("timed out"), "nobody answers at"),
    ],
)  # fmt: skip
def test_no_connection(fake: Fake, error: Exception, message: str) -> None:
    fake.unreachable = error
    check_no_answer(message)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TimeoutError("timed out"), "takes too long to answer"),
        (RemoteDisconnected("Server disconnected"), "broke: Server disconnected"),
        (ConnectionResetError(), "broke: ConnectionResetError"),
        (BadStatusLine("SSH-2.0"), "broke: SSH-2.0"),
    ],
)
def test_no_answer_at_all(fake: Fake, error: Exception, message: str) -> None:
    def fail() -> Answer:
        raise error

    fake.answer = fail
    check_no_answer(message)


def check_no_answer(message: str) -> None:
    for command in (["status"], ["logs", "x"]):
        result = run(*command)
        assert result.exit_code == 5
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_log_that_breaks_off(fake: Fake) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError(104, "Connection reset by peer")

    fake.answer = lambda: Answer(content=pieces())
    result = run("logs", "x", "-f")
    assert (result.exit_code, result.stdout) == (5, "half")
    assert result.stderr == f"Error: the connection to {URL} broke: Connection reset by peer\n"


def test_proxies_are_used_but_not_on_the_way_to_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("https_proxy", "proxy:3129")
    monkeypatch.setenv("no_proxy", "near.example")
    for url, reached, before in (
        ("http://far.example:3000/llmux", ("proxy", 3128), "http://far.example:3000"),
        ("https://far.example", ("proxy", 3129), ""),
        ("http://near.example", ("near.example", 80), ""),
        ("http://127.0.0.1:3000", ("127.0.0.1", 3000), ""),
        ("http://[::1]:3000", ("::1", 3000), ""),
    ):
        connection, prefix = dial(url, 1)
        assert ((connection.host, connection.port), prefix) == (reached, before)
    monkeypatch.undo()
    assert dial("http://far.example", 1)[0].host == "far.example"


def test_mistakes_in_the_command_line(fake: Fake) -> None:
    for command in (
        ["switch"], ["mode", "off"], ["status", "--url", "ftp://x"], ["completion", "tcsh"],
        ["requests", "--watch"], ["requests", "--watch", "--json"], ["top"],
        ["status", "--key", "a", "--key-file", "b"], ["logs", "x", "-n", "-1"],
        ["unpin", "a", "--group", "g"],
    ):  # fmt: skip
        assert run(*command).exit_code == 2, command
    assert not fake.asked


def test_help_tells_the_exit_codes_and_of_ps() -> None:
    for command in ("status", "switch", "logs"):
        text = run(command, "--help").stdout
        assert "Exit codes:\n" in text
        assert "(ps)" in text


# ---- As a process ----


def llmux(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "llmux", *arguments]
    return subprocess.run(command, capture_output=True, timeout=30, check=False, **options)


def test_nobody_there() -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        done = llmux("status", "--url", url)
    assert done.returncode == 5
    assert done.stderr.decode() == (
        f"Error: cannot reach llmux at {url}: Connection refused "
        "(--url or $LLMUX_URL says where it is)\n"
    )


@pytest.fixture
def long_log() -> Iterator[str]:
    """The URL of a server whose every answer is a long log; the rest of it never comes."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(b"line\n" * 100_000)
                over.wait(30)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        over.set()
        server.shutdown()
        thread.join()


def logs_of(url: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llmux", "logs", "x", "-f", "--url", url]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


def ends(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Its exit code, and what it has printed to standard error."""
    with process:
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, errors


def test_a_reader_that_leaves_is_no_failure_to_tell_of(long_log: str) -> None:
    process = logs_of(long_log, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    process.stdout = None
    assert ends(process) == (141, b"")


def test_ctrl_c(long_log: str) -> None:
    process = logs_of(long_log, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(500_000) == b"line\n" * 100_000
    process.send_signal(signal.SIGINT)
    assert ends(process) == (130, b"")


def test_a_disk_that_is_full(long_log: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with Path("/dev/full").open("wb") as full:
        process = logs_of(long_log, stdout=full)
        assert ends(process) == (1, b"Error: cannot write: No space left on device\n")


def test_what_a_command_does_not_use_is_not_imported() -> None:
    code = """
import sys, llmux.__main__
heavy = {"trio", "quart", "hypercorn", "httpx", "rich", "structlog"} & set(sys.modules)
assert not heavy, heavy
import llmux.cli.serve
assert "rich.console" not in sys.modules and "rich" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- Events ----


def test_events_are_read_whatever_the_pieces() -> None:
    stream = (
        b': comment\n\nid: b1-1\nevent: counts\ndata: {"a":"\xe2\x80\xa8"}\n\n'
        b"data:1\r\ndata:2\r\n\r\nevent: empty\n\nevent: cut\ndata: x\n"
    )
    expected = [Event("counts", b'{"a":"\xe2\x80\xa8"}', "b1-1"), Event("message", b"1\n2", "")]
    assert list(read_events([stream])) == expected
    assert list(read_events(bytes([byte]) for byte in stream)) == expected


def picture() -> Picture:
    found = Picture(clock=lambda: 100.0)
    found.apply("status", msgspec.json.encode(STATUS))
    return found


def tell(found: Picture, name: str, **what: Any) -> Status:
    found.apply(name, msgspec.json.encode({"at": NOW + 1, **what}))
    assert found.status is not None
    return found.status


def test_the_picture_follows_a_switch() -> None:
    found = picture()
    assert found.now == NOW
    status = tell(found, "phase", model="mistral", state="awake", left="waking")
    assert status.models["mistral"].state == "awake"
    assert status.models["mistral"].since == NOW + 1
    assert status.groups["default"].active_model == "mistral"
    assert status.groups["default"].state == "active"
    done = msgspec.structs.replace(SWITCH, ended=NOW, result="success")
    found.apply("switch", msgspec.json.encode(done))
    found.apply("switch", msgspec.json.encode(SWITCH))  # late: history, say
    assert found.status is not None
    assert list(found.switches.values()) == [done]
    status = tell(found, "phase", model="mistral", state="draining", left="awake")
    assert status.groups["default"].state == "switching"
    assert status.groups["second"].active_model == "whisper"
    status = tell(found, "phase", model="mistral", state="asleep", left="sleeping")
    assert status.groups["default"].state == "idle"


def test_the_picture_has_the_latest_expected_waits() -> None:
    known = {
        "refused": None, "awake": False, "running": 0, "waiting": 1, "max_in_flight": None,
        "arrivals_per_sec": 0.1, "latency_secs": None,
    }  # fmt: skip
    models = {
        "whisper": {"wait_secs": 12.5, "cost_secs": 4.0, **known},
        "gone": {"wait_secs": None, "cost_secs": None, **known},
    }
    status = tell(picture(), "outlook", boot="x", state="ready", models=models)
    assert status.models["whisper"].eta_secs == 12.5
    assert status.models["whisper"].cost_secs == 4
    assert "gone" not in status.models


def test_the_picture_has_tokens_a_second() -> None:
    assert "TOK/S" not in drawn(views.show_status(STATUS, URL))
    status = tell(picture(), "tokens", models={"whisper": 41.5, "gone": 1.0})
    assert status.models["whisper"].tokens_per_sec == 41.5
    assert "gone" not in status.models
    lines = drawn(views.show_status(status, URL)).splitlines()
    assert next(line for line in lines if line.startswith("MODEL")).endswith("TOK/S")
    assert next(line for line in lines if line.startswith("whisper")).endswith("41.5")


def test_the_picture_counts() -> None:
    found = picture()
    status = tell(found, "counts", models={"llama": [1, 2], "mistral": [3, 0], "unknown": [1, 1]})
    assert (status.models["llama"].in_flight, status.models["llama"].queued) == (1, 2)
    assert status.models["llama"].oldest_wait_secs == -1.0  # none yet, a second after the status
    assert status.models["mistral"].oldest_wait_secs is None
    found.sample()
    found.sample()
    assert list(found.queues["llama"]) == [2, 2]


def test_the_picture_knows_modes_pins_and_unknown_events() -> None:
    found = picture()
    assert tell(found, "mode", mode="manual").mode == "manual"
    status = tell(found, "pin", group="default", pinned={"model": "llama", "wait": False})
    assert status.groups["default"].pinned == Pin(model="llama", wait=False)
    assert tell(found, "pin", group="default", pinned=None).groups["default"].pinned is None
    assert tell(found, "cordon", cordoned=True).cordoned
    assert not tell(found, "cordon", cordoned=False).cordoned
    assert tell(found, "weather", fine=True) is status or found.status is not None


def test_a_cordon_is_seen_at_once() -> None:
    status = msgspec.structs.replace(STATUS, cordoned=True)
    head, *lines = drawn(views.show_status(status, URL)).splitlines()
    assert head.startswith(f"llmux {STATUS.version} at {URL}, cordoned, up")
    assert "cordoned: new requests get 503 (`llmux uncordon` ends that)" in lines
    assert "cordoned" not in drawn(views.show_status(STATUS, URL))


def test_the_picture_knows_checks_that_fail() -> None:
    found = picture()
    trouble = {"failures": 1, "limit": 3, "error": "exited with 7"}
    status = tell(found, "alive", model="whisper", trouble=trouble)
    assert status.models["whisper"].alive_trouble == AliveTrouble(1, 3, "exited with 7")
    assert (
        tell(found, "alive", model="whisper", trouble=None).models["whisper"].alive_trouble is None
    )


def test_the_picture_knows_models_that_keep_failing() -> None:
    change = {"model": "llama", "failing": True, "failed_wakes": 3, "error": "no GPU"}
    llama = tell(picture(), "failing", **change).models["llama"]
    assert (llama.failing, llama.failed_wakes, llama.last_error) == (True, 3, "no GPU")


def test_an_old_status_does_not_undo_events() -> None:
    found = picture()
    tell(found, "mode", mode="manual")
    found.set_status(STATUS)
    assert found.status is not None
    assert found.status.mode == "manual"
    newer = msgspec.structs.replace(STATUS, at=NOW + 2)
    found.set_status(newer)
    assert found.status is newer


def test_another_start_of_llmux_begins_anew() -> None:
    found = picture()
    tell(found, "mode", mode="manual")
    found.set_requests(REQUESTS)
    found.set_history(
        History(at=NOW, last_event_id="", phases=[], switches=[SWITCH], hooks=[], counts=[])
    )
    found.set_status(msgspec.structs.replace(STATUS, boot="b2", at=NOW - 50))
    assert not found.requests_now()
    assert not found.switches
    assert found.status is not None
    assert found.status.mode == "auto"


def test_requests_come_wait_and_go() -> None:
    time = 100.0
    found = Picture(clock=lambda: time)
    found.set_status(STATUS)
    found.set_requests(REQUESTS)
    time += 5
    assert [r.waited_secs for r in found.requests_now()] == [19.0, 0.0]
    ended = request("r-78", "ended", ended=NOW + 5, status=200)
    changes = {"changed": [request("r-79", "reading")], "ended": [ended], "at": NOW + 5}
    found.apply("requests", msgspec.json.encode(changes))
    assert [r.id for r in found.requests_now()] == ["r-77", "r-79"]


# ---- Completion ----


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    script = run("completion", shell).stdout
    assert f"_LLMUX_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script.encode(), check=True, timeout=30)


BASH = """
set -u
eval "$(llmux completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_KEY=9
COMP_WORDS=($1) COMP_CWORD=0
_llmux_completion llmux x y
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(line: str, tmp_path: Path) -> list[str]:
    """What bash proposes behind a line; it runs the real script and the real command."""
    program = tmp_path / "llmux"
    program.write_text(
        f"#!{sys.executable}\nfrom llmux.__main__ import main\nmain(prog_name='llmux')\n"
    )
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", line],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "LLMUX_URL": "http://127.0.0.1:1"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash on this system")
@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("llmux sw", ["switch"]),
        ("llmux mode ", ["auto", "manual"]),
        ("llmux switch ", ["a/b", "llama3:8b", "gpt", "llama3:70b"]),
        ("llmux switch llama3:", ["8b", "70b"]),  # bash keeps what is before the colon
        ("llmux pin --wait a", ["a/b"]),
        ("llmux cancel ", []),
        ("llmux switch --key-f", ["--key-file"]),
    ],
)
def test_bash_completes(line: str, proposed: list[str], tmp_path: Path) -> None:
    (tmp_path / "llmux.yaml").write_text(
        "models: {a/b: {}, 'llama3:8b': {aliases: [gpt]}, 'llama3:70b': null, 3: []}"
    )
    assert complete(line, tmp_path) == proposed
