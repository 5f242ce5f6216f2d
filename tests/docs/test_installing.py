"""The wheel, installed as users install it: with pipx, with uv, away from the repository, in a home of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from llmux import __version__

ROOT = Path(__file__).parents[2]
INSTALL_S = 300.0
"""An installation fetches about twenty packages."""


IMPORT_ALL = """
import importlib, pkgutil, llmux
GRPC = "exchange", "messages", "run", "service", "web"
for module in pkgutil.walk_packages(llmux.__path__, "llmux."):
    place = module.name.removeprefix("llmux.")
    needs_extra = {"proxy.tracing", *(f"pick.{name}" for name in GRPC)}
    if place not in needs_extra and not place.endswith("__main__"):
        importlib.import_module(module.name)
"""
"""Shows that what llmux imports is among its dependencies."""


class Stranger:
    """A user who has the wheel and nothing of the repository.

    Attributes:
        home: An empty home.
        tools: Folder of pipx and uv.
        wheel: The built wheel.
    """

    def __init__(self, home: Path, tools: Path, wheel: Path) -> None:
        self.home = home
        self.tools = tools
        self.wheel = wheel
        self.bin = home / ".local" / "bin"
        self.temporary = home / "tmp"
        for folder in (home, home / "empty", self.temporary):
            folder.mkdir()
        kept = ("LANG", "TERM")
        # Where packages come from, and how: proxies, certificates, an index of one's own.
        passed = (
            "PIP_",
            "UV_INDEX",
            "UV_DEFAULT_INDEX",
            "SSL_",
            "HTTP",
            "http",
            "NO_PROXY",
            "no_proxy",
            "ALL_PROXY",
        )
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name in kept or name.startswith(passed)
        } | {
            "HOME": str(home),
            "TMPDIR": str(self.temporary),
            "PATH": f"{self.bin}:{tools}:/usr/local/bin:/usr/bin:/bin",
            "UV_CACHE_DIR": str(home / ".cache" / "uv"),
            "UV_PYTHON_DOWNLOADS": "never",
        }

    def run(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command in an empty folder, without a terminal."""
        return subprocess.run(
            command,
            cwd=self.home / "empty",
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @contextmanager
    def demo(self) -> Iterator[str]:
        """Run `llmux demo`; yields its URL. At the end it must stop cleanly."""
        log = self.home / "demo.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [self.bin / "llmux", "demo", "--port", "0"],
                cwd=self.home / "empty",
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=output,
            )
        try:
            deadline = time.monotonic() + INSTALL_S
            while (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield found[0]
            process.terminate()
            assert process.wait(INSTALL_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pipx, uv, and what builds a wheel."""
    folder = tmp_path_factory.mktemp("tools")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "pipx", "uv", "hatchling"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs pipx and uv from a package index: {done.stderr.strip()[-200:]}")
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [str(tools / "python"), "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(params=["pipx", "uv tool"])
def stranger(
    request: pytest.FixtureRequest, tools: Path, wheel: Path, tmp_path: Path
) -> Iterator[Stranger]:
    """A user who has installed the wheel."""
    user = Stranger(tmp_path / "home", tools, wheel)
    python = ["--python", os.path.realpath(sys.executable)]
    done = user.run(*request.param.split(), "install", *python, str(wheel), timeout_s=INSTALL_S)
    assert done.returncode == 0, done.stderr
    yield user
    shutil.rmtree(user.home)


@pytest.mark.slow
def test_the_first_steps_of_a_user_who_has_only_the_wheel(stranger: Stranger) -> None:
    assert (stranger.bin / "llmux").exists()
    done = stranger.run("llmux", "--version")
    assert (done.returncode, done.stdout) == (0, f"llmux, version {__version__}\n"), done.stderr
    assert stranger.run("llmux", "schema").stdout.startswith("{")
    # Nothing is taken from the repository.
    code = "import llmux; print(llmux.__file__)"
    python = (stranger.bin / "llmux").read_text().splitlines()[0].removeprefix("#!").split()
    where = stranger.run(*python, "-c", code).stdout.strip()
    assert Path(where).is_relative_to(stranger.home)
    done = stranger.run(*python, "-c", IMPORT_ALL, timeout_s=INSTALL_S)
    assert done.returncode == 0, done.stderr
    assert "ExecStart=" in stranger.run("llmux", "examples", "llmux.service").stdout
    done = stranger.run("llmux")
    assert done.returncode == 2
    assert done.stderr.startswith("no config: ")
    assert "llmux demo" in done.stderr
    (stranger.home / "pick.yaml").write_text("hosts: ['127.0.0.1:3000']\n")
    done = stranger.run("llmux", "pick", "-c", str(stranger.home / "pick.yaml"))
    assert done.returncode != 0
    assert "llmux-proxy[fleet]" in done.stderr
    done = stranger.run("llmux", "pick", "envoy-config", "-c", str(stranger.home / "pick.yaml"))
    assert "static_resources:" in done.stdout, done.stderr
    with stranger.demo() as root:
        for model in ("llama", "mistral"):
            body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
            answer = httpx.post(f"{root}/v1/chat/completions", json=body, timeout=INSTALL_S)
            assert (answer.status_code, answer.json()["model"]) == (200, model), answer.text
        page = httpx.get(root, headers={"Accept": "text/html"}, follow_redirects=True)
        assert (page.status_code, page.url.path) == (200, "/ui/")
        assert "<script" in page.text
    assert list(stranger.temporary.iterdir()) == []
