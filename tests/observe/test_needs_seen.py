"""The most that models were seen to hold, over restarts and changes of their config."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from llmux.config import Config, parse_config
from llmux.observe.needs_seen import FILE_NAME, SeenNeeds

RESOURCES = {"gpu0": 1000, "ram": 1000}


def config(resources: dict[str, int] = RESOURCES, **changes: Any) -> Config:
    model = {"port": 8001, "wake": "true", "sleep": "true", "alive": "true", "needs": "auto"}
    return parse_config({"resources": resources, "models": {"m": model | changes}})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "needs.json"


def loaded(path: Path, config: Config) -> SeenNeeds:
    seen = SeenNeeds(path, config)
    seen.load()
    return seen


def test_the_most_counts_and_outlives_a_restart(path: Path) -> None:
    seen = loaded(path, config())
    assert (seen.of("m"), seen.all()) == (None, {})
    assert seen.note("m", {"gpu0": 300})
    assert seen.note("m", {"gpu0": 200, "ram": 50})
    assert not seen.note("m", {"gpu0": 300, "ram": 10})
    assert seen.of("m") == {"gpu0": 300, "ram": 50}
    assert loaded(path, config()).all() == {"m": {"gpu0": 300, "ram": 50}}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_model_that_holds_nothing_was_measured(path: Path) -> None:
    assert loaded(path, config()).note("m", {"gpu0": 0})
    assert loaded(path, config()).of("m") == {}


@pytest.mark.parametrize(
    "changed",
    [
        config(wake="other"),
        config(memory="echo gpu0 1"),
        config(port=8002),
        config({**RESOURCES, "gpu1": 1000}),
        config(recipe="demo", **{"with": {"rate": 1}}),
    ],
    ids=["wake", "memory", "port", "resources", "recipe"],
)
def test_a_model_with_another_config_is_not_measured(path: Path, changed: Config) -> None:
    seen = loaded(path, config())
    seen.note("m", {"gpu0": 300})
    seen.use(changed)
    assert seen.of("m") is None
    seen.use(config(sleep="other", aliases=["n"], needs_asleep={"ram": 1}))
    assert seen.of("m") == {"gpu0": 300}
    seen.use(changed)
    assert seen.note("m", {"gpu0": 200})
    assert loaded(path, changed).of("m") == {"gpu0": 200}
    assert loaded(path, config()).of("m") is None


def test_values_of_a_recipe_count() -> None:
    seen = SeenNeeds(None, config(recipe="demo", **{"with": {"tokens": 1}}))
    seen.note("m", {"gpu0": 1})
    seen.use(config(recipe="demo", **{"with": {"tokens": 2}}))
    assert seen.of("m") is None


@pytest.mark.parametrize(
    "content",
    ["?", "[]", '{"models": {"m": {"digest": "x", "amounts": {"gpu0": -1}}}}'],
    ids=["no-json", "other", "negative"],
)
def test_a_file_that_cannot_be_read_is_no_measurement(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    with capture_logs() as logs:
        seen = loaded(path, config())
    assert [each["event"] for each in logs] == ["needs_unreadable"]
    assert seen.all() == {}
    assert seen.note("m", {"gpu0": 1})
    assert loaded(path, config()).of("m") == {"gpu0": 1}


def test_a_link_of_another_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    (tmp_path / "other").write_text("theirs")
    path.symlink_to(tmp_path / "other")
    with capture_logs():
        loaded(path, config()).note("m", {"gpu0": 1})
    assert (tmp_path / "other").read_text() == "theirs"
    assert not path.is_symlink()


def test_what_cannot_be_written_is_said_once(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "x").touch()
    seen = SeenNeeds(path, config())
    with capture_logs() as logs:
        seen.note("m", {"gpu0": 1})
        seen.note("m", {"gpu0": 2})
    assert [each["event"] for each in logs] == ["needs_not_written"]
    assert seen.of("m") == {"gpu0": 2}


def test_models_that_the_config_does_not_have_are_dropped(path: Path) -> None:
    seen = loaded(path, config())
    seen.note("m", {"gpu0": 1})
    assert not seen.note("other", {"gpu0": 1})
    data = {
        "resources": RESOURCES,
        "models": {"n": {"port": 1, "wake": "x", "sleep": "x", "alive": "x"}},
    }
    seen.use(parse_config(data))
    seen.note("n", {"ram": 1})
    assert loaded(path, config()).of("m") is None
    assert path.name == FILE_NAME
