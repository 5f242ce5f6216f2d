"""Every code of llmux's own reaches each family of clients in the form that its libraries read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmux import errors
from llmux.errors import LlmuxError
from llmux.observe.schemas import Pin
from llmux.openai.dialects import ANTHROPIC, NOTHING_SENT, OLLAMA, OPENAI, Dialect, ErrorInfo
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, play, running_lane

ANTHROPICS_TYPES = {
    "invalid_request_error", "authentication_error", "billing_error", "permission_error",
    "not_found_error", "conflict_error", "request_too_large", "rate_limit_error", "timeout_error",
    "api_error", "overloaded_error",
}  # fmt: skip
"""Those that Anthropic's documentation and library know."""

CODES = sorted(
    {
        (each.status, each.code)
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, LlmuxError)
    }
)


def openai_code(said: Any) -> str:
    assert said.keys() == {"error"}
    assert said["error"].keys() == {"message", "type", "param", "code"}
    return str(said["error"]["code"])


def anthropic_code(said: Any) -> str:
    assert said["type"] == "error"
    assert said["error"]["type"] in ANTHROPICS_TYPES
    assert isinstance(said["error"]["message"], str)
    return str(said["error"]["details"]["error_code"])


def ollama_code(said: Any) -> str:
    assert isinstance(said["error"], str)
    return str(said["code"])


FAMILIES: dict[str, tuple[Dialect, Callable[[Any], str]]] = {
    "/v1/chat/completions": (OPENAI, openai_code),
    "/v1/messages": (ANTHROPIC, anthropic_code),
    "/api/chat": (OLLAMA, ollama_code),
}


@pytest.mark.parametrize(("status", "code"), CODES)
def test_every_code_has_a_form_in_every_family(status: int, code: str) -> None:
    info = ErrorInfo("why", code, status)
    for dialect, read in FAMILIES.values():
        for said in (dialect.body(info), dialect.line(info)):
            assert read(said) == code
        *names, data = dialect.events(info, NOTHING_SENT).decode().strip().split("\n")
        assert read(json.loads(data.removeprefix("data: "))) == code
        assert names == (["event: error"] if dialect is ANTHROPIC else [])
    kind = ANTHROPIC.body(info)["error"]["type"]
    is_clients = kind not in {"api_error", "overloaded_error", "timeout_error"}
    assert is_clients is (status < 500 and status != 408)


Prepare = Callable[[Site], Any]


def manual(site: Site) -> None:
    site.service.board.set_mode("manual")


def cordon(site: Site) -> None:
    site.service.board.set_cordoned(True)


async def pin_b(site: Site) -> None:
    await site.service.board.pin(Pin(model="b", wait=False))


def hang_up(site: Site) -> None:
    site.backend.play = play(b"", close=True)


def close_the_doors(site: Site) -> None:
    site.service.board.stop()


def forget(site: Site) -> None:
    site.service.proxy.upstreams.use("a", None)


@dataclass(frozen=True)
class Case:
    """How to provoke an error."""

    status: int
    settings: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"model": "a"}'
    prepare: Prepare = lambda _: None
    hooks: dict[str, Any] = field(default_factory=dict)


SLOW: dict[str, Any] = {"seconds": {("a", "wake"): 0.3}}
CASES = {
    "bad_request": Case(400, body=b'{"model": "a", "model": "b"}'),
    "invalid_api_key": Case(401, {"api_keys": ["k"]}),
    "forbidden": Case(403, headers={"origin": "http://evil.example"}),
    "no_model": Case(404, body=b"{}"),
    "model_not_found": Case(404, body=b'{"model": "c"}'),
    "id_not_found": Case(404, body=b'{"previous_response_id": "resp_1"}'),
    "would_switch": Case(409, headers={"x-llmux-switch": "never"}),
    "body_too_large": Case(413, {"limits": {"body_bytes": 9}}),
    "unsupported_encoding": Case(415, headers={"content-encoding": "xz"}),
    "queue_full": Case(429, {"limits": {"queued_bytes": 9}}),
    "hook_failed": Case(500, hooks={"failing": {("a", "wake"): -1}}),
    "internal": Case(500, prepare=forget),
    "backend_error": Case(502, prepare=hang_up),
    "cordoned": Case(503, prepare=cordon),
    "manual_mode": Case(503, prepare=manual),
    "pinned": Case(503, prepare=pin_b),
    "shutting_down": Case(503, prepare=close_the_doors),
    "switch_timeout": Case(504, {"policy": {"request_timeout_secs": 0.02}}, hooks=SLOW),
}


ELSEWHERE = {
    "model_not_found", "id_not_found", "would_switch", "queue_full", "hook_failed", "cordoned",
    "manual_mode", "pinned", "shutting_down", "switch_timeout",
}  # fmt: skip
"""Those after which another host may serve the request."""


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("code", CASES)
async def test_on_both_lanes(lane: str, code: str, tmp_path: Path) -> None:
    case = CASES[code]
    hooks = FakeHooks(**case.hooks)
    more: dict[str, Any] = {"models": ("a", "b"), "hooks": hooks, **case.settings}
    async with running_lane(lane, tmp_path, **more) as site, site.client() as client:
        if (wait := case.prepare(site)) is not None:
            await wait
        for path, (_, read) in FAMILIES.items():
            answer: httpx.Response = await client.post(
                path, content=case.body, headers=case.headers
            )
            assert (answer.status_code, read(answer.json())) == (case.status, code), answer.text
            assert answer.headers["content-type"] == "application/json"
            retry = answer.headers.get("x-llmux-retry")
            assert retry == ("elsewhere" if code in ELSEWHERE else None)
            if code not in {"invalid_api_key", "forbidden"}:
                assert "x-llmux-request-id" in answer.headers
