"""What the documents say: the tests that they name exist, and what no other test shows is so."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import trio

from docs import generate
from llmux import errors
from llmux.api.openapi import OPERATIONS
from llmux.config import config_schema, parse_config
from llmux.hooks.process_group import KILL_AFTER_S
from llmux.policy import POLICIES
from llmux.switching.reload import FIXED
from tests.lanes import LANES, read_all, running_lane
from tests.servers import FORMS, chat, running_backends, running_llmux, start_in_vain

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TESTS = ROOT / "tests"
CHAT = "/v1/chat/completions"


DEFINITION = re.compile(r"^( *)(?:async def|def|class) (\w+)", re.MULTILINE)


def names_in(path: Path) -> Iterator[str]:
    """Every function and class of a file; methods as `Class.method`, too.

    By the lines that begin them: parsing all tests takes seconds.
    """
    outer = ""
    for indent, name in DEFINITION.findall(path.read_text()):
        yield name
        if not indent:
            outer = name
        elif len(indent) == 4:
            yield f"{outer}.{name}"


@cache
def all_names() -> dict[str, set[str]]:
    """By the file's name."""
    return {path.name: set(names_in(path)) for path in TESTS.rglob("*.py")}


def exists(pattern: str, file: str = "*") -> bool:
    """Whether the tests have such a function or class; a `*` at the end, or `...` in front, is any text."""
    pattern = pattern.replace("...", "*", 1) if pattern.startswith("...") else pattern
    return any(
        fnmatchcase(name, pattern)
        for path, names in all_names().items()
        if fnmatchcase(path, file)
        for name in names
    )


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of a document's tables, without their heads."""
    lines = text.splitlines()
    for above, line in pairwise(lines):
        is_rule = re.fullmatch(r"[|: -]+", line)
        if line.startswith("| ") and above.startswith("|") and not is_rule:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_every_fault_names_tests_that_exist() -> None:
    text = (DOCS / "inside" / "faults.md").read_text()
    faults = [row for row in rows(text) if len(row) in {4, 6}]  # and limits
    assert len(faults) > 50
    for row in faults:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+\*?)`", row[-1])
        assert len(named) == row[-1].count("`") / 2 > 0, f"no test: {row[0]}"
        for file, name in named:
            assert exists(name, file), f"{file}::{name}"
    # None stands outside of the tables; `test_docs.py` itself is named above them.
    assert text.count("`test_") - 1 == sum(row[-1].count("`test_") for row in faults)


def test_every_invariant_names_tests_that_exist() -> None:
    _, _, section = (DOCS / "design.md").read_text().partition("\n## Invariants")
    invariants = [row for row in rows(section.partition("\n## ")[0]) if row[0].isdigit()]
    assert [row[0] for row in invariants] == [str(number) for number in range(1, 10)]
    for row in invariants:
        named = re.findall(r"`([^`]+)`", row[-1])
        assert named, row
        for name in named:
            if name.endswith(".py"):
                assert list(TESTS.rglob(name)), name
            else:
                assert exists(name), name


def test_what_does_not_exist_is_noticed() -> None:
    assert exists("test_what_does_not_*", "test_docs.py")
    assert exists("..._is_noticed")
    assert exists("FakeHooks.run")
    assert not exists("test_what_does_not_exist")
    assert not exists("test_what_does_not_exist_is_noticed", "test_main.py")


# ---- The unit file ----


def test_the_unit_file() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((DOCS / "llmux.service").read_text())
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    service = dict(unit["Service"])
    expected = {
        "Type": "notify",
        "NotifyAccess": "main",
        "User": "llmux",
        "ExecStart": "/usr/local/bin/llmux -c /etc/llmux/llmux.yaml",
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "KillMode": "process",
        "Restart": "always",
        "StateDirectory": "llmux",
        "WorkingDirectory": "/var/lib/llmux",
        "OOMPolicy": "continue",
    }
    assert expected.items() <= service.items()
    assert float(service["RestartSec"]) > 0
    soft, _, hard = service["LimitNOFILE"].partition(":")
    assert int(soft) <= 1024 < int(hard)
    # What a stop may take: the grace, the end of a hook, and on_shutdown's sleep, tried twice.
    model = {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}
    config = parse_config({"models": {"a": model}, "state_dir": "state"}, directory=Path())
    timeouts = config.models["a"].hook_timeouts
    assert timeouts.sleep is not None
    assert timeouts.verify_asleep is not None
    kill_s = 2 * KILL_AFTER_S
    longest_s = config.shutdown_grace_secs + kill_s
    longest_s += 2 * (timeouts.sleep + kill_s + timeouts.verify_asleep + kill_s)
    assert float(service["TimeoutStopSec"]) > longest_s
    # It beats three times in this, and a frozen one is killed soon after SIGABRT.
    assert float(service["WatchdogSec"]) >= 10
    assert float(service["TimeoutAbortSec"]) < float(service["TimeoutStopSec"])
    # What a sandbox would take from the servers that hooks start.
    harmful = {
        "PrivateDevices", "PrivateTmp", "ProtectHome", "MemoryDenyWriteExecute", "NoNewPrivileges",
        "PrivateNetwork", "DevicePolicy", "MemoryMax",
    }  # fmt: skip
    assert not harmful & set(service)


# ---- What no other test shows ----


@pytest.mark.parametrize("lane", LANES)
async def test_a_client_that_closes_its_sending_side_has_left(lane: str, tmp_path: Path) -> None:
    async def never(stream: trio.SocketStream, request: bytes) -> None:
        assert not await stream.receive_some()

    async with running_lane(lane, tmp_path) as site, await site.connect() as stream:
        site.backend.play = never
        await stream.send_all(b"GET /x?model=a HTTP/1.1\r\nHost: h\r\n\r\n")
        with trio.fail_after(20):
            while not site.backend.received:
                await trio.sleep(0.001)
            await stream.send_eof()
            assert await read_all(stream) == b""
            while site.in_flight or site.backend.open:
                await trio.sleep(0.001)


async def test_a_stream_that_outlasts_the_grace_is_cut(tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a") as rack:
        config = rack.write_config(shutdown_grace_secs=0.3)
        async with running_llmux(config) as llmux, llmux.client() as client:
            endless = chat("a", stream=True, chunks=1_000_000, interval=0.01)
            async with client.stream("POST", CHAT, json=endless) as answer:
                chunks = answer.aiter_raw()
                received = await anext(chunks)
                llmux.process.send_signal(signal.SIGTERM)
                with pytest.raises(httpx.RemoteProtocolError):  # no end of the chunks
                    async for piece in chunks:
                        received += piece
                last = json.loads(received.strip().rpartition(b"data: ")[2])
                assert last["error"]["code"] == "shutting_down"
            with trio.fail_after(20):
                assert await llmux.process.wait() == 0


def unwritable(why: str) -> int:
    """A descriptor that takes nothing."""
    if why == "disk full":
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("why", ["disk full", "reader gone"])
async def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, why: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with running_backends(tmp_path, "a", "b") as rack:
        config = rack.write_config(port=port, models={"b": {"wake": "exit 1"}})
        stderr = unwritable(why)
        process = await trio.lowlevel.open_process(
            [*FORMS["llmux"], "-v", "-c", str(config)], stderr=stderr
        )
        os.close(stderr)
        try:
            with trio.fail_after(20):
                while True:
                    with suppress(OSError):
                        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                        break
                    await trio.sleep(0.02)
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                    for name, status in ("a", 200), ("b", 500), ("a", 200):
                        answer = await client.post(CHAT, json=chat(name))
                        assert answer.status_code == status
                process.terminate()
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()


async def test_a_state_dir_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with running_backends(tmp_path, "a") as rack:
        code, (line,) = await start_in_vain(rack.write_config(state_dir="file/state"), "llmux")
    assert code == 1
    assert "file/state" in line


# ---- What is made from the code ----


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_what_the_code_says_is_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert generate.renew(text) == text, "run: python -m docs.generate (or make docs)"


def test_what_is_made_from_the_code_is_in_the_pages() -> None:
    made = "".join(page.read_text() for page in generate.pages())
    for part in generate.PARTS:
        assert made.count(f"<!-- generated: {part} -->") == 1


def test_the_readme_names_every_error_code() -> None:
    readme = (ROOT / "README.md").read_text()
    codes = {
        each.code
        for each in vars(errors).values()
        if isinstance(each, type)
        and issubclass(each, errors.LlmuxError)
        and each is not errors.LlmuxError
    }
    assert len(codes) > 20
    assert {code for code in codes if f"`{code}`" not in readme} == set()


@pytest.mark.parametrize(
    "code", ["forbidden` on any other path", "id_not_found`", "model_asleep`", "would_switch`"]
)
def test_what_a_client_may_meet_by_surprise_is_in_troubleshooting(code: str) -> None:
    assert f" `{code} |" in (DOCS / "troubleshooting.md").read_text()


def test_no_page_promises_clients_the_output_of_hooks() -> None:
    pages = [ROOT / "README.md", *DOCS.glob("*.md")]
    promise = re.compile(
        r"(?i)error that (the )?clients? (got|gets?) has|in the error that clients"
    )
    said = [page.name for page in pages if promise.search(page.read_text())]
    assert said == []
    assert "500 with the hook's last lines" not in (DOCS / "operations.md").read_text()


def test_every_key_of_the_config_is_described() -> None:
    schema = config_schema()
    for path, section in generate.sections(schema["$defs"], "", schema["$ref"]):
        assert section["description"], path
        for key, shape in section["properties"].items():
            text = shape["description"]
            assert re.fullmatch(r"[A-Z].*\.", text), f"{path}.{key}: a sentence, please: {text}"
    sections = {path for path, _ in generate.sections(schema["$defs"], "", schema["$ref"])}
    assert len(sections) == len(schema["$defs"])


def test_every_policy_is_described() -> None:
    key = config_schema()["$defs"]["PolicyConfig"]["properties"]["name"]["description"]
    page = (DOCS / "policies.md").read_text()
    unnamed = {name for name in POLICIES if name not in key}
    assert not unnamed, "add it to the description of `name` in llmux/config/policy.py"
    without_row = {name for name in POLICIES if f"`{name}`" not in page}
    assert not without_row, "add it to the table of docs/policies.md"


def test_every_path_of_llmux_is_described() -> None:
    page = (DOCS / "http-api.md").read_text().partition("\n## llmux's own paths")[2]
    for operation in OPERATIONS:
        path = operation.path.partition("{")[0].rstrip("/")
        name = path.rpartition("/")[2]  # `POST /control/pin`, `unpin`
        is_described = path in page or f"`{name}`" in page
        assert is_described, f"docs/http-api.md needs a row for {operation.path}"


def test_what_needs_a_restart_is_in_the_config() -> None:
    text = (DOCS / "config.md").read_text()
    assert text.count("| **restart** |") == len(FIXED)


def test_every_log_event_is_documented() -> None:
    text = (DOCS / "metrics.md").read_text()
    logged = {
        name.value
        for path in (ROOT / "llmux").rglob("*.py")
        if "log." in (source := path.read_text())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"info", "warning", "error"}
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "log"
        for name in ast.walk(node.args[0])
        if isinstance(name, ast.Constant) and isinstance(name.value, str)
    }
    documented = {
        name
        for row in rows(text.partition("\n## Log events")[2])
        for name in re.findall(r"`(\w+)`", row[0])
    }
    assert documented == logged, "the table of log events in docs/metrics.md"


# ---- The site ----


FETCHED = re.compile(
    r'<(?:script|img|iframe|link rel="stylesheet")[^>]*?(?:src|href)="((?:https?:)?//[^"]*)"'
)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs mkdocs-material: make docs")
def test_the_site_is_built_without_warnings_and_fetches_nothing(tmp_path: Path) -> None:
    assert FETCHED.findall('<script src="https://cdn.example/x.js">')
    # No proxy answers on port 9: whatever the build would fetch fails.
    offline = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | offline | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not FETCHED.findall(page.read_text()), page
        assert '<pre class="mermaid"' not in page.read_text(), "mermaid is fetched by the reader"
