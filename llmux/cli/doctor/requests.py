"""Findings about requests that their server, or their client, keeps waiting."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from llmux.cli.doctor.asking import requests_of
from llmux.cli.doctor.facts import Facts, Running
from llmux.cli.doctor.findings import Finding, number
from llmux.cli.terminal.views import span
from llmux.observe.schemas import RequestInfo

SILENT_S = 120.0
"""Time without a response from which a server may hang; long prompts take a while."""

LONG_ANSWER_S = 600.0
"""Duration of a response from which to mention it."""

SLOW_BODY_S = 60.0
"""Time that a body takes to arrive from which to mention it."""


def request_findings(facts: Facts, running: Running) -> Iterator[Finding]:
    """Yield the oldest requests that their server, or their client, keeps waiting."""
    for name in running.status.models:
        yield from _silent_findings(running, name)
        yield from _long_findings(facts, running, name)
    yield from _reading_findings(running)
    if running.requests is not None:
        yield Finding("ok", "requests", f"{number(running.requests.total, 'request')}")


def _inside(running: Running, request: RequestInfo) -> float:
    """Return the seconds since a request was forwarded."""
    return running.status.at - request.arrived - request.waited_secs


def _silent_findings(running: Running, name: str) -> Iterator[Finding]:
    silent = [
        each
        for each in requests_of(running, name, "forwarding")
        if _inside(running, each) > SILENT_S
    ]
    if not silent:
        return
    what = (
        f"the server of {name} has not answered {number(len(silent), 'request')}, the oldest "
        f"({silent[0].id}) for {span(_inside(running, silent[0]))}"
    )
    why = "it reads a long prompt, works on others first, or has hung: ask it directly"
    yield Finding("warning", "requests", what, why, _ask(running.status.models[name].backend))


def _ask(url: str) -> str:
    """Return the command that asks a backend."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        return shlex.join(["curl", "-sS", "--unix-socket", path, "http://x/v1/models"])
    return shlex.join(["curl", "-sS", f"{url}/v1/models"])


def _long_findings(facts: Facts, running: Running, name: str) -> Iterator[Finding]:
    long = [
        each
        for each in requests_of(running, name, "answering")
        if _inside(running, each) > LONG_ANSWER_S
    ]
    if long:
        run = f"{number(len(long), 'response')} of {name}"
        what = f"{run} {'runs' if len(long) == 1 else 'run'} for more than {span(LONG_ANSWER_S)}"
        why = f"the oldest is {long[0].id}; a switch waits for them"
        yield Finding("note", "requests", what, why, facts.llmux("cancel", long[0].id))


def _reading_findings(running: Running) -> Iterator[Finding]:
    at, found = running.status.at, running.requests
    slow = [
        each
        for each in (found.requests if found is not None else ())
        if each.phase == "reading" and at - each.arrived > SLOW_BODY_S
    ]
    if slow:
        oldest = slow[0]
        what = f"the {'body' if len(slow) == 1 else 'bodies'} of {number(len(slow), 'request')} "
        what += "have not arrived yet" if len(slow) > 1 else "has not arrived yet"
        client = oldest.client or "a client"
        why = f"{client} has been sending the oldest, {oldest.id}, for {span(at - oldest.arrived)}"
        yield Finding("note", "requests", what, why)
