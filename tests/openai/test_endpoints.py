"""Which paths are surely wrong, and which are a server's own."""

from __future__ import annotations

import pytest

from llmux.openai.endpoints import USUAL, WrongPath, wrong_path

WITHOUT_VERSION = {
    b"/chat/completions": b"/v1/chat/completions",
    b"/chat/completions/": b"/v1/chat/completions",
    b"//completions?x=/v1/": b"/v1/completions",
    b"/responses": b"/v1/responses",
    b"/messages": b"/v1/messages",
    b"/messages/count_tokens": b"/v1/messages/count_tokens",
    b"/images/edits": b"/v1/images/edits",
    b"/audio/speech": b"/v1/audio/speech",
    b"/realtime": b"/v1/realtime",
}

TWICE = {
    b"/v1/v1/chat/completions": b"/v1/chat/completions",
    b"/v1//v1/v1/models": b"/v1/models",
    b"/v1/v1/messages": b"/v1/messages",
    b"/v1/v2/rerank": b"/v2/rerank",
    b"/v1/api/chat": b"/api/chat",
    b"/api/api/tags": b"/api/tags",
    b"/v1/chat/completions/chat/completions": b"/v1/chat/completions",
    b"/chat/completions/v1/completions": b"/v1/completions",
    b"/v1/messages/v1/messages": b"/v1/messages",
    b"/v1/embeddings/embeddings": b"/v1/embeddings",
    b"/api/chat/api/chat": b"/api/chat",
    b"/api/generate/v1/chat/completions": b"/v1/chat/completions",
}

SERVERS = [
    # llama.cpp, vLLM, SGLang, TEI, TGI, Infinity, KoboldCpp, LM Studio, stable-diffusion.cpp
    b"/completion", b"/infill", b"/embedding", b"/embeddings", b"/rerank", b"/reranking",
    b"/tokenize", b"/detokenize", b"/apply-template", b"/props", b"/slots/0",
    b"/pooling", b"/score", b"/classify", b"/invocations", b"/inference/v1/generate",
    b"/generate", b"/generate_stream", b"/encode", b"/embed", b"/predict", b"/",
    b"/api/v1/generate", b"/api/v1/chat", b"/api/v0/chat/completions", b"/sdapi/v1/txt2img",
    b"/v1/models", b"/v1/score", b"/v2/chat", b"/v3/chat/completions", b"/api/embed",
    b"/openai/v1/chat/completions", b"/v1beta/openai/chat/completions", b"*", b"",
    # OpenAI's and Anthropic's, with ids
    b"/v1/chat/completions/chatcmpl-1/messages", b"/v1/threads/t/messages", b"/v1/v1",
    b"/v1/responses/resp_1/input_items", b"/v1/messages/batches/b", b"/v1/batches",
]  # fmt: skip


@pytest.mark.parametrize("target", WITHOUT_VERSION)
def test_without_a_version(target: bytes) -> None:
    assert wrong_path(target) == WrongPath(WITHOUT_VERSION[target], is_sure=False)


@pytest.mark.parametrize("target", TWICE)
def test_with_two_base_urls(target: bytes) -> None:
    assert wrong_path(target) == WrongPath(TWICE[target], is_sure=True)


@pytest.mark.parametrize("target", sorted({*SERVERS, *USUAL, *TWICE.values()}))
def test_paths_that_servers_have(target: bytes) -> None:
    assert wrong_path(target) is None
    assert wrong_path(target + b"?model=a") is None
