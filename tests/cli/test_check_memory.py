"""What `llmux check` says of models that share memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llmux.cli import fitting
from llmux.cli.fitting import Fitting, memory_lines
from llmux.cli.main import main
from llmux.config import Config, load_config, parse_config
from llmux.observe.needs_seen import FILE_NAME, SeenNeeds
from llmux.server.ports import PortBook
from llmux.switching.ledger import Ledger
from llmux.switching.memory import memory_of

GPUS = {"gpu0": "80GiB", "gpu1": "80GiB", "ram": "256GiB"}


def config(models: Mapping[str, Any], **keys: Any) -> Config:
    hooks = {"wake": "sh", "sleep": "sh", "alive": "sh", "port": 1}
    return parse_config({"models": {n: hooks | m for n, m in models.items()}, **keys})


def gpu(size: int, **keys: Any) -> dict[str, Any]:
    return {"needs": {"gpu0": f"{size}GiB"}, **keys}


def test_who_fits_with_whom() -> None:
    models = {
        "chat": gpu(60, needs_asleep={"ram": "60GiB"}),
        "code": gpu(50),
        "embed": gpu(4, keep=True),
        "new": {"needs": "auto"},
        "big": {"needs": {"gpu0": "80GiB", "gpu1": "80GiB"}},
        "other": {"group": "x"},
    }
    found = config(models, resources=GPUS)
    assert memory_lines(found) == [
        "",
        "group default: shares gpu0 80GiB, gpu1 80GiB, ram 256GiB",
        "  together         chat + embed",
        "                   code + embed",
        "  alone            new (until it is measured)",
        "                   big",
        "  never together   chat and code",
        "  kept awake       embed",
        "  never meanwhile  big",
    ]
    measured = memory_lines(found, {"new": {"gpu0": 10 << 30}})
    assert measured[2] == "  measured         new: gpu0 10GiB"
    assert measured[3:5] == ["  together         chat + embed + new", "                   code + embed + new"]  # fmt: skip


def test_check_reads_what_was_measured_and_writes_nothing(tmp_path: Path) -> None:
    """Also of a model whose port llmux has chosen: it counts for the server at that port."""
    path = tmp_path / "llmux.json"
    hooks = {"wake": "true", "sleep": "true", "alive": "true"}
    started = {"recipe": "process", "with": {"command": "true ${PORT}"}}
    models = {"new": started | {"needs": "auto"}, "odd": hooks | {"needs": "auto", "port": 1}}
    path.write_text(json.dumps({"models": models, "resources": GPUS, "state_dir": "state"}))
    run = partial(CliRunner().invoke, main, ["check", str(path)])
    assert "measured" not in run().stdout.partition("alone")[0]
    assert not (tmp_path / "state").exists()

    book = PortBook(tmp_path / "state")
    served = book.assign(load_config(path))
    seen = SeenNeeds(tmp_path / "state" / FILE_NAME, served)
    assert seen.note("new", {"gpu0": 12 << 30, "ram": 1 << 29})
    assert seen.note("odd", {})
    book.close()
    done = run()
    assert (done.exit_code, done.stderr) == (0, "")
    assert "  measured         new: gpu0 12GiB, ram 512MiB\n                   odd: nothing" in (
        done.stdout
    )
    (tmp_path / "state" / FILE_NAME).write_text("{")
    done = run()
    assert (done.exit_code, done.stderr) == (0, "")
    assert "new (until it is measured)" in done.stdout


def test_sets() -> None:
    found = config({name: {} for name in "abcd"}, sets=[["a", "b"], ["b", "c"]])
    assert memory_lines(found) == [
        "",
        "group default: sets of models share it",
        "  together         a + b",
        "                   b + c",
        "  alone            d",
        "  never together   a and c",
    ]


def test_a_config_without_shared_memory_says_nothing_of_it() -> None:
    assert memory_lines(config({"a": {}, "b": {}}, resources=GPUS)) == []


def test_of_many_sets_and_pairs_some_are_shown() -> None:
    found = config({f"m{n}": gpu(40) for n in range(6)}, resources=GPUS)
    lines = memory_lines(found)
    assert lines[2] == "  together         m0 + m1"
    assert lines[10:] == ["                   and 7 sets more"]
    two = {f"m{n}": gpu(41) for n in range(5)} | {"small": gpu(1)}
    assert memory_lines(config(two, resources=GPUS))[-1].strip() == "and 2 pairs more"


def test_the_search_for_sets_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MOST_STEPS", 50)
    lines = memory_lines(config({f"m{n}": gpu(20) for n in range(12)}, resources=GPUS))
    assert lines[-1].strip().startswith("and at least ")


def test_many_models_that_all_fit_take_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MOST_STEPS", 50)
    (found,) = Fitting(config({f"m{n}": gpu(2) for n in range(40)}, resources=GPUS), "default").sets
    assert len(found) == 40


def test_peaks_and_what_sleeps_count() -> None:
    models: dict[str, Any] = {
        "a": gpu(40, needs_waking={"gpu0": "60GiB"}),
        "b": gpu(30, needs_waking={"gpu0": "35GiB"}),
        "c": gpu(5, needs_waking={"gpu0": "12GiB"}),
    }
    # In the order a, c, b: 60, 40 + 12 and 45 + 35 GiB. In any other, there is not enough.
    assert Fitting(config(models, resources=GPUS), "default").sets == [("a", "b", "c")]
    models["b"]["needs_waking"] = {"gpu0": "36GiB"}
    found = Fitting(config(models, resources=GPUS), "default")
    assert found.sets == [("a", "b"), ("a", "c"), ("b", "c")]
    asleep = {"x": gpu(40), "y": gpu(1, needs_asleep={"gpu0": "45GiB"})}
    found = Fitting(config(asleep | {"z": gpu(30)}, resources={"gpu0": "120GiB"}), "default")
    assert found.sets == [("x", "y", "z")]
    with_stop = {n: m | {"stop": "kill"} for n, m in asleep.items()} | {"z": gpu(80)}
    assert Fitting(config(with_stop, resources={"gpu0": "125GiB"}), "default").fits(["x", "z"])


@given(st.lists(st.tuples(*[st.integers(1, 6)] * 2), min_size=1, max_size=5), st.integers(6, 12))
def test_what_fits_is_what_the_ledger_allows(sizes: list[tuple[int, int]], there: int) -> None:
    models = {
        f"m{n}": {"needs": {"gpu": awake}, "needs_waking": {"gpu": waking}}
        for n, (awake, waking) in enumerate(sizes)
    }
    found = config(models, resources={"gpu": there})
    tried = Fitting(found, "default")
    shared = memory_of(found, "default")
    assert shared is not None

    def wakes(order: tuple[str, ...]) -> bool:
        ledger = Ledger(shared.memory)
        try:
            for name in order:
                ledger.wake(ledger.plan(name, ()))
                ledger.woke(name)
        except ValueError:
            return False
        return True

    allowed = {
        names
        for size in range(1, len(models) + 1)
        for names in combinations(models, size)
        if any(map(wakes, permutations(names)))
    }
    assert {n for s in range(1, 6) for n in combinations(models, s) if tried.fits(n)} == allowed
    largest = {n for n in allowed if not any({*n} < {*other} for other in allowed)}
    assert {*tried.sets} == {names for names in largest if len(names) > 1}


def test_what_the_documentation_shows_is_true() -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    shown = page.partition("```\ngroup default")[2].partition("```")[0]
    lines = memory_lines(parse_config(yaml.safe_load(text)))
    assert "\n".join(lines) == f"\ngroup default{shown}".rstrip("\n")


def test_the_command_says_it(tmp_path: Path) -> None:
    path = tmp_path / "llmux.yaml"
    path.write_text("""
resources: {gpu0: 80GiB, gpu1: 80}
models:
  a: {port: 1, wake: sh, sleep: sh, alive: sh, needs: {gpu0: 60GiB}}
  b: {port: 2, wake: sh, sleep: sh, alive: sh, needs: {gpu0: 20GiB}}
""")
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exit_code == 0
    assert result.output.partition("\n\ngroup default: ")[2].startswith(
        "shares gpu0 80GiB\n  together         a + b\n"
    )
    assert result.stderr.splitlines() == [
        f"warning: {path}:2:26: resources.gpu1: is 80 bytes: is a unit missing, as in 80GiB?",
        f"warning: {path}:2:26: resources.gpu1: no model needs it",
    ]
    path.write_text(path.read_text().replace("60GiB", "90GiB"))
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"{path}:4:56: models.a.needs.gpu0: is more than there is: there are 80GiB of 'gpu0'\n"
    )
