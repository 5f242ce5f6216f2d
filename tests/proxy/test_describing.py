"""Ollama's `/api/show`: answered by the model's server if it can, else by llmux, never by a wake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmux.switching.core import Phase
from tests.downstream.test_lanes import ok
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, play, running_lane

REAL = b'{"capabilities":["tools"],"model_info":{}}'


def described(content: bytes) -> str:
    """Check a description of llmux's own; returns the model's name in it."""
    said = json.loads(content)
    assert said.pop("modified_at").endswith("Z")
    name = said["model_info"].pop("general.basename")
    assert said == {
        **dict.fromkeys(("license", "modelfile", "parameters", "template"), ""),
        "details": {
            **dict.fromkeys(("parent_model", "format", "family", "parameter_size"), ""),
            "quantization_level": "",
            "families": [],
        },
        "model_info": {"general.architecture": ""},
        "capabilities": ["completion"],
    }
    return str(name)


def asleep(site: Site) -> bool:
    return site.service.board.models["a"].phase is Phase.ASLEEP


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/api/show", {"model": "a"}, "a"),
        ("/api/show", {"model": "a", "verbose": True}, "a"),
        ("/api//show/", {"model": "llama3:8b"}, "llama3:8b"),
        ("/api/show", {"model": "a:latest"}, "a:latest"),
        ("/api/show", {"name": "a"}, "a"),
        ("/upstream/a/api/show", {}, "a"),
    ],
)
async def test_asleep(
    lane: str, path: str, body: dict[str, Any], name: str, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"hooks": FakeHooks(), "model_settings": {"aliases": ["llama3:*"]}}
    async with running_lane(lane, tmp_path, **more) as site, site.client() as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert described(answer.content) == name
        assert asleep(site)
        assert site.backend.received == []


@pytest.mark.parametrize("lane", LANES)
async def test_awake(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        assert (await client.post("/v1/chat/completions", json={"model": "a"})).status_code == 200
        site.backend.play = play(ok(body=REAL))
        assert (await client.post("/api/show", json={"model": "a"})).content == REAL
        for status in (404, 405, 501):
            lacking = b"HTTP/1.1 %d No\r\nContent-Length: 9\r\n\r\nnot found" % status
            site.backend.play = play(lacking)
            answer = await client.post("/api/show", json={"model": "a"})
            assert (answer.status_code, described(answer.content)) == (200, "a")
            other = await client.post("/tokenize", json={"model": "a"})
            assert (other.status_code, other.text) == (status, "not found")
        site.backend.play = play(b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nno")
        assert (await client.post("/api/show", json={"model": "a"})).status_code == 400


@pytest.mark.parametrize("lane", LANES)
async def test_refusals(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, api_keys=["k"]) as site, site.client() as client:
        refused = await client.post("/api/show", json={"model": "a"})
        assert (refused.status_code, refused.json()["code"]) == (401, "invalid_api_key")
        client.headers["authorization"] = "Bearer k"
        for body in ({"model": "b"}, {"name": "b"}):
            unknown = await client.post("/api/show", json=body)
            assert unknown.status_code == 404
            assert unknown.json() == {
                "error": "Model not found: b. Known names: a",
                "code": "model_not_found",
            }
        assert (await client.post("/api/show", json={})).json()["code"] == "no_model"
        assert (await client.post("/api/show", json={"name": 1})).json()["code"] == "no_model"
        assert (await client.post("/api/chat", json={"name": "a"})).json()["code"] == "no_model"
        assert asleep(site)


@pytest.mark.parametrize("lane", LANES)
async def test_a_path_that_is_not_passive_wakes(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, passive=[]) as site, site.client() as client:
        site.backend.play = play(ok(body=REAL))
        assert (await client.post("/api/show", json={"model": "a"})).content == REAL


@pytest.mark.parametrize("lane", LANES)
async def test_the_tag_latest(lane: str, tmp_path: Path) -> None:
    models = ("a", "b:latest", "c:7b")
    async with running_lane(lane, tmp_path, models=models) as site, site.client() as client:
        for name, model in (
            ("a", "a"), ("a:latest", "a"), ("b", "b:latest"), ("b:latest", "b:latest"),
            ("c:7b", "c:7b"), ("c", None), ("c:latest", None), ("c:7b:latest", "c:7b"), ("a:7b", None),
        ):  # fmt: skip
            answer = await client.post("/api/chat", json={"model": name})
            found = answer.headers.get("x-llmux-model")
            assert (answer.status_code, found) == (200 if model else 404, model), name
            if model:
                assert f'"{name}"' in site.backend.received[-1].decode(), "sent as it came"
