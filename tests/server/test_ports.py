"""Ports that llmux chooses for its models' servers."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import yaml

from llmux.app import build_app
from llmux.config import Config, parse_config
from llmux.errors import ConfigError
from llmux.observe.events import Events
from llmux.server import ports
from llmux.server.ports import PortBook, chosen_ports
from llmux.switching.reload import Reloader
from llmux.switching.switchboard import Switchboard
from tests.fakes import FakeHooks

SIZE = 6


@pytest.fixture
def first() -> Iterator[int]:
    """The first of some consecutive ports that nothing uses, also no other test."""
    for base in range(21000 + os.getpid() % 400 * 20, 29000, SIZE):
        numbers = range(base, base + SIZE)
        if all(ports._is_free(number) for number in numbers):
            yield base
            return
    raise AssertionError("no free ports")


def config(tmp_path: Path, first: int, *names: str, **more: Any) -> Config:
    models: dict[str, Any] = {
        name: {"recipe": "process", "with": {"command": "server"}} for name in names
    }
    data = {"models": models | more.pop("models", {}), "port": 0, "state_dir": str(tmp_path / "s")}
    return parse_config(
        {"ports": f"{first}-{first + SIZE - 1}", **data, **more}, directory=tmp_path
    )


def chosen(config: Config) -> dict[str, int | None]:
    with closing(PortBook(config.state_dir)) as book:
        return ports_of(book.assign(config))


def ports_of(config: Config) -> dict[str, int | None]:
    return {name: model.port for name, model in config.models.items()}


@contextmanager
def listening(port: int, host: str = "127.0.0.1") -> Iterator[None]:
    with socket.create_server((host, port)):
        yield


def test_each_model_gets_a_port_of_its_own_and_keeps_it(tmp_path: Path, first: int) -> None:
    expected = {"a": first, "b": first + 1}
    assert chosen(config(tmp_path, first, "a", "b")) == expected
    assert chosen_ports(tmp_path / "s") == expected
    assert chosen(config(tmp_path, first, "c", "b", "a")) == {"c": first + 2, **expected}
    file = tmp_path / "s" / "ports.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["ports.json"]


def test_a_config_without_such_models_writes_nothing(tmp_path: Path, first: int) -> None:
    hooks = {"wake": "a", "sleep": "b", "alive": "c"}
    plain = config(tmp_path, first, models={"a": {"port": 5, **hooks}})
    with closing(PortBook(plain.state_dir)) as book:
        assert book.assign(plain) is plain
    assert not plain.state_dir.exists()


def test_ports_that_the_config_names_are_left_out(tmp_path: Path, first: int) -> None:
    control = {"port": first + 1}
    fixed = {"recipe": "process", "port": first + 2, "with": {"command": "x"}}
    found = config(tmp_path, first, "a", models={"b": fixed}, port=first, control=control)
    assert chosen(found) == {"a": first + 3, "b": first + 2}


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_left_out(tmp_path: Path, first: int, host: str) -> None:
    with listening(first, host):
        assert chosen(config(tmp_path, first, "a")) == {"a": first + 1}


def test_a_port_that_something_else_has_taken_since_is_given_up(tmp_path: Path, first: int) -> None:
    chosen(config(tmp_path, first, "a"))
    with listening(first):
        assert chosen(config(tmp_path, first, "a")) == {"a": first + 1}
    assert chosen_ports(tmp_path / "s") == {"a": first + 1}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("variables", "is_kept"),
    [
        ({}, True),
        ({"LLMUX_MODEL": "b"}, False),
        ({"LLMUX_STATE_DIR": "/elsewhere"}, False),
        ({"LLMUX_PORT": "1"}, False),
    ],
)
def test_a_model_whose_server_runs_keeps_its_port(
    tmp_path: Path, first: int, variables: dict[str, str], *, is_kept: bool
) -> None:
    chosen(config(tmp_path, first, "a"))
    about = {"LLMUX_MODEL": "a", "LLMUX_PORT": str(first), "LLMUX_STATE_DIR": str(tmp_path / "s")}
    listen = (
        "import socket, sys\n"
        f"with socket.create_server(('127.0.0.1', {first})): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", listen],
        env={**os.environ, **about, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        found = chosen(config(tmp_path, first, "a"))
        server.communicate()
    assert (found == {"a": first}) is is_kept


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_two_llmux_do_not_choose_the_same_though_no_server_runs(tmp_path: Path, first: int) -> None:
    one, two = config(tmp_path / "1", first, "a"), config(tmp_path / "2", first, "a")
    with closing(PortBook(one.state_dir)) as book, closing(PortBook(two.state_dir)) as other:
        assert ports_of(book.assign(one)) == {"a": first}
        assert ports_of(other.assign(two)) == {"a": first + 1}
    with closing(PortBook(two.state_dir)) as other:  # and after both have stopped
        assert ports_of(other.assign(two)) == {"a": first + 1}


def test_the_range_may_be_used_up(tmp_path: Path, first: int) -> None:
    names = [f"m{i}" for i in range(SIZE)]
    with listening(first + 2), pytest.raises(ConfigError) as caught:
        chosen(config(tmp_path, first, *names))
    (line,) = caught.value.mistakes
    assert line == f"ports: no free port is left in {first}-{first + SIZE - 1} for 'm5'"


def test_ports_of_models_that_are_gone_are_used_last(tmp_path: Path, first: int) -> None:
    chosen(config(tmp_path, first, "old"))
    found = chosen(config(tmp_path, first, *(f"m{i}" for i in range(SIZE))))
    assert found["m0"] == first + 1
    assert found[f"m{SIZE - 1}"] == first


def test_another_range_moves_what_is_not_in_it(tmp_path: Path, first: int) -> None:
    chosen(config(tmp_path, first, "a"))
    moved = config(tmp_path, first, "a", ports=f"{first + 1}-{first + 2}")
    assert chosen(moved) == {"a": first + 1}


@pytest.mark.parametrize(
    "text", ["", "{", '{"ports": {"a": "x"}}', "[]", '{"ports": {"a": 99999}}']
)
def test_a_broken_file_is_made_again(tmp_path: Path, first: int, text: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "ports.json").write_text(text)
    assert chosen(config(tmp_path, first, "a")) == {"a": first}
    assert chosen_ports(tmp_path / "s") == {"a": first}


def test_an_unwritable_folder_does_not_keep_llmux_from_serving(tmp_path: Path, first: int) -> None:
    (tmp_path / "s").write_text("a file")
    assert chosen(config(tmp_path, first, "a")) == {"a": first}


def test_a_config_that_is_only_checked_has_no_ports(tmp_path: Path, first: int) -> None:
    found = config(tmp_path, first, "a")
    assert found.models["a"].chooses_port
    assert not found.state_dir.exists()


@pytest.mark.parametrize(
    "text", ["", "5", "5-", "0-5", "9-5", "1-65536", "a-b", "1-2-3", "99999-99999"]
)
def test_a_bad_range_is_a_mistake(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"models": {"a": {"recipe": "demo"}}, "ports": text})
    (line,) = caught.value.mistakes
    assert line == f"ports: expected a range of ports such as 29000-29999, got {text!r}"


async def test_a_reload_keeps_them_and_adds_others(tmp_path: Path, first: int) -> None:
    file = tmp_path / "llmux.yaml"
    text = f"ports: {first}-{first + 5}\nstate_dir: s\nport: 0\nmodels:\n  a: {{recipe: demo}}\n"
    file.write_text(text)
    start = parse_config(yaml.safe_load(text), path=file)
    with closing(PortBook(start.state_dir)) as book:
        start = book.assign(start)
        board = Switchboard(start, FakeHooks(), Events())
        reloader = Reloader(start, board, complete=book.assign)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reloader.run)
            with listening(first):  # its server runs meanwhile
                file.write_text(text + "  b: {recipe: demo}\n")
                reloaded = await reloader.reload()
            nursery.cancel_scope.cancel()
        assert reloaded.ok, reloaded
        assert ports_of(reloader.config) == {"a": first, "b": first + 1}


def test_an_app_of_ones_own_gets_ports_too(tmp_path: Path, first: int) -> None:
    app, board = build_app(config(tmp_path, first, "a"))
    assert set(board.registered_models) == {"a"}
    assert chosen_ports(tmp_path / "s") == {"a": first}
    del app, board
    gc.collect()
    assert chosen(config(tmp_path / "other", first, "a")) == {"a": first}


# ---- Models that are removed ----


class Reloads:
    """A llmux whose file can be changed; the models are Rig's of `FakeHooks`."""

    def __init__(self, tmp_path: Path, first: int, *names: str) -> None:
        self._head = f"ports: {first}-{first + SIZE - 1}\nstate_dir: s\nport: 0\nmodels:\n"
        self.file = tmp_path / "llmux.yaml"
        self._write(*names)
        start = parse_config(yaml.safe_load(self.file.read_text()), path=self.file)
        self.book = PortBook(start.state_dir)
        start = self.book.assign(start)
        self.board = Switchboard(start, FakeHooks(), Events())
        self.reloader = Reloader(start, self.board, complete=self.book.assign)
        self.reloader.tell(of_models=self.book.use)

    def _write(self, *models: str) -> None:
        lines = (f"  {model if ':' in model else f'{model}: {{recipe: demo}}'}" for model in models)
        self.file.write_text(self._head + "\n".join(lines) + "\n")

    async def reload(self, *models: str) -> None:
        self._write(*models)
        reloaded = await self.reloader.reload()
        assert reloaded.ok, reloaded

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with closing(self.book):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.reloader.run)
                nursery.start_soon(self.board.run)
                yield
                nursery.cancel_scope.cancel()


def is_claimed(port: int) -> bool:
    try:
        claim = ports._claim_on_machine(port)
    except OSError:
        return True
    assert claim is not None
    claim.close()
    return False


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="claims need Linux")


@on_linux
async def test_a_removed_model_keeps_its_claim_until_it_sleeps(tmp_path: Path, first: int) -> None:
    site = Reloads(tmp_path, first, "a", "b")
    async with site.running():
        async with site.board.serving("a"):
            await site.reload("b")
            assert is_claimed(first)  # its server still answers this request
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not site.board.is_registered("a")
        assert not is_claimed(first)
        assert is_claimed(first + 1)
    assert not is_claimed(first + 1)


@on_linux
@pytest.mark.parametrize("address", ["port: 5", "url: http://gpu:1"])
async def test_a_model_with_another_address_gives_up_its_claim(
    tmp_path: Path, first: int, address: str
) -> None:
    site = Reloads(tmp_path, first, "a", "b")
    async with site.running():
        await site.reload(f"a: {{recipe: demo, {address}}}", "b")
        assert not is_claimed(first)
        await site.reload("a", "b")
        assert is_claimed(first)
        assert ports_of(site.reloader.config) == {"a": first, "b": first + 1}


@on_linux
async def test_a_model_that_comes_back_before_it_is_gone_keeps_its_claim(
    tmp_path: Path, first: int
) -> None:
    site = Reloads(tmp_path, first, "a", "b")
    async with site.running():
        async with site.board.serving("a"):
            await site.reload("b")
            await site.reload("a", "b")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert site.board.is_registered("a")
        assert is_claimed(first)


@on_linux
async def test_a_model_that_goes_while_the_file_that_has_it_is_read(
    tmp_path: Path, first: int
) -> None:
    site = Reloads(tmp_path, first, "a", "b")
    with closing(site.book):
        again = site.book.assign(
            parse_config(yaml.safe_load(site.file.read_text()), path=site.file)
        )
        site.book.use("a", None)  # by a reload before
        site.book.use("a", again.models["a"])
        assert is_claimed(first)
