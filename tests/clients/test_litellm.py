"""The `litellm` package, with llmux as an OpenAI server; it runs in a process of its own.

Importing it takes seconds and warns of what it deprecates itself, which would fail other tests.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import trio

from tests.clients.site import PATIENCE_S, WORDS, needs_package, running_site

pytestmark = [pytest.mark.slow, needs_package("litellm")]

SCRIPT = """
import json, sys, litellm
ask = {"api_base": sys.argv[1], "api_key": "secret", "num_retries": 0, "timeout": 30,
       "messages": [{"role": "user", "content": "Who are you?"}]}
told = []
for model in ("a", "b"):
    answer = litellm.completion(model=f"openai/{model}", **ask)
    told.append([answer.model, answer.choices[0].message.content, answer.usage.completion_tokens])
    stream = litellm.completion(model=f"openai/{model}", stream=True, **ask)
    told.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))
vectors = litellm.embedding(model="openai/b", input=["x"], api_base=sys.argv[1], api_key="secret")
told.append(len(vectors.data[0]["embedding"]))
for model, key in (("none", "secret"), ("a", "guessed")):
    try:
        litellm.completion(model=f"openai/{model}", **{**ask, "api_key": key})
    except Exception as error:
        told.append([type(error).__name__, error.status_code])
print(json.dumps(told))
"""


async def test_completion_and_streaming(form: str, tmp_path: Path) -> None:
    # Else it would fetch its list of prices from the net.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    async with running_site(tmp_path, form, api_keys=["secret"]) as site:
        with trio.fail_after(2 * PATIENCE_S):
            done = await trio.run_process(
                [sys.executable, "-c", SCRIPT, site.api],
                env=environment, capture_stdout=True, capture_stderr=True, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        assert json.loads(done.stdout.splitlines()[-1]) == [
            ["a", f"a {WORDS}", 9], f"a {WORDS}",
            ["b", f"b {WORDS}", 9], f"b {WORDS}",
            8,
            ["NotFoundError", 404],
            ["AuthenticationError", 401],
        ]  # fmt: skip
