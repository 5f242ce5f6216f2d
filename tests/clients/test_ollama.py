"""The `ollama` package: chat and generate, whole and line by line."""

from __future__ import annotations

from pathlib import Path

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

pytestmark = [pytest.mark.slow, needs_package("ollama")]


async def test_chat_and_generate(form: str, tmp_path: Path) -> None:
    ollama = package("ollama")
    models = {"a": {"aliases": ["llama3:8b"]}, "b": {"aliases": ["library/qwen:7b"]}}
    async with running_site(tmp_path, form, models) as site:

        def work() -> None:
            with ollama.Client(host=site.url, timeout=PATIENCE_S) as api:
                for name, model in (("llama3:8b", "a"), ("library/qwen:7b", "b")):
                    said = f"{model} {WORDS}"
                    chat = api.chat(model=name, messages=QUESTION)
                    assert (chat.message.content, chat.done, chat.done_reason) == (
                        said,
                        True,
                        "stop",
                    )
                    parts = list(api.chat(model=name, messages=QUESTION, stream=True))
                    assert len(parts) == 10
                    assert "".join(part.message.content for part in parts) == said
                    assert parts[-1].eval_count == 9

                    two = {"num_predict": 2}
                    answer = api.generate(model=name, prompt="Who?", options=two)
                    assert (answer.response, answer.done_reason) == (f"{model} is", "length")
                    parts = list(api.generate(model=name, prompt="Who?", stream=True))
                    assert "".join(part.response for part in parts) == said
                with pytest.raises(ollama.ResponseError, match="Model not found: none") as error:
                    api.chat(model="none", messages=QUESTION)
                assert error.value.status_code == 404

        await in_thread(work)
        assert [standin.engine.served for standin in site.standins.values()] == [4, 4]


async def test_lists_and_descriptions(form: str, tmp_path: Path) -> None:
    """The package checks the types of all fields."""
    ollama = package("ollama")
    models = {"a": {"aliases": ["llama3:8b"]}}
    async with running_site(tmp_path, form, models) as site:

        def work() -> None:
            with ollama.Client(host=site.url, timeout=PATIENCE_S) as api:
                listed = api.list().models
                assert [each.model for each in listed] == ["a", "b", "scripted"]
                assert all(each.modified_at.year > 2000 and each.size == 0 for each in listed)
                assert all(len(each.digest) == 64 and each.details.family == "" for each in listed)
                assert api.ps().models == []
                for name in ("a", "llama3:8b", "a:latest"):
                    shown = api.show(name)
                    assert shown.modelinfo["general.basename"] == name
                    assert (shown.capabilities, shown.template) == (["completion"], "")
                    assert shown.modified_at.year > 2000
                assert api.ps().models == [], "nothing was woken"
                api.chat(model="a:latest", messages=QUESTION)
                (running,) = api.ps().models
                assert (running.model, running.size_vram, running.context_length) == ("a", 0, 0)
                assert running.expires_at.year > 2100
                assert api.show("a").capabilities == ["completion"], "the stand-in has no /api/show"
                with pytest.raises(ollama.ResponseError, match="Known names: ") as error:
                    api.show("none")
                assert error.value.status_code == 404

        await in_thread(work)


async def test_a_stream_that_is_left(form: str, tmp_path: Path) -> None:
    ollama = package("ollama")
    async with running_site(tmp_path, form) as site:
        standin = site.standins["a"]

        def work() -> None:
            with ollama.Client(host=site.url, timeout=PATIENCE_S) as api:
                stream = api.generate(
                    model="a", prompt="Who?", stream=True, options={"num_predict": 1_000_000_000}
                )
                next(stream)
                stream.close()

        await in_thread(work)
        await site.until(lambda: standin.engine.in_flight == 0)
        assert standin.engine.served == 0
