"""`hooks/process`, and the same as a recipe: real processes that start, die, linger and are adopted."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from llmux.config import HookName
from tests.hooks.bench import HOOKS, Bench
from tests.hooks.conftest import MakeBench

STANDIN = f"{shlex.quote(sys.executable)} -m llmux.standin serve --model m --port ${{PORT}}"


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    bench = make_bench("process")
    bench.install("llama-server", "server")
    return bench


def use(bench: Bench, command: Any = None, **more: Any) -> str:
    """Give a config of one model, with its recipe; return its name."""
    command = command or f"exec llama-server --alias qwen --port ${{PORT}} # {bench.home}"
    bench.use_recipe(qwen={"recipe": "process", "with": {"command": command, **more}})
    return "qwen"


def pid_of(bench: Bench) -> int:
    return int(pid_file(bench).read_text().split()[0])


def pid_file(bench: Bench) -> Path:
    (path,) = (bench.state_dir / "run").glob("process-*.pid")
    return path


# ---- As it should be ----


def test_a_server_wakes_and_sleeps(bench: Bench) -> None:
    use(bench)
    assert bench.codes("alive", "wake", "alive", "verify_asleep") == [1, 0, 0, 1]
    assert bench.ask() == "I am qwen"
    assert bench.codes("sleep", "alive", "verify_asleep") == [0, 1, 0]
    assert bench.running() == []
    assert list((bench.state_dir / "run").iterdir()) == []


def test_all_hooks_may_run_again_and_are_quick(bench: Bench) -> None:
    use(bench)
    for hook in ("sleep", "wake", "wake", "sleep", "sleep", "verify_asleep"):
        ran = bench.hook(hook)
        assert ran.ok, ran
        assert ran.seconds < 2
    assert bench.running() == []


def test_nothing_is_written_into_the_folder_of_the_config(bench: Bench) -> None:
    use(bench)
    before = {path.name for path in bench.folder.iterdir()}
    assert bench.codes("wake", "sleep") == [0, 0]
    assert {path.name for path in bench.folder.iterdir()} == before


async def test_llmux_switches_the_two_models_of_the_plain_form(bench: Bench) -> None:
    async with bench.switcher() as switcher:
        for model in bench.models:
            assert await bench.ask_through(switcher, model) == f"I am {model}"
            assert bench.gpu() == {model: 60}


async def test_llmux_switches_two_stand_ins(bench: Bench) -> None:
    models = {
        name: {"recipe": "process", "with": {"command": f"STANDIN_DIR={bench.home} {STANDIN}"}}
        for name in ("llama", "mistral")
    }
    bench.use_recipe(**models)
    async with bench.switcher() as switcher:
        for model in (*bench.models, bench.models[0]):
            async with switcher.serving(model):
                pass
            assert len([pid for pid in bench.running() if is_serving(pid)]) == 1


def is_serving(pid: int) -> bool:
    try:
        return b"llmux.standin" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


# ---- The command ----


def test_a_command_is_one_for_the_shell(bench: Bench) -> None:
    folder = bench.folder / "a folder; it's $odd"
    folder.mkdir()
    text = f'cd {shlex.quote(str(folder))} && echo "$PORT ${{LLMUX_MODEL}}" | cat >told && '
    use(bench, text + "llama-server --alias qwen --port $LLMUX_PORT")
    assert bench.hook("wake").ok
    assert (folder / "told").read_text() == f"{bench.port('qwen')} qwen\n"
    assert bench.codes("alive", "sleep", "verify_asleep") == [0, 0, 0]
    assert bench.running() == []


def test_a_list_of_words_is_taken_as_it_is(bench: Bench) -> None:
    odd = 'it\'s "$HOME" `x` $(exit) *'
    script = 'printf "%s|" "$@" >told; exec llama-server --alias qwen --port "$2"'
    use(bench, ["sh", "-c", script, "sh", odd, "${PORT}", 5])
    assert bench.hook("wake").ok
    assert (bench.folder / "told").read_text() == f"{odd}|{bench.port('qwen')}|5|"


def test_a_command_of_several_lines_is_the_same_at_each_look(bench: Bench) -> None:
    # as YAML's `|` gives it, with a newline at the end
    use(bench, "echo starts\nexec llama-server --alias qwen --port ${PORT}\n")
    assert bench.codes("wake", "alive") == [0, 0]
    before = pid_of(bench)
    assert bench.codes("wake", "alive") == [0, 0]
    assert pid_of(bench) == before
    use(bench, "echo starts\nexec llama-server --alias other --port ${PORT}\n")
    assert bench.hook("alive").code == 1


@pytest.mark.parametrize("health", ["/v1/models", "none"])
def test_the_health_path(bench: Bench, health: str) -> None:
    use(
        bench,
        "python3 -c 'import time; time.sleep(0.3)'; exec llama-server --alias qwen --port $PORT",
    )
    bench.use_recipe(
        qwen={
            "recipe": "process",
            "with": {"command": "exec llama-server --alias q --port $PORT", "health": health},
        }
    )
    if health == "none":
        bench.fault("never_ready")  # its health checks say 503
    assert bench.codes("wake", "alive") == [0, 0]


def test_without_curl_and_setsid_it_works_too(bench: Bench) -> None:
    use(bench)
    for tool in (
        "sh",
        "cat",
        "sed",
        "tr",
        "cut",
        "cksum",
        "date",
        "dirname",
        "sleep",
        "mkdir",
        "rm",
    ):
        (bench.bin / tool).symlink_to(shutil.which(tool) or "")
    bench.setenv("PATH", str(bench.bin))
    assert bench.codes("alive", "wake", "wake", "alive") == [1, 0, 0, 0]
    assert os.getsid(pid_of(bench)) == pid_of(bench)
    assert bench.codes("sleep", "verify_asleep") == [0, 0]


@pytest.mark.skipif(not shutil.which("ps"), reason="needs ps")
def test_without_proc_it_works_too(bench: Bench) -> None:
    """As on macOS."""
    recipe = bench.folder.parent / "recipe"
    shutil.copytree(HOOKS / "process", recipe)
    shared = recipe / "server.sh"
    text = shared.read_text()
    assert "/proc/self/stat" in text
    shared.write_text(text.replace("/proc/self/stat", "/nonesuch"))
    command = "llama-server --alias qwen --port $PORT; exit"
    bench.use_recipe(qwen={"recipe": str(recipe), "with": {"command": command}})
    assert bench.codes("alive", "wake", "wake", "alive", "verify_asleep") == [1, 0, 0, 0, 1]
    assert bench.codes("sleep", "alive", "verify_asleep") == [0, 1, 0]
    assert bench.running() == []


def test_a_server_on_a_unix_socket(bench: Bench) -> None:
    script = (
        "import os, socketserver\n"
        "class Answer(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        self.rfile.readline()\n"
        "        self.wfile.write(b'HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n')\n"
        "socketserver.UnixStreamServer(os.environ['LLMUX_SOCKET'], Answer).serve_forever()"
    )
    path = bench.folder.parent / "s.sock"
    command = [sys.executable, "-S", "-c", script]
    bench.use_recipe(
        m={"recipe": "process", "url": f"unix:{path}", "with": {"command": command}, "port": None}
    )
    bench.setenv("LLMUX_SOCKET", str(path))
    bench.setenv("LLMUX_PORT", "")
    hooks: list[tuple[HookName, int]] = [
        ("alive", 1), ("wake", 0), ("alive", 0), ("sleep", 0), ("verify_asleep", 0),
        ("wake", 0), ("alive", 0), ("sleep", 0),  # it has left its socket, as llama-server does
    ]  # fmt: skip
    for hook, code in hooks:
        assert bench.run(bench.config.models["m"].script(hook) or "", "m", hook).code == code, hook
    assert path.is_socket()


# ---- What goes wrong ----


def test_a_death_ends_the_wake_at_once_and_says_why(bench: Bench) -> None:
    use(bench, "echo loading; sleep 0.3; echo 'no such file: qwen.gguf' >&2; exit 3")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert woken.seconds < 3
    assert "no such file: qwen.gguf" in woken.output
    assert "the server ended with exit code 3" in woken.output
    assert bench.codes("sleep", "verify_asleep") == [0, 0]


def test_a_command_that_goes_to_the_background_is_told_so_and_ended(bench: Bench) -> None:
    use(bench, "llama-server --alias qwen --port ${PORT} &")
    bench.fault("never_ready")
    woken = bench.hook("wake")
    assert "the command must stay in the foreground" in woken.output
    assert bench.running() == []


def test_a_server_that_ignores_sigterm_is_killed_with_its_children(bench: Bench) -> None:
    use(
        bench,
        "(trap '' TERM; sleep 600) & exec llama-server --alias qwen --port $PORT",
        stop_secs=1,
    )
    bench.fault("ignores_term")
    assert bench.hook("wake").ok
    assert len(bench.running()) >= 2
    slept = bench.hook("sleep")
    assert slept.ok, slept
    assert "ignores SIGTERM; killing it" in slept.output
    assert bench.running() == []


def test_children_that_outlive_their_server_are_found(bench: Bench) -> None:
    use(bench, "sleep 600 & exec llama-server --alias qwen --port $PORT")
    assert bench.hook("wake").ok
    os.kill(pid_of(bench), signal.SIGKILL)
    bench.wait_until(lambda: len(bench.running()) == 1, "only the child is left")
    assert bench.codes("alive", "verify_asleep") == [1, 1]
    assert bench.codes("sleep", "verify_asleep") == [0, 0]
    assert bench.running() == []


def test_a_taken_port_is_said_and_its_server_left_alone(bench: Bench) -> None:
    use(bench)
    with socket.create_server(("127.0.0.1", bench.port("qwen"))):
        verified = bench.hook("verify_asleep")
        assert "did not start answers" in verified.output
        woken = bench.hook("wake")
        assert woken.code == 1
        assert (
            f"port {bench.port('qwen')} is taken by a server that wake.sh did not start"
            in woken.output
        )
        assert bench.hook("sleep").ok
    assert bench.running() == []


async def test_a_wake_that_llmux_ends_leaves_nothing(bench: Bench) -> None:
    bench.fault("never_ready")
    command = {"command": "llama-server --alias qwen --port $PORT; true"}
    bench.use_recipe(qwen={"recipe": "process", "with": command, "hook_timeouts": {"wake": 1}})
    error = await bench.timed_out("qwen")
    assert "took longer than 1 s (hook_timeouts.wake)" in error.reason
    assert "no answer from http://127.0.0.1" in error.output
    assert "; the server has been stopped" in error.output
    assert bench.running() == []


# ---- After a restart of llmux ----


def test_a_server_that_still_runs_is_adopted(bench: Bench) -> None:
    use(bench)
    assert bench.hook("wake").ok
    before = pid_of(bench)
    assert bench.codes("alive", "wake", "alive") == [0, 0, 0]
    assert pid_of(bench) == before


def test_a_server_with_another_command_is_not(bench: Bench) -> None:
    use(bench)
    assert bench.hook("wake").ok
    before, port = pid_of(bench), bench.port("qwen")
    command = "exec llama-server --alias other --port ${PORT}"
    bench.use_recipe(qwen={"recipe": "process", "port": port, "with": {"command": command}})
    alive = bench.hook("alive")
    assert "runs with another command than the config's" in alive.output
    woken = bench.hook("wake")
    assert woken.ok
    assert "runs with another command; starting it again" in woken.output
    assert pid_of(bench) != before
    assert bench.ask() == "I am other"


def test_a_reused_id_is_not_mistaken_for_the_server(bench: Bench) -> None:
    use(bench)
    assert bench.hook("wake").ok
    own, _, birth = pid_file(bench).read_text().partition(" ")
    os.kill(int(own), signal.SIGKILL)
    bench.wait_until(lambda: not bench.running(), "it is gone")
    pid_file(bench).write_text(f"{os.getpid()} {birth}")  # a process that must not be touched
    assert bench.codes("alive", "verify_asleep", "sleep") == [1, 0, 0]
    assert not list((bench.state_dir / "run").glob("process-*.pid"))


@pytest.mark.parametrize("text", ["", "\n", "junk", "junk junk\n", "0 1 x\n", "-1 1\n", "1"])
def test_a_broken_pid_file_does_no_harm(bench: Bench, text: str) -> None:
    use(bench)
    assert bench.codes("wake", "sleep") == [0, 0]
    address = f"127.0.0.1_{bench.port('qwen')}"
    assert bench.hook("wake").ok
    path = pid_file(bench)
    assert address in path.name
    assert bench.hook("sleep").ok
    path.write_text(text)
    assert bench.codes("alive", "sleep") == [1, 0]
