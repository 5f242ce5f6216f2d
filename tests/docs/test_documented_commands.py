"""Every command and config of the documentation works, or says why it is not tried.

The pages' shell and Python blocks are run here, in order, in a copy of the repository. A comment on the
line before a block says what is special about it:

- `<!-- not run: REASON -->`: not run.
- `<!-- serves -->`: runs until the next of its kind, or the end of the page; llmux answers then.
- `<!-- part of a config -->`: YAML in which required keys are missing, and nothing else is wrong.
- `<!-- not a config of llmux: WHOSE -->`: YAML that is somebody else's.

So that a page can be run anywhere, well-known ports (3000, 8001, ...) become free ones, in blocks and in YAML
files; `~` is a folder of the test; curl fails where the status is an error; `llama-server` is a stand-in
(`tests/hooks/standins`); and commands know LLMUX_MODEL, LLMUX_PORT and
LLMUX_STATE_DIR, as hooks do.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bench.processes import free_port
from llmux.config import load_config
from llmux.errors import ConfigError
from tests.documents import PAGES, ROOT, Block, blocks
from tests.hooks.bench import install_standin, kill_all, processes_with

BLOCKS = {page.relative_to(ROOT).as_posix(): list(blocks(page)) for page in PAGES}
ALL = [block for found in BLOCKS.values() for block in found]
YAML = [block for block in ALL if block.language in {"yaml", "yml"}]

WELL_KNOWN_PORT = re.compile(r"\b(3000|3001|3002|3003|8001|8002|8003|8101|8102|9002|9003|11434)\b")
COMMAND = re.compile(
    r"^(\$ |(curl|llmux|make|python3?|pip|docker|podman|systemctl) )", re.MULTILINE
)
TIMEOUT_S = 120.0


def is_run(block: Block) -> bool:
    return (block.is_shell or block.language == "python") and not block.is_excused


# ---- Without running them ----


def test_marks_are_known() -> None:
    known = r"serves|not run: \S.*|part of a config|not a config of llmux: \S.*|generated: \w+|end"
    for block in ALL:
        assert re.fullmatch(f"({known})?", block.mark), f"{block}: <!-- {block.mark} -->"
        assert block.is_shell or not block.serves, f"{block}: only commands serve"


def test_commands_are_known_for_what_they_are() -> None:
    """A command in a block of another language would not be run; `text` is for transcripts."""
    for block in ALL:
        if not block.is_shell and block.language != "text":
            assert not COMMAND.search(block.code), f"{block}: say ```sh"


def test_commands_that_need_llmux_come_after_it_is_started() -> None:
    for found in BLOCKS.values():
        served = False
        for block in filter(is_run, found):
            served = served or block.serves
            assert served or "127.0.0.1:3000" not in block.code, f"{block}: nothing serves"


@pytest.mark.parametrize("block", [block for block in ALL if block.is_shell], ids=str)
def test_commands_are_shell(block: Block) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=block.script, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", YAML, ids=str)
def test_configs_load(block: Block, tmp_path: Path) -> None:
    if block.mark.startswith("not a config of llmux"):
        return
    path = tmp_path / "llmux.yaml"
    path.write_text(block.code)
    try:
        load_config(path)
        mistakes = []
    except ConfigError as error:
        mistakes = error.mistakes
    if block.mark == "part of a config":
        is_missing = re.compile("required key is missing|give 'port' or 'url'$").search
        mistakes = [mistake for mistake in mistakes if not is_missing(mistake)]
    assert not mistakes


# ---- Running them ----


class Terminal:
    """Where the blocks of one page are run, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.repository = folder / "llmux"
        self._ports: dict[str, int] = {}
        self._output = folder / "output"
        self._server: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self._copy_repository()
        bin_folder = self.home / "bin"
        bin_folder.mkdir(parents=True)
        install_standin(bin_folder / "llama-server", "server")
        (self.home / ".curlrc").write_text("fail\nsilent\nshow-error\nmax-time 60\n")
        path = [str(bin_folder), f"{sys.prefix}/bin", os.environ["PATH"]]
        clean = {name: text for name, text in os.environ.items() if not name.startswith("LLMUX_")}
        self._environment = clean | {
            "HOME": str(self.home),
            "STANDIN_DIR": str(self.home),
            "PATH": ":".join(path),
            "XDG_STATE_HOME": str(self.home / "state"),
            "LLMUX_MODEL": "llama",
            "LLMUX_PORT": str(self.port("8101")),
            "LLMUX_STATE_DIR": str(self.home / "state"),
        }

    def _copy_repository(self) -> None:
        listed = subprocess.check_output(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True
        )
        for name in listed.splitlines():
            if (source := ROOT / name).exists():
                copy = self.repository / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy)
                if copy.suffix in {".yaml", ".yml"}:
                    copy.write_text(self.with_ports(copy.read_text()))
        # `make` finds everything installed.
        venv = self.repository / ".venv"
        venv.mkdir()
        for entry in Path(sys.prefix).iterdir():
            if not entry.name.startswith("."):
                (venv / entry.name).symlink_to(entry)
        for stamp in (".installed-run", ".installed-test", ".installed-docs"):
            (venv / stamp).touch()

    def port(self, well_known: str) -> int:
        """The free port that stands for a well-known one."""
        if well_known not in self._ports:
            self._ports[well_known] = free_port()
        return self._ports[well_known]

    def with_ports(self, text: str) -> str:
        text = WELL_KNOWN_PORT.sub(lambda found: str(self.port(found[0])), text)
        # Another Envoy may run on this machine: two with one id share memory.
        return text.replace("envoy -c ", "envoy --use-dynamic-base-id -c ")

    def run(self, block: Block) -> None:
        """Run a block to its end, or until llmux answers if it serves."""
        # The demo has no config in which another port could stand.
        script = re.sub(r"^llmux demo\b", "llmux demo -p 3000", block.script, flags=re.MULTILINE)
        code = self.with_ports(script)
        command = [sys.executable, "-c", code]
        if block.is_shell:
            command = ["bash", "-euo", "pipefail", "-c", code]
        if block.serves:
            self.stop_server()
        # Into a file: what is left in the background would hold a pipe open.
        with self._output.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.repository,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._started.append(process)
        if block.serves:
            self._server = process
            self._wait_until_it_listens(block)
        else:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TIMEOUT_S)
            ended = f"{block}: exit code {process.returncode}"
            assert process.returncode == 0, f"{ended}\n{self._output.read_text()}"
            self._move_from_the_default_port()

    def _move_from_the_default_port(self) -> None:
        """A config that `llmux init` has written leaves the port out; it may be in use here."""
        for made in self.home.rglob("llmux.yaml"):
            text = made.read_text()
            if not re.search("^port:", text, re.MULTILINE):
                made.write_text(f"port: {self.port('3000')}\n{text}")

    def _wait_until_it_listens(self, block: Block) -> None:
        assert self._server is not None
        give_up_at = time.monotonic() + TIMEOUT_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port("3000"))) == 0:
                    return
            ended = self._server.poll() is not None
            assert not ended, f"{block} has ended\n{self._output.read_text()}"
            assert time.monotonic() < give_up_at, f"{block} does not listen"
            time.sleep(0.02)

    def stop_server(self) -> None:
        """Ctrl-C."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGINT)
            self._server.wait(TIMEOUT_S)
            self._server = None

    @contextmanager
    def until_ended(self) -> Iterator[Terminal]:
        try:
            yield self
            self.stop_server()
        finally:
            kill_all(processes_with(f"STANDIN_DIR={self.home}"))
            for process in self._started:
                process.wait(TIMEOUT_S)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc, to end what is left")
@pytest.mark.parametrize(
    "page", [page for page, found in BLOCKS.items() if any(map(is_run, found))]
)
def test_commands_work(page: str, tmp_path: Path) -> None:
    with Terminal(tmp_path).until_ended() as terminal:
        for block in filter(is_run, BLOCKS[page]):
            terminal.run(block)
