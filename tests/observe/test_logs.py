"""Log lines, as another process prints them: logging is a matter of the whole process."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import trio

from tests.servers import chat, running_backends, running_llmux

PROGRAM = """
from llmux.observe import logs

logs.configure({log_format!r}, verbose={verbose})
log = logs.get_logger("llmux.x")
log.debug("quiet")
log.info("switch_started", **{{"from": None, "to": "a"}})

def fail(key):
    raise ValueError("no")

try:
    fail("SECRET")
except ValueError:
    log.exception("internal_error", model="a")
"""


def printed(log_format: str, *, verbose: bool = False) -> str:
    program = PROGRAM.format(log_format=log_format, verbose=verbose)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == ""
    return run.stderr


def test_text_is_one_line_an_event_and_shows_no_local_variables() -> None:
    first, second, *traceback = printed("text").splitlines()
    assert "switch_started" in first
    assert "to=a" in first
    assert "internal_error" in second
    assert traceback[-1] == "ValueError: no"
    # With rich installed, as it is here, structlog's own default would show what `fail` was given.
    assert not any("SECRET'" in line or "key =" in line for line in traceback)


def test_json_is_one_object_a_line() -> None:
    started, failed = map(json.loads, printed("json").splitlines())
    assert (started["event"], started["from"], started["to"]) == ("switch_started", None, "a")
    assert started["level"] == "info"
    assert "ValueError: no" in failed["exception"]


def test_json_is_what_every_parser_takes() -> None:
    program = """
import logging, math, threading, warnings
from llmux.observe import logs
from llmux.observe.uncaught import log_uncaught

logs.configure("json")
log_uncaught()
logs.get_logger("x").info("odd", none=math.inf, error=ValueError("no"), half="\\udcff")
logging.getLogger("hypercorn.error").warning("a\\nb %s", 1, stack_info=True)
logging.getLogger("hypercorn.error").error("group", exc_info=ExceptionGroup("g", [ValueError("x")]))
warnings.warn("careful")
thread = threading.Thread(target=lambda: 1 / 0, name="other")
thread.start()
thread.join()

class Unraisable:
    def __del__(self):
        raise ValueError("in vain")

Unraisable()
raise RuntimeError("the end")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    lines = [json.loads(line, parse_constant=refuse) for line in run.stderr.splitlines()]
    for line in lines:
        assert {"event", "level", "timestamp"} <= set(line)
    odd, plain, group, warned, thread, unraisable, last = lines
    assert odd["none"] is None
    assert plain["event"] == "a\nb 1"
    assert "ValueError: x" in group["exception"]
    assert "careful" in warned["event"]
    assert "ZeroDivisionError" in thread["exception"]
    assert thread["thread"] == "other"
    assert "in vain" in unraisable["exception"]
    assert (last["event"], last["level"]) == ("uncaught_exception", "critical")
    assert "RuntimeError: the end" in last["exception"]


POLICY = """
import logging, warnings

class Bad:
    def __init__(self, config):
        pass

    def decide(self, snapshot):
        if any(model.queued for model in snapshot.models.values()):
            warnings.warn("a policy warns")
            logging.getLogger("hypercorn.error").error("Error in ASGI Framework", exc_info=True)
            raise RuntimeError("a policy breaks")
"""


async def test_every_line_of_a_process_is_json(tmp_path: Path) -> None:
    (tmp_path / "bad_policy.py").write_text(POLICY)
    async with running_backends(tmp_path, "a") as rack:
        config = rack.write_config(access_log=True, policy={"name": "bad_policy:Bad"})
        arguments = ("--log-format", "json", "-v")
        async with running_llmux(config, "llmux", *arguments, ends_with=3) as llmux:
            async with llmux.client() as client:
                await client.get("/health")
                await client.get("/v1/chat/completions")
                with suppress(httpx.TransportError):
                    await client.post("/v1/chat/completions", json=chat("a"))
            with trio.fail_after(15):
                await llmux.process.wait()
    lines = [json.loads(line) for line in llmux.lines if line]
    for line in lines:
        assert {"event", "level", "timestamp"} <= set(line)
    events = {line["event"]: line for line in lines}
    assert {"listening", "serving", "request"} <= set(events)
    assert "a policy breaks" in events["switcher_died"]["exception"]
    assert events["Error in ASGI Framework"]["level"] == "error"
    assert any("a policy warns" in event for event in events)
    requests = [line for line in lines if line["event"] == "request"]
    assert [(line["path"], line["status"]) for line in requests[:2]] == [
        ("/health", 200),
        ("/v1/chat/completions", 404),
    ]


LIBRARIES = """
import logging, hpack
from llmux.observe import logs

logs.configure(verbose=True)
fields = hpack.Encoder().encode([(b"authorization", b"Bearer ck-leak")])
assert hpack.Decoder().decode(fields)
logging.getLogger("h2").debug("ck-leak")
logging.getLogger("hypercorn.error").info("shown")
"""


def test_verbose_does_not_show_what_libraries_know_of_requests() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIBRARIES], capture_output=True, text=True, check=True
    )
    assert "shown" in run.stderr
    assert "ck-leak" not in run.stderr
    assert "authorization" not in run.stderr


def test_verbose_shows_debug_lines() -> None:
    assert "quiet" in printed("text", verbose=True)
    assert "quiet" not in printed("text")
