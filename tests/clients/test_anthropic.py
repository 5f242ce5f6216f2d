"""The `anthropic` package: messages, whole and as a stream, with llmux's key in `x-api-key`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clients.site import (
    PATIENCE_S,
    QUESTION,
    WORDS,
    in_thread,
    needs_package,
    package,
    running_site,
)

pytestmark = [pytest.mark.slow, needs_package("anthropic")]

ASK: dict[str, Any] = {"messages": QUESTION, "max_tokens": 9}


async def test_messages(form: str, tmp_path: Path) -> None:
    anthropic = package("anthropic")
    async with running_site(tmp_path, form, api_keys=["secret"]) as site:

        def client(key: str) -> Any:
            return anthropic.Anthropic(
                base_url=site.url, api_key=key, max_retries=0, timeout=PATIENCE_S
            )

        def work() -> None:
            with client("secret") as api:
                for model in "ab":
                    answer = api.messages.create(model=model, **ASK)
                    assert (answer.model, answer.stop_reason) == (model, "max_tokens")
                    assert answer.content[0].text == f"{model} {WORDS}"
                    assert answer.usage.output_tokens == 9

                    # Counted by hand: begin, block, nine tokens, end of block, reason, end. The
                    # package keeps the ping to itself.
                    events = list(api.messages.create(model=model, stream=True, **ASK))
                    assert len(events) == 14
                    assert [event.type for event in (events[0], events[-1])] == [
                        "message_start", "message_stop",
                    ]  # fmt: skip

                    with api.messages.stream(model=model, **ASK) as stream:
                        assert "".join(stream.text_stream) == f"{model} {WORDS}"
                        assert stream.get_final_message().usage.output_tokens == 9
                with pytest.raises(anthropic.NotFoundError, match="Model not found: none"):
                    api.messages.create(model="none", **ASK)
            with client("guessed") as api, pytest.raises(anthropic.AuthenticationError):
                api.messages.create(model="a", **ASK)

        await in_thread(work)
        assert [standin.engine.served for standin in site.standins.values()] == [3, 3]
