"""What llmux opens: no pipes or devices where a file is named, no links where its own state is."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from llmux.api.logfile import LogReader
from llmux.base.plainfiles import NotOurs, open_own, read_regular, unsafe_folder
from llmux.config import load_config
from llmux.errors import ConfigError
from llmux.hooks.log_file import log_name
from llmux.observe.journal import Journal, Request
from llmux.server.statelock import state_lock
from llmux.switching.awake import AwakeRecord, Entry
from tests.servers import ALL_FORMS, chat, running_backends, running_llmux, start_in_vain

MODEL = {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(64 << 20)


ODD_FILES = [
    (make_fifo, "not a regular file but a pipe"),
    (make_link_to_zeros, "not a regular file but a device"),
    (make_large, "larger than"),
    (Path.mkdir, "Is a directory"),
]


# ---- Files that a user names ----


@pytest.mark.parametrize(("make", "says"), ODD_FILES)
@pytest.mark.parametrize("name", ["llmux.yaml", "llmux.json"])
def test_a_config_that_is_no_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], says: str, name: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(ConfigError, match=f"cannot be read: {says}"):
        load_config(path)


@pytest.mark.parametrize(("make", "says"), ODD_FILES)
def test_keys_that_are_in_no_file_are_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    make(tmp_path / "keys")
    config = tmp_path / "llmux.json"
    config.write_text(json.dumps({"models": {"m": MODEL}, "api_keys": [{"file": "keys"}]}))
    with pytest.raises(ConfigError, match=rf"api_keys\[0\]: .*cannot be read: {says}"):
        load_config(config)


def test_a_link_to_a_config_and_to_keys_is_followed(tmp_path: Path) -> None:
    """As Kubernetes mounts them."""
    for name, text in {
        "llmux.json": json.dumps({"models": {"m": MODEL}, "api_keys": [{"file": "keys"}]}),
        "keys": "secret",
    }.items():
        (tmp_path / f"{name}.real").write_text(text)
        (tmp_path / name).symlink_to(f"{name}.real")
    assert len(load_config(tmp_path / "llmux.json").api_keys) == 1


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 1000)
    assert read_regular(tmp_path / "f", 1000) == b"x" * 1000
    with pytest.raises(OSError, match="larger"):
        read_regular(tmp_path / "f", 999)


# ---- State ----


def planted(tmp_path: Path, name: str) -> Path:
    """A link to a file of value in the place of one of llmux's; returns that file."""
    value = tmp_path / "value"
    value.write_text("of value")
    path = tmp_path / "state" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(value)
    return value


def hold(tmp_path: Path) -> None:
    with state_lock(tmp_path / "state", None):
        pass


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    value = planted(tmp_path, "lock")
    with pytest.raises(NotOurs) as caught:
        hold(tmp_path)
    lock = tmp_path / "state/lock"
    assert str(caught.value) == (
        f"{lock} is a symbolic link, which llmux does not follow: "
        "move it away, or choose another state_dir"
    )
    assert value.read_text() == "of value"


def test_a_dangling_link_makes_no_file(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/lock").symlink_to(tmp_path / "made")
    with pytest.raises(NotOurs):
        hold(tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["of value", "pid of value", "\0"])
def test_a_lock_that_is_a_file_of_somebodys_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    lock = tmp_path / "state/lock"
    lock.parent.mkdir()
    lock.write_text(text)
    with pytest.raises(NotOurs, match="is a file that is not llmux's lock: move it away"):
        hold(tmp_path)
    assert lock.read_text() == text


@pytest.mark.parametrize("make", [make_fifo, Path.mkdir])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "state").mkdir()
    make(tmp_path / "state/lock")
    with pytest.raises(NotOurs, match=r"is a (pipe|folder): move it away"):
        hold(tmp_path)


def test_a_state_dir_that_is_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "state").symlink_to("real")
    hold(tmp_path)
    assert (tmp_path / "real/lock").read_text().startswith("pid ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "state/lock"
    lock.parent.mkdir()
    lock.touch()
    os.chown(lock, 12345, -1)
    with pytest.raises(NotOurs, match=r"belongs to another user \(uid 12345\)"):
        hold(tmp_path)
    os.chown(lock.parent, 12345, -1)  # whose it is anyway, as on some network file systems
    hold(tmp_path)
    assert unsafe_folder(lock.parent) == "it belongs to another user (uid 12345)"


@pytest.mark.parametrize(
    ("mode", "is_safe"), [(0o700, True), (0o755, True), (0o1777, True), (0o777, False)]
)
def test_a_state_dir_that_everybody_may_change_is_told_of(
    tmp_path: Path, mode: int, is_safe: bool
) -> None:
    tmp_path.chmod(mode)
    assert (unsafe_folder(tmp_path) is None) == is_safe


def test_the_record_of_what_is_awake_goes_through_no_link(tmp_path: Path) -> None:
    for name in ("awake.json", "awake.new"):
        value = planted(tmp_path, name)
    record = AwakeRecord(tmp_path / "state/awake.json")
    record.load(["a"])
    assert record.entry("a") == Entry("unsure"), "nothing is known"
    record.note("a", "awake")
    assert value.read_text() == "of value"
    assert stat.S_ISREG((tmp_path / "state/awake.json").lstat().st_mode)
    after = AwakeRecord(tmp_path / "state/awake.json")
    after.load(["a"])
    assert after.entry("a") == Entry("awake")


@pytest.mark.parametrize("name", ["journal.jsonl", "journal.1.jsonl"])
async def test_the_journal_goes_through_no_link(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = planted(tmp_path, name)
    monkeypatch.setattr("llmux.observe.journal.MAX_BYTES", 100)
    journal = Journal(tmp_path / "state/journal.jsonl")
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run)
            await trio.testing.wait_all_tasks_blocked()
            journal.add(lambda _offset_s: Request("m", 1.0, 2.0, 200))
            nursery.cancel_scope.cancel()
    assert value.read_text() == "of value"
    assert journal.latest(0, 10) == ([Request("m", 1.0, 2.0, 200)] if "1" in name else [])


async def test_logs_are_written_and_shown_through_no_link(tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a", "b") as rack:
        value = planted(tmp_path, f"logs/{log_name('a')}")
        config = rack.write_config(models={"a": {"wake": "echo loud; : > a.awake"}})
        async with running_llmux(config) as llmux, llmux.client() as client:
            for name in "ab":
                answer = await client.post("/v1/chat/completions", json=chat(name))
                assert answer.status_code == 200, "a log that is lost stops no hook"
            assert (await client.get("/control/logs/a")).text == ""
            assert "wake" in (await client.get("/control/logs/b")).text
        assert value.read_text() == "of value"
        assert any("hook_log_unusable" in each and "symbolic link" in each for each in llmux.lines)


async def test_a_folder_of_logs_that_is_a_link_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.log").write_text("of value\n")
    (tmp_path / "logs").symlink_to("elsewhere")
    with pytest.raises(NotOurs, match="logs is a symbolic link"):
        open_own(tmp_path / "logs/a.log", os.O_RDWR, in_own_folder=True)
    reader = LogReader(tmp_path / "logs/a.log", lines=9, follow=lambda: False)
    assert [each async for each in reader] == []


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_llmux_says_in_one_line_that_it_cannot_use_its_state(
    tmp_path: Path, form: str
) -> None:
    async with running_backends(tmp_path, "a") as rack:
        planted(tmp_path, "lock")
        code, lines = await start_in_vain(rack.write_config(), form)
    assert code == (1 if form == "llmux" else 0)
    assert [each for each in lines if "symbolic link" in each]
    assert not any("Traceback" in each for each in lines)
