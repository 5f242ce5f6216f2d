"""Log lines, as another process prints them: logging is a matter of the whole process."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
from llmux import logs

logs.configure({log_format!r}, verbose={verbose})
log = logs.get_logger("x")
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


def test_verbose_shows_debug_lines() -> None:
    assert "quiet" in printed("text", verbose=True)
    assert "quiet" not in printed("text")
