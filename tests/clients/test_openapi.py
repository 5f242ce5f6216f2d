"""llmux's own paths against their OpenAPI document: schemathesis, with and without keys."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from llmux.api.openapi import openapi
from tests.clients.site import needs_package
from tests.servers import running_llmux

pytestmark = [pytest.mark.slow, needs_package("schemathesis")]

# With any method but GET, `/` is model traffic, which is refused as naming no model: 404, not 405.
SETTINGS = """
[[operations]]
include-path = "/"
checks.unsupported_method.enabled = false

# 503 is what they are for: a model that is asleep, a host that is cordoned.
[[operations]]
include-path = ["/health/ready", "/health/models/{name}"]
checks.not_a_server_error.enabled = false
"""

KEY = "sk-control"
MODELS = ["a", "b", "org/c", "an-alias"]


def document(*, known: bool) -> dict[str, Any]:
    """The document, in which models may be those that there are, and streams are left out."""
    found = copy.deepcopy(openapi())
    del found["paths"]["/control/events"]  # it never ends
    for path in found["paths"].values():
        for operation in path.values():
            parameters = operation.get("parameters", [])
            parameters[:] = [each for each in parameters if each["name"] != "follow"]
            for parameter in parameters:
                if known and parameter["name"] in {"model", "name"}:
                    parameter["schema"] = {"type": "string", "enum": MODELS}
    if known:
        for shape in ("ModelOrder", "PinOrder"):
            schema = found["components"]["schemas"][shape]
            schema["properties"]["model"] = {"type": "string", "enum": MODELS}
    return found


@pytest.mark.parametrize("known", [False, True], ids=["anything", "known models"])
@pytest.mark.parametrize("keys", ["none", "sent", "missing"])
async def test_llmux_does_as_its_document_says(tmp_path: Path, keys: str, known: bool) -> None:
    model = {"port": 1, "wake": "echo up", "sleep": "true", "alive": "true"}
    config = {
        "port": 0,
        "state_dir": "state",
        "models": {"a": model | {"aliases": ["an-alias"]}, "b": model, "org/c": model},
    }
    if keys != "none":
        config |= {"api_keys": [KEY], "control_keys": [KEY], "metrics_access": "control_key"}
    (tmp_path / "llmux.json").write_text(json.dumps(config))
    (tmp_path / "openapi.json").write_text(json.dumps(document(known=known)))
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", "openapi.json",
        "--max-examples=20", "--generation-deterministic", "--request-timeout=20", "--no-color",
        "--warnings=off",
    ]  # fmt: skip
    if keys == "sent":
        command += ["--header", f"Authorization: Bearer {KEY}"]
    async with running_llmux(tmp_path / "llmux.json") as llmux:
        with trio.fail_after(280):
            done = await trio.run_process(
                [*command, "--url", llmux.url], cwd=tmp_path, capture_stdout=True, check=False
            )
        report = done.stdout.decode()
        assert done.returncode == 0, report
        if keys == "missing":
            async with llmux.client() as client:
                assert (await client.get("/control/status")).status_code == 401
        assert not [
            line for line in llmux.lines if "Traceback" in line or "own_path_failed" in line
        ]
