"""The image, built and run by a real Podman, on a Debian that debootstrap makes.

Needs root, Podman that can run containers, and either debootstrap or the image that the Containerfile
names. The base, once made, is kept as `localhost/llmux-test-base` with Podman's other images, for it
takes most of the time; remove it with `podman rmi`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bench.processes import free_port
from tests.containerfile import COMPOSE, ROOT, blocks, commands, read_containerfile

pytestmark = pytest.mark.slow

DOCUMENT = ROOT / "docs" / "containers.md"
IMAGE = "localhost/llmux-test"
BASE = "localhost/llmux-test-base"
NAME = f"llmux-test-{os.getpid()}"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

# Podman wants more descriptors and processes than some sandboxes allow, and crun not every cgroup.
SETTINGS = """\
[engine]
runtime = "{runtime}"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
"""


def podman(*words: str | Path, timeout: float = 60, check: bool = True) -> str:
    """Run Podman; returns what it prints."""
    done = subprocess.run(
        ["podman", *words], capture_output=True, text=True, check=False, timeout=timeout
    )
    assert not check or done.returncode == 0, f"podman {words[0]}: {done.stdout}{done.stderr}"
    return done.stdout


def succeeds(*words: str | Path) -> bool:
    done = subprocess.run(["podman", *words], capture_output=True, check=False, timeout=60)
    return done.returncode == 0


# ---- The base, and the image ----


def debian(folder: Path) -> None:
    """Make an image that has what the official Python image has, of this machine's mirror."""
    sources = [*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt").glob("sources.list.d/*")]
    text = "".join(path.read_text() for path in sources if path.suffix in (".list", ".sources"))
    found = re.search(r"^(?:URIs: |deb (?:\[.*\] )?)(http\S+/debian)/?(?:\s|$)", text, re.MULTILINE)
    mirror = [found[1]] if found else []  # else debootstrap's own
    packages = "ca-certificates,python3,python3-pip,python3-venv"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", folder, *mirror],
        check=True, stdout=subprocess.DEVNULL, timeout=900,
    )  # fmt: skip
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for emptied in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(folder / emptied)
        (folder / emptied).mkdir()
    archive = folder.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        for each in folder.iterdir():
            tar.add(each, each.name)
    podman("import", archive, BASE, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("container")


@pytest.fixture(scope="module")
def base(folder: Path) -> Iterator[str]:
    """The name of an image to build on; from here on Podman runs what it is asked to."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    if os.geteuid() != 0:
        pytest.skip("debootstrap, and podman as it is used here, need root")
    with pytest.MonkeyPatch.context() as patch:
        official = re.sub(r"^BASE=", "", read_containerfile().all("ARG")[0])
        name = official if succeeds("image", "exists", official) else BASE
        if not succeeds("image", "exists", name):
            if shutil.which("debootstrap") is None:
                pytest.skip(f"neither debootstrap nor the image {official} is here")
            debian(folder / "debian")
        settings = folder / "containers.conf"
        patch.setenv("CONTAINERS_CONF", str(settings))
        for runtime in ("crun", "runc"):
            settings.write_text(SETTINGS.format(runtime=runtime))
            if succeeds("run", "--rm", "--network", "none", name, "true"):
                break
        else:
            pytest.skip("podman cannot run a container here")
        yield name


def package_index(folder: Path) -> list[str | Path]:
    """Options of a build that has this machine's way to the package index, and keeps none of it."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = dict(re.findall(r"^\S+\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    kept = {
        key: found[key] for key in ("index-url", "extra-index-url", "trusted-host") if key in found
    }
    options: list[str | Path] = []
    if "cert" in found:
        kept["cert"] = CERTIFICATES
        options = ["--volume", f"{found['cert']}:{CERTIFICATES}:ro"]
    settings = folder / "pip.conf"
    settings.write_text("[global]\n" + "".join(f"{key} = {kept[key]}\n" for key in kept))
    return [*options, "--secret", f"id=pip,src={settings}"]


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    """A copy of what the build may see."""
    copy = folder / "source"
    copy.mkdir()
    for name in (*read_containerfile().sources, "Containerfile", ".dockerignore"):
        path = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, copy / name, ignore=ignore) if path.is_dir() else shutil.copy(
            path, copy
        )
    return copy


Build = Callable[[], str]


@pytest.fixture(scope="module")
def build(base: str, source: Path, folder: Path) -> Build:
    """Builds the image as the document says; returns the log."""
    (command,) = commands(DOCUMENT, "podman build")
    assert command == ["podman", "build", "--format", "docker", "-t", "llmux", "."]
    command = ["build", *command[2:-2], IMAGE, "--network", "host", "--build-arg", f"BASE={base}"]
    index = package_index(folder)
    return lambda: podman(*command, *index, source, timeout=900)


def images() -> set[str]:
    """Every image, those of single steps included."""
    return set(podman("images", "--all", "--quiet", "--no-trunc").split())


@pytest.fixture(scope="module")
def image(build: Build) -> Iterator[str]:
    before = images()
    build()
    yield IMAGE
    podman("rmi", "--force", *(images() - before), check=False)


# ---- Containers ----


def inspect(container: str) -> dict[str, Any]:
    (found,) = json.loads(podman("inspect", container))
    return dict(found)


def run_in(container: str, *words: str) -> str:
    return podman("exec", container, *words)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll for what another process does."""
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at, f"never: {what}"
        time.sleep(0.05)


def healthy(container: str) -> bool:
    """Run its health check, as systemd's timers do where there are some."""
    return succeeds("healthcheck", "run", container)


def ask(port: int, model: str) -> str:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    answer = httpx.post(url, json={"model": model}, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@contextmanager
def removed_at_the_end(*containers: str) -> Iterator[None]:
    try:
        yield
    finally:
        for container in containers:
            podman("rm", "--force", "--volumes", "--time", "1", container, check=False)


@contextmanager
def running(image: str, config: str, folder: Path, *options: str) -> Iterator[int]:
    """The document's command, with a config, a port and names of this test; yields the port."""
    conf = folder / "conf"
    conf.mkdir(exist_ok=True)
    (conf / "llmux.yaml").write_text(config)
    for path in (folder, conf):
        path.chmod(0o755)
    port = free_port()
    (command,) = commands(DOCUMENT, "podman run -d")
    changed = {
        "llmux": NAME, "127.0.0.1:3000:3000": f"127.0.0.1:{port}:3000",
        "./conf:/etc/llmux:ro": f"{conf}:/etc/llmux:ro",
        "llmux-state:/var/lib/llmux": f"{NAME}:/var/lib/llmux",
    }  # fmt: skip
    *words, last = command[1:]
    assert set(changed) <= set(command)
    assert last == "llmux"
    try:
        with removed_at_the_end(NAME):
            podman(*(changed.get(word, word) for word in words), *options, image)
            wait_until(lambda: healthy(NAME), "it is healthy")
            yield port
    finally:
        podman("volume", "rm", NAME, check=False)


STANDIN = """
models:
  a: &model
    port: 8001
    wake: |
      python -m llmux.standin serve --model "$LLMUX_MODEL" --port "$LLMUX_PORT" --pidfile "/tmp/$LLMUX_PORT" &
      python -m llmux.standin wait --port "$LLMUX_PORT"
      (sh -c 'echo $$ >/tmp/orphan; sleep 0.1' &)
    sleep: python -m llmux.standin stop --pidfile "/tmp/$LLMUX_PORT"
    alive: python -m llmux.standin wait --timeout 0 --port "$LLMUX_PORT"
  b: {<<: *model, port: 8002}
"""
"""Two stand-ins in llmux's own container; what wakes one leaves a process that ends after its parent."""

ZOMBIES = "grep -l '^State:.Z' /proc/[0-9]*/status || true"


def test_the_image(image: str) -> None:
    found = inspect(image)
    file = read_containerfile()
    assert found["Config"]["User"] == file.last("USER")
    assert found["Healthcheck"]["Test"] == ["CMD", *file.words("HEALTHCHECK")]
    assert found["Config"]["Labels"]["org.opencontainers.image.title"] == "llmux"
    run = ("run", "--rm", "--network", "none", image)
    assert podman(*run, "--version").startswith("llmux, version")
    look = (
        "cat /etc/pip.conf 2>/dev/null; find / -xdev -user 10001 ! -path '/proc/*' ! -path '/dev/*'"
    )
    seen = podman(*run[:-1], "--user", "0", "--entrypoint", "sh", image, "-c", look)
    assert seen.split() == ["/var/lib/llmux"]


def test_a_second_build_takes_all_but_llmux_from_the_cache(
    image: str, build: Build, source: Path
) -> None:
    comment = f"# changed at {time.time_ns()}\n"  # no earlier test has built this
    with (source / "llmux" / "__init__.py").open("a") as changed:
        changed.write(comment)
    steps = re.split(r"^\[\d/\d\] STEP ", build(), flags=re.MULTILINE)
    cached = {step.partition("\n")[0] for step in steps if "--> Using cache" in step}
    made = {step.partition("\n")[0] for step in steps} - cached

    def some(those: set[str], words: str) -> bool:
        return any(words in step for step in those)

    for words in ("-r /opt/run.txt", "apt-get", "useradd", "COPY --from=dependencies"):
        assert some(cached, words), words
        assert not some(made, words), words
    for words in ("COPY llmux", "pip wheel", "COPY --from=package"):
        assert some(made, words), words
    last = "import llmux; print(open(llmux.__file__).readlines()[-1], end='')"
    python = ("run", "--rm", "--network", "none", "--entrypoint", "python", image)
    assert podman(*python, "-c", last) == comment


def test_it_runs_switches_and_stops(image: str, tmp_path: Path) -> None:
    with running(image, STANDIN, tmp_path) as port:
        state = inspect(NAME)["State"]
        assert state.get("Health", state.get("Healthcheck"))["Status"] == "healthy"
        assert inspect(NAME)["HostConfig"]["ReadonlyRootfs"]
        assert run_in(NAME, "id", "-u") == "10001\n"
        assert ask(port, "a").startswith("a ")
        assert ask(port, "b").startswith("b ")
        ended = "! test -e /proc/$(cat /tmp/orphan)"
        wait_until(lambda: succeeds("exec", NAME, "sh", "-c", ended), "the orphan is reaped")
        assert run_in(NAME, "sh", "-c", ZOMBIES) == ""
        assert run_in(NAME, "find", "/var/lib/llmux", "-name", "lock")
        status = ("exec", NAME, "curl", "-s", "http://127.0.0.1:3000/control/status")
        assert json.loads(podman(*status))["active_model"] == "b"
        outside = f"http://127.0.0.1:{port}/control/status"
        assert httpx.get(outside, trust_env=False).status_code == 403
        began = time.monotonic()
        podman("stop", NAME)
        assert time.monotonic() - began < 9  # 10 s is when engines kill
        assert inspect(NAME)["State"]["ExitCode"] == 0


def test_without_tini_an_orphan_would_stay(image: str, tmp_path: Path) -> None:
    alone = json.dumps(["llmux", *read_containerfile().words("CMD")])
    with running(image, STANDIN, tmp_path, "--entrypoint", alone) as port:
        ask(port, "a")
        stays = "grep '^State:.Z' /proc/$(cat /tmp/orphan)/status"
        wait_until(lambda: succeeds("exec", NAME, "sh", "-c", stays), "the orphan is a zombie")


def test_a_second_container_on_the_same_state_is_refused(image: str, tmp_path: Path) -> None:
    with running(image, STANDIN, tmp_path):
        done = subprocess.run(
            ["podman", "run", "--rm", "--network", "none", "-v", f"{tmp_path}/conf:/etc/llmux:ro",
             "-v", f"{NAME}:/var/lib/llmux", image],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        assert "another llmux already serves this config" in done.stderr
        assert healthy(NAME)


def test_a_config_that_an_editor_replaced_is_reloaded(image: str, tmp_path: Path) -> None:
    with running(image, STANDIN, tmp_path) as port:
        conf = tmp_path / "conf"
        (conf / "new").write_text(f"{STANDIN}  c: {{<<: *model, port: 8003}}\n")
        (conf / "new").replace(conf / "llmux.yaml")
        podman("kill", "-s", "HUP", NAME)
        url = f"http://127.0.0.1:{port}/v1/models/c"
        wait_until(
            lambda: httpx.get(url, trust_env=False).status_code == 200, "the new config is read"
        )
        check = ("run", "--rm", "--network", "none", "-v", f"{conf}:/etc/llmux:ro", image, "check")
        assert "127.0.0.1:8003" in podman(*check)


# ---- Siblings ----


@contextmanager
def engine_socket(folder: Path) -> Iterator[Path]:
    """Podman's API on a socket that llmux's user may use."""
    path = folder / "engine.sock"
    service = subprocess.Popen(
        ["podman", "system", "service", "--time", "0", f"unix://{path}"], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(path.exists, "the engine's socket is there")
        os.chown(path, 0, 10001)
        path.chmod(0o660)
        yield path
    finally:
        service.terminate()
        service.wait(20)


@contextmanager
def network() -> Iterator[str]:
    podman("network", "create", NAME)
    try:
        if not succeeds("network", "exists", NAME):
            pytest.skip("podman cannot make a network here")
        yield NAME
    finally:
        podman("network", "rm", "--force", NAME, check=False)


def need_names(image: str, net: str) -> None:
    """Skip unless containers of a network find each other by name."""
    with removed_at_the_end(f"{NAME}-named"):
        serve = ["serve", "--model", "x", "--host", "0.0.0.0", "--port", "8000"]
        entry = '["python", "-m", "llmux.standin"]'
        podman("run", "-d", "--name", f"{NAME}-named", "--network", net, "--entrypoint", entry, image, *serve)  # fmt: skip
        look = ("run", "--rm", "--network", net, "--entrypoint", "getent", image, "hosts")
        if not succeeds(*look, f"{NAME}-named"):
            pytest.skip(
                "names of containers do not resolve: podman's dnsname or aardvark-dns is missing"
            )


def test_the_hooks_over_the_engines_socket(image: str, tmp_path: Path) -> None:
    (config,) = blocks(DOCUMENT, "yaml")
    models = ("llama", "mistral")
    names = {model: f"{NAME}-{model}" for model in models}
    for model, name in names.items():
        config = config.replace(f"{model}: {{host: {model},", f"{name}: {{host: {name},")
    assert all(name in config for name in names.values())
    with network() as net, engine_socket(tmp_path) as socket, removed_at_the_end(*names.values()):
        need_names(image, net)
        for model, name in names.items():
            serve = ["serve", "--model", model, "--host", "0.0.0.0", "--port", "8000"]
            entry = '["tini", "--", "python", "-m", "llmux.standin"]'
            podman("create", "--name", name, "--network", net, "--entrypoint", entry, image, *serve)
        options = ("--network", net, "-v", f"{socket}:/run/engine.sock")
        with running(image, config, tmp_path, *options) as port:
            for model in (*models, models[0]):
                assert ask(port, names[model]).startswith(f"{model} ")
                runs = {name: inspect(name)["State"]["Running"] for name in names.values()}
                assert runs == {name: name == names[model] for name in names.values()}


def test_compose(image: str, tmp_path: Path) -> None:
    if shutil.which("podman-compose") is None:
        pytest.skip("podman-compose is not installed")
    with network() as net:
        need_names(image, net)
    copy = tmp_path / "compose"
    shutil.copytree(COMPOSE, copy)
    for path in (tmp_path, copy, copy / "config"):
        path.chmod(0o755)
    port = free_port()
    file = copy / "compose.yaml"
    text = file.read_text()
    edits = ("127.0.0.1:3000:3000", f"127.0.0.1:{port}:3000"), ("localhost/llmux:latest", image)
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    services = yaml.safe_load(text)["services"]

    def compose(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["podman-compose", "-p", NAME, "-f", str(file), *words],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    containers = {service: f"{NAME}_{service}_1" for service in services}
    try:
        up = compose("up", "--detach", "--no-build")
        for container in containers.values():
            wait_until(partial(healthy, container), f"it is healthy: {up.stdout}{up.stderr}")
        for model in ("llama", "mistral", "llama"):
            assert ask(port, model).startswith(f"{model} ")
        found = inspect(containers["llmux"])
        assert found["HostConfig"]["ReadonlyRootfs"]
        # The stand-ins count what must not happen: requests while asleep, sleeps during requests.
        for model in ("llama", "mistral"):
            stats = run_in(containers["llmux"], "curl", "-s", f"http://{model}:8000/stats")
            assert json.loads(stats)["mistakes"] == 0
            assert json.loads(stats)["sleeping"] == (model == "mistral")
        for container in containers.values():
            podman("stop", "--time", "9", container)
            assert inspect(container)["State"]["ExitCode"] == 0
    finally:
        podman("rm", "--force", "--volumes", *containers.values(), check=False)
        compose("down", "--volumes")
        podman("network", "rm", "--force", f"{NAME}_default", check=False)
