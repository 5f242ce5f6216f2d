"""What `llmux check` says of groups that could have a llmux each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmux.cli.check import split_lines
from llmux.cli.main import main
from llmux.config import Config, parse_config
from llmux.config.splitting import separable

HOOKS = {"wake": "true", "sleep": "true", "alive": "true"}


CHOSEN = {"recipe": "process", "with": {"command": "true"}, "port": None}
"""A model whose port llmux chooses."""


def config(models: dict[str, dict[str, Any]], **keys: Any) -> Config:
    """Each model is in the group of its first letter, and has a port of its own."""
    named = {
        name: HOOKS | {"group": name[0]} | ({} if "url" in model else {"port": port}) | model
        for port, (name, model) in enumerate(models.items(), 100)
    }
    return parse_config({"models": named, **keys})


def gpus(*names: str) -> dict[str, Any]:
    return {"needs": dict.fromkeys(names, "1GiB")}


@pytest.mark.parametrize(
    ("models", "parts"),
    [
        ({"a1": {}, "a2": {}}, [("a",)]),
        ({"a1": {}, "b1": {}}, [("a",), ("b",)]),
        ({"a1": {"port": 1}, "b1": {"port": 1}}, [("a", "b")]),
        ({"a1": {"port": 1}, "b1": {"port": 1, "host": "gpu.lan"}}, [("a",), ("b",)]),
        ({"a1": CHOSEN, "b1": CHOSEN}, [("a",), ("b",)]),
        ({"a1": {"url": "unix:/x"}, "b1": {"url": "unix:///x"}}, [("a", "b")]),
        ({"a1": gpus("g0"), "b1": gpus("g1")}, [("a",), ("b",)]),
        # Neither of the first two shares anything, until the last one comes.
        (
            {"a1": {"port": 1}, "c1": {"port": 2}, "b1": {"port": 1}, "b2": {"port": 2}},
            [("a", "c", "b")],
        ),
        ({"a1": {"port": 1}, "b1": {"port": 2}, "c1": {"port": 1}}, [("a", "c"), ("b",)]),
        (
            {
                "a1": {"port": 1},
                "b1": {"port": 2},
                "c1": {"port": 1},
                "d1": {"port": 2},
                "d2": {"port": 1},
            },
            [("a", "b", "c", "d")],
        ),
    ],
)
def test_which_groups_share_nothing(
    models: dict[str, dict[str, Any]], parts: list[tuple[str, ...]]
) -> None:
    assert separable(config(models, resources={"g0": "8GiB", "g1": "8GiB"})) == parts


def test_what_is_said() -> None:
    assert split_lines(config({"a1": {}, "a2": {}})) == []
    models: dict[str, dict[str, Any]] = {"a1": {"port": 1}, "b1": {}, "c1": {"port": 1}}
    why = "They share no memory and no server: one llmux for each, behind a proxy, uses several"
    assert split_lines(config(models)) == [
        "",
        f"groups a with c, b: one llmux serves them on one core. {why} (docs/fleet.md)",
    ]
    many = split_lines(config({f"{letter}1": {} for letter in "abcdefgh"}))[1]
    assert many.startswith("groups a, b, c, d, e, f, 2 more: one llmux")


def test_it_is_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "llmux.json"
    models = {name: {**HOOKS, "group": name, "port": ord(name)} for name in ("a", "b")}
    path.write_text(json.dumps({"models": models}))
    done = CliRunner().invoke(main, ["check", "--strict", str(path)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "groups a, b: one llmux serves them on one core" in done.stdout
