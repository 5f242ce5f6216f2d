"""One switcher per config."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmux.server.statelock import LockHeld, state_lock


def test_the_second_is_told_of_the_first(tmp_path: Path) -> None:
    config = tmp_path / "llmux.yaml"
    with state_lock(tmp_path / "state", config):
        with pytest.raises(LockHeld) as caught, state_lock(tmp_path / "state", config):
            pass
        assert f"pid {os.getpid()}, config {config}" in str(caught.value)
    with state_lock(tmp_path / "state", config):
        pass


def test_what_an_earlier_holder_wrote_is_gone(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(f"pid 1, config /{'x' * 1000}\n")
    with state_lock(tmp_path, None):
        assert (tmp_path / "lock").read_text() == f"pid {os.getpid()}, config None\n"
