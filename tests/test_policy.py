"""Policies are pure: a snapshot in, a decision out."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from llmux.config import PolicyConfig
from llmux.errors import ConfigError
from llmux.policy import (
    Decision,
    FifoPolicy,
    LookAgain,
    ModelView,
    Snapshot,
    Stay,
    SwitchTo,
    load_policy,
)


def decide(
    *views: ModelView,
    now: float = 100,
    active: str | None = None,
    since: float | None = None,
    **config: Any,
) -> Decision:
    snapshot = Snapshot(
        now=now,
        active=active,
        active_since=since,
        models={
            **({active: ModelView(active)} if active else {}),
            **{view.name: view for view in views},
        },
    )
    return FifoPolicy(PolicyConfig(**config)).decide(snapshot)


def waiting(name: str, since: float, **more: Any) -> ModelView:
    return ModelView(name, queued=1, oldest_arrival=since, **more)


def test_nothing_to_do() -> None:
    assert decide(ModelView("a"), ModelView("b")) == Stay()
    assert decide(waiting("a", 90), active="a", since=0) == Stay()


def test_the_oldest_request_wins() -> None:
    decision = decide(waiting("a", 95), waiting("b", 90), active="c", since=0)
    assert decision == SwitchTo("b", "its oldest request waits 10.0 s")


def test_the_active_model_has_its_minimum() -> None:
    assert decide(waiting("b", 90), active="a", since=98, min_active_secs=5) == LookAgain(103)
    assert isinstance(decide(waiting("b", 90), active="a", since=95, min_active_secs=5), SwitchTo)


def test_a_failed_model_delays_only_itself() -> None:
    failed = waiting("a", 10, retry_at=130.0)
    assert decide(failed) == LookAgain(130)
    assert decide(failed, waiting("b", 90)) == SwitchTo("b", "its oldest request waits 10.0 s")
    assert decide(failed, waiting("b", 90, retry_at=110.0)) == LookAgain(110)
    cooling = decide(failed, waiting("b", 90), active="c", since=99, min_active_secs=5)
    assert cooling == LookAgain(104)


class OwnPolicy:
    def __init__(self, config: PolicyConfig) -> None:
        self.patience = config.options["patience"]

    def decide(self, snapshot: Snapshot) -> Decision:
        return Stay()


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_policies")
    module.OwnPolicy = OwnPolicy  # type: ignore[attr-defined]
    module.dict = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_policies", module)


@pytest.mark.usefixtures("own_module")
def test_a_policy_of_the_users_own() -> None:
    config = PolicyConfig(name="own_policies:OwnPolicy", options={"patience": 3})
    policy = load_policy(config)
    assert isinstance(policy, OwnPolicy)
    assert policy.patience == 3


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fifoo", "unknown policy 'fifoo', did you mean 'fifo'? (one of: adaptive, fifo, "),
        ("nothing.like.it", "unknown policy 'nothing.like.it' (one of: "),
        ("no_such_module:X", "cannot import 'no_such_module:X': No module named"),
        ("own_policies:X", "cannot import 'own_policies:X': module 'own_policies' has no"),
        ("own_policies:OwnPolicy", "own_policies:OwnPolicy cannot be made: KeyError: 'patience'"),
        ("own_policies:dict", "own_policies:dict cannot be made: TypeError"),
    ],
)
def test_a_policy_that_cannot_be_had(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(PolicyConfig(name=name))
    (line,) = caught.value.mistakes
    assert line.startswith(f"policy.name: {message}")


def test_a_policy_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_the_config.py").write_text(
        "class Mine:\n    def __init__(self, config): pass\n    def decide(self, snapshot): ...\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    policy = load_policy(PolicyConfig(name="beside_the_config:Mine"), tmp_path)
    assert type(policy).__name__ == "Mine"


def test_a_policy_without_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_policies")
    module.Empty = lambda config: object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_policies", module)
    with pytest.raises(ConfigError, match="own_policies:Empty has no method `decide`"):
        load_policy(PolicyConfig(name="own_policies:Empty"))
