"""What the container's files say is so: of llmux, of its stand-in, and of the files that they name.

`test_container_real.py` builds and runs them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from click.testing import CliRunner

from bench.processes import free_port
from llmux.cli.main import main
from llmux.config import Config, load_config, parse_config
from llmux.hooks.process_group import KILL_AFTER_S
from llmux.standin import cli as standin
from tests.certificates import write_pair
from tests.containerfile import COMPOSE, ROOT, blocks, commands, health_command, read_containerfile
from tests.servers import running_backends, running_llmux

DOCUMENT = ROOT / "docs" / "containers.md"
STATE = "/var/lib/llmux"
PORT = 3000

FILE = read_containerfile()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    return found


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(COMPOSE / "config" / "llmux.yaml")


# ---- The Containerfile ----


def test_all_that_is_copied_exists_and_is_let_in() -> None:
    ignored = (ROOT / ".dockerignore").read_text()
    assert (ROOT / ".containerignore").read_text() == ignored
    let_in = set(re.findall(r"^!(.+)$", ignored, re.MULTILINE))
    assert set(FILE.sources) == let_in
    assert all((ROOT / source).exists() for source in FILE.sources)


def test_dependencies_come_before_the_source() -> None:
    steps = [f"{key} {argument}" for key, argument in FILE.instructions]

    def at(pattern: str) -> int:
        return next(i for i, step in enumerate(steps) if fnmatchcase(step, pattern))

    install, source = at("RUN*pip*install*-r /opt/run.txt"), at("COPY llmux *")
    assert at("COPY pyproject.toml constraints.txt *") < install < source
    last_stage = steps.index("FROM ${BASE}")
    assert last_stage < at("RUN apt-get*") < at("COPY --from=package *")
    assert at("COPY --from=dependencies *") < at("COPY --from=package *")


def test_the_environment_is_what_llmux_heeds() -> None:
    where = COMPOSE / "config" / "llmux.yaml"
    assert set(FILE.environment) == {"PATH", "LLMUX_CONFIG", "XDG_STATE_HOME"}
    assert FILE.environment["LLMUX_CONFIG"] == "/etc/llmux/llmux.yaml"
    environment = FILE.environment | {"LLMUX_CONFIG": str(where)}
    shown = CliRunner().invoke(main, ["check"], env=environment).output
    assert f"config     {where}" in shown
    assert re.search(rf"^state in   {STATE}/", shown, re.MULTILINE)
    assert FILE.last("VOLUME") == STATE


def test_it_is_not_root_and_owns_its_state() -> None:
    user, group = FILE.last("USER").split(":")
    assert int(user) > 0
    made = next(argument for argument in FILE.all("RUN") if "useradd" in argument)
    assert f"groupadd --gid {group} llmux" in made
    assert f"useradd --uid {user} --gid {group} " in made
    assert f"install --directory --owner {user} --group {group} --mode 0700 {STATE}" in made


def test_its_command_is_one_of_llmux() -> None:
    tini, end, program = FILE.words("ENTRYPOINT")
    assert (tini, end, program) == ("tini", "--", "llmux")
    name, *arguments = FILE.words("CMD")
    context = main.commands[name].make_context(name, arguments)
    assert (context.params["host"], context.params["port"]) == ("0.0.0.0", PORT)
    assert FILE.last("EXPOSE") == str(PORT)
    assert FILE.last("STOPSIGNAL") == "SIGTERM"


async def test_its_health_check(tmp_path: Path) -> None:
    python, *rest = FILE.words("HEALTHCHECK")
    assert python == "python"

    async def check(url: str) -> int:
        port = url.rpartition(":")[2]
        words = [word.replace(str(PORT), port) for word in rest]
        done = await trio.run_process(
            [sys.executable, *words], check=False, env={**os.environ, "http_proxy": "http://[::1]:1"},
            capture_stderr=True,
        )  # fmt: skip
        return done.returncode

    async with running_backends(tmp_path, "a") as rack:
        async with running_llmux(rack.write_config()) as llmux:
            assert await check(llmux.url) == 0
        assert await check(llmux.url) == 1
        async with running_llmux(rack.write_config(tls=write_pair(tmp_path))) as llmux:
            assert await check(llmux.url) == 0


def test_the_readme_says_the_same() -> None:
    readme = ROOT / "README.md"
    assert commands(readme, "podman build") == commands(DOCUMENT, "podman build")
    (short,), (whole,) = commands(readme, "podman run"), commands(DOCUMENT, "podman run")
    assert set(short) <= set(whole)


# ---- compose ----


def test_each_model_is_a_service_that_it_waits_for(
    services: dict[str, Any], config: Config
) -> None:
    assert set(services) == {"llmux", *config.models}
    assert set(services["llmux"]["depends_on"]) == set(config.models)
    for name, model in config.models.items():
        service = services[name]
        assert model.host == name
        program = service["entrypoint"]
        assert program[:3] == ["tini", "--", "/sleep-first.sh"]
        assert program[3:] == ["python", "-m", "llmux.standin"]
        command, *arguments = service["command"]
        params = standin.main.commands[command].make_context(command, arguments).params
        assert (params["model"], params["host"], params["port"]) == (name, "0.0.0.0", model.port)
        assert "ports" not in service
        assert service["restart"] == "no"
    for service in services.values():
        assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
        for need in service.get("depends_on", {}).values():
            assert need == {"condition": "service_healthy"}
        assert (COMPOSE / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).exists()


def test_only_llmux_is_published_and_on_loopback(services: dict[str, Any]) -> None:
    assert services["llmux"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert health_command(services["llmux"])[-1] == f"http://127.0.0.1:{PORT}/health"


def test_what_is_mounted(services: dict[str, Any]) -> None:
    document = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    mounts = {service: spec["volumes"] for service, spec in services.items()}
    folder = str(Path(FILE.environment["LLMUX_CONFIG"]).parent)
    assert mounts["llmux"] == [f"./config:{folder}:ro", f"state:{STATE}"]
    assert set(document["volumes"]) == {"state"}
    for mount in (mount for each in mounts.values() for mount in each):
        source, _, mode = mount.split(":") if mount.count(":") == 2 else (*mount.split(":"), "")
        if source.startswith("."):
            assert mode == "ro"
            assert (COMPOSE / source).exists()


def test_there_is_time_to_stop(services: dict[str, Any], config: Config) -> None:
    needed = config.shutdown_grace_secs + 2 * KILL_AFTER_S
    assert int(services["llmux"]["stop_grace_period"].rstrip("s")) > needed
    (run,) = commands(DOCUMENT, "podman run")
    assert int(run[run.index("--stop-timeout") + 1]) > needed


def test_the_vllm_variant_can_be_commented_in(services: dict[str, Any], config: Config) -> None:
    text = (COMPOSE / "compose.yaml").read_text()
    commented = text[text.index("#  llama:") :]
    variant = yaml.safe_load(re.sub(r"^#", "", commented, flags=re.MULTILINE))
    (name,) = variant
    server = variant[name]
    assert name in config.models
    assert server["entrypoint"] == ["/sleep-first.sh", "vllm", "serve"]
    arguments = server["command"]
    assert arguments[arguments.index("--served-model-name") + 1] == name
    assert int(arguments[arguments.index("--port") + 1]) == config.models[name].port
    assert "--enable-sleep-mode" in arguments
    assert server["environment"] == {"VLLM_SERVER_DEV_MODE": "1"}
    assert services[name]["volumes"][0] in server["volumes"]
    assert health_command(server) == health_command(services[name])


# ---- The hooks ----


@contextmanager
def running_standin(
    port: int, *wrapped_by: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A stand-in on this port, in a session of its own."""
    serve = ["serve", "--model", "a", "--port", str(port)]
    process = subprocess.Popen(
        [*wrapped_by, sys.executable, "-m", "llmux.standin", *serve],
        start_new_session=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def call(port: int, *words: str) -> int:
    """A command of the stand-in that drives one; returns its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "llmux.standin", words[0], "--port", str(port), *words[1:]],
        check=False, capture_output=True, timeout=60,
    )  # fmt: skip
    return done.returncode


def hooks(config: Config, port: int, *names: str) -> list[int]:
    """The exit codes of hooks of a model whose host is `localhost`."""
    (model, *_) = config.models.values()
    environment = {**os.environ, "LLMUX_MODEL": "localhost", "LLMUX_PORT": str(port)}
    return [
        subprocess.run(
            ["sh", "-c", getattr(model, name)],
            check=False, capture_output=True, env=environment, timeout=30,
        ).returncode
        for name in names
    ]  # fmt: skip


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
def test_the_hooks_of_compose(config: Config) -> None:
    port = free_port()
    with running_standin(port):
        assert call(port, "wait") == 0
        assert hooks(config, port, "alive", "verify_asleep") == [0, 1]
        assert hooks(config, port, "sleep", "sleep", "alive", "verify_asleep") == [0, 0, 1, 0]
        assert hooks(config, port, "wake", "wake", "alive", "verify_asleep") == [0, 0, 0, 1]
    # Its container does not run: nothing of it holds the GPU.
    assert hooks(config, port, "sleep", "verify_asleep", "alive", "wake") == [0, 0, 1, 7]


@needs_curl
def test_a_server_sleeps_first_and_ends_as_it_is_told(tmp_path: Path) -> None:
    port = free_port()
    wrapper = str(COMPOSE / "sleep-first.sh")
    with running_standin(port, wrapper, PORT=str(port), TMPDIR=str(tmp_path)) as server:
        assert call(port, "wait", "--path", "/is_sleeping") == 0
        while call(port, "wait", "--awake", "--timeout", "0") == 0:
            assert server.poll() is None
        while not (tmp_path / "has-slept").exists():
            assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
    assert call(port, "wait", "--timeout", "0") != 0


@needs_curl
def test_a_server_that_ends_before_it_answers_is_not_waited_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMPOSE / "sleep-first.sh", "sh", "-c", "exit 9"],
        env={**os.environ, "PORT": str(free_port()), "TMPDIR": str(tmp_path)},
        check=False, timeout=20,
    )  # fmt: skip
    assert done.returncode == 9
    assert not (tmp_path / "has-slept").exists()


def test_the_config_for_the_engines_socket_loads(tmp_path: Path) -> None:
    (text,) = blocks(DOCUMENT, "yaml")
    found = parse_config(yaml.safe_load(text), directory=tmp_path)
    for model in found.models.values():
        assert model.host == model.name
        assert all(model.script(hook) for hook in ("wake", "sleep", "alive", "verify_asleep"))
