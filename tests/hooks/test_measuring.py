"""What a model holds, by its `memory` hook, and by real processes and a fake nvidia-smi."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from llmux.config import parse_config
from llmux.hooks import measuring as module
from llmux.hooks.measuring import Measurer, Unmeasured, read_amounts
from llmux.hooks.orphans import processes_with
from llmux.hooks.processes import Kin, resident_bytes, with_kin
from llmux.observe.gpus import NvidiaSmi
from llmux.observe.listeners import observed
from llmux.observe.needs_seen import FILE_NAME, SeenNeeds
from llmux.server.composition import shell_hooks
from llmux.switching.memory import memory_of
from tests.observe.test_gpus import fake

GIB = 1 << 30
MIB = 1 << 20
RESOURCES = {"gpu0": "80GiB", "gpu1": "80GiB", "ram": "64GiB"}

SERVER = """
import os, socket, sys, time
held = bytearray(int(sys.argv[2]))
held[::4096] = b"x" * len(held[::4096])  # touched, so that they are there
server = socket.socket(socket.AF_UNIX)
server.bind(os.path.abspath(sys.argv[1] + ".sock"))
server.listen()
if len(sys.argv) > 3 and not os.fork():
    os.execve(sys.executable, [sys.executable, "-c", sys.argv[3]], {})  # its environment is gone
with open(sys.argv[1] + ".pid", "w") as file:
    file.write(str(os.getpid()))
time.sleep(60)
"""

WORKER = """
import os, time
open("worker.new", "w").write(str(os.getpid()))
os.rename("worker.new", "worker.pid")
time.sleep(60)
"""


class Bench:
    """A folder with models whose wake hooks start servers, and a fake nvidia-smi."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        (folder / "server.py").write_text(SERVER)
        (folder / "worker.py").write_text(WORKER)

    def wake(
        self, name: str, size: int = 0, *, prefix: str = "setsid ", worker: bool = False
    ) -> str:
        """A hook that starts a server and returns once it listens."""
        arguments = f"server.py {name} {size}" + (' "$(cat worker.py)"' if worker else "")
        waits = [f"{name}.pid", *(["worker.pid"] if worker else [])]
        wait = "; ".join(f"until [ -s {file} ]; do sleep 0.02; done" for file in waits)
        return f"{prefix}{sys.executable} -S {arguments} </dev/null >/dev/null 2>&1 & {wait}"

    def measurer(
        self,
        *,
        resources: Mapping[str, Any] = RESOURCES,
        smi: NvidiaSmi | None = None,
        **models: Any,
    ) -> Measurer:
        data = {
            "resources": resources,
            "state_dir": str(self.state_dir),
            "models": {
                name: {
                    "url": f"unix:{self.folder}/{name}.sock",
                    "sleep": "true",
                    "alive": "true",
                    "needs": "auto",
                    **keys,
                }
                for name, keys in models.items()
            },
        }
        self.config = config = parse_config(data, directory=self.folder)
        self.shell = shell_hooks(config, observed(), lambda _: "")
        return Measurer(self.shell, smi, lambda: config)

    async def wakes(self, *models: str) -> None:
        with trio.fail_after(20):
            for model in models:
                await self.shell.of(model).run("wake")

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def smi(self, *users: str, used: str = "20480") -> NvidiaSmi:
        """An nvidia-smi that tells of processes: `NAME MIB GPU`, of those with a file NAME.pid."""
        words = [user.split() for user in users]
        lines = [
            f"echo $(cat {self.folder}/{who}.pid), {mib}, GPU-{gpu}" for who, mib, gpu in words
        ]
        gpus = f"printf '0, GPU-0, {used}\\n1, GPU-1, 5\\n'"
        apps = "; ".join(lines) or ":"
        return NvidiaSmi(
            fake(self.folder, f'case "$1" in --query-gpu=*) {gpus} ;; *) {apps} ;; esac')
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    left = processes_with({"LLMUX_STATE_DIR": str(bench.state_dir)})
    if (tmp_path / "worker.pid").exists():
        left.append(bench.pid("worker"))
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def reason(measurer: Measurer, model: str = "m") -> str:
    """Why a model cannot be measured, as the log says it."""
    with capture_logs() as logs:
        assert await measurer.measure(model) is None
        assert await measurer.measure(model) is None
    (said,) = logs  # the second time, nothing is new
    assert (said["event"], said["model"]) == ("memory_unmeasured", model)
    return str(said["error"])


# ---- By processes ----


@pytest.mark.parametrize(
    "prefix", ["setsid ", "", "exec setsid "], ids=["session", "plain", "exec"]
)
async def test_a_server_in_the_background_is_found(bench: Bench, prefix: str) -> None:
    size = 64 * MIB
    measurer = bench.measurer(
        smi=bench.smi("m 10240 0", "m 1024 1", "other 9000 0"),
        m={"wake": bench.wake("m", size, prefix=prefix)},
        other={"wake": bench.wake("other", prefix=prefix)},
    )
    await bench.wakes("m", "other")
    found = await measurer.measure("m")
    assert found is not None
    assert (found["gpu0"], found["gpu1"]) == (10 * GIB, GIB)
    assert size < found["ram"] < 2 * size
    other = await measurer.measure("other")
    assert other is not None
    assert (other["gpu0"], "gpu1" in other) == (9000 * MIB, False)
    assert other["ram"] < size


async def test_a_worker_without_its_environment_is_found_by_its_parent(bench: Bench) -> None:
    measurer = bench.measurer(
        resources={"gpu0": "80GiB"},
        smi=bench.smi("m 512 0", "worker 19456 0"),
        m={"wake": bench.wake("m", worker=True)},
    )
    await bench.wakes("m")
    assert await measurer.measure("m") == {"gpu0": 19968 * MIB}


async def test_a_server_of_an_earlier_llmux_is_found(bench: Bench) -> None:
    hooks: dict[str, Any] = {"m": {"wake": bench.wake("m")}}
    bench.measurer(resources={"gpu0": 80 * GIB}, **hooks)
    await bench.wakes("m")
    later = bench.measurer(resources={"gpu0": 80 * GIB}, smi=bench.smi("m 1024 0"), **hooks)
    assert await later.measure("m") == {"gpu0": GIB}


async def test_a_server_on_a_cpu_holds_nothing_of_a_gpu(bench: Bench) -> None:
    measurer = bench.measurer(
        resources={"gpu0": "80GiB"}, smi=bench.smi(used="300"), m={"wake": bench.wake("m")}
    )
    await bench.wakes("m")
    assert await measurer.measure("m") == {}


async def test_where_nvidia_smi_shows_no_processes_nothing_is_known(bench: Bench) -> None:
    measurer = bench.measurer(smi=bench.smi(), m={"wake": bench.wake("m")})
    await bench.wakes("m")
    assert "does not show which processes hold 20GiB of GPU 0" in await reason(measurer)


async def test_without_its_processes_nothing_is_known(bench: Bench) -> None:
    measurer = bench.measurer(smi=bench.smi(), m={"wake": "true"})
    await bench.wakes("m")
    assert await reason(measurer) == "no process that its wake hook has started runs"


async def test_without_the_one_that_listens_nothing_is_known(bench: Bench) -> None:
    """As with a client of a container's, which runs elsewhere."""
    measurer = bench.measurer(smi=bench.smi(), m={"wake": "sleep 20 >/dev/null 2>&1 &"})
    await bench.wakes("m")
    assert f"none listens at unix:{bench.folder}/m.sock" in await reason(measurer)


async def test_a_port_is_told_from_a_socket(bench: Bench) -> None:
    """The server is found by its TCP port, too."""
    script = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0)); "
        "open('port.new', 'w').write(str(s.getsockname()[1])); "
        "__import__('os').rename('port.new', 'port'); time.sleep(60)"
    )
    wake = (
        f'{sys.executable} -c "{script}" >/dev/null 2>&1 & until [ -s port ]; do sleep 0.02; done'
    )
    bench.measurer(m={"wake": wake})
    await bench.wakes("m")
    at = {"wake": wake, "url": f"http://127.0.0.1:{(bench.folder / 'port').read_text()}"}
    found = await bench.measurer(resources={"ram": "1GiB"}, m=at).measure("m")
    assert found is not None
    assert MIB < found["ram"] < 200 * MIB
    wrong = bench.measurer(resources={"ram": "1GiB"}, m={**at, "url": "http://127.0.0.1:1"})
    assert "none listens at http://127.0.0.1:1" in await reason(wrong)


@pytest.mark.parametrize(
    ("resources", "why"),
    [
        ({"vram": "80GiB"}, "llmux can only measure `gpu0`, `gpu1`, ... and `ram`"),
        ({"gpu0": "80GiB"}, "there is no nvidia-smi"),
    ],
    ids=["names", "tool"],
)
async def test_what_cannot_be_measured_at_all(
    bench: Bench, resources: dict[str, str], why: str
) -> None:
    assert why in await reason(bench.measurer(resources=resources, m={"wake": "true"}))


async def test_a_broken_nvidia_smi_is_no_measurement(bench: Bench) -> None:
    smi = NvidiaSmi(fake(bench.folder, "echo 'No devices were found'; exit 6"))
    measurer = bench.measurer(smi=smi, m={"wake": bench.wake("m")})
    await bench.wakes("m")
    assert await reason(measurer) == "nvidia-smi exited with 6: No devices were found"


async def test_it_takes_no_longer_than_it_may(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_S", 0.2)
    smi = NvidiaSmi(fake(bench.folder, "exec sleep 30"))
    measurer = bench.measurer(smi=smi, m={"wake": bench.wake("m")})
    await bench.wakes("m")
    with trio.fail_after(20):
        assert "took more than 0.2 s" in await reason(measurer)


async def test_a_model_that_has_gone_is_not_measured(bench: Bench) -> None:
    measurer = bench.measurer(m={"wake": "true"})
    bench.shell.use("m", None)
    assert await measurer.measure("m") is None


def test_memory_of_a_process_that_has_ended() -> None:
    assert resident_bytes(1 << 30) == 0
    assert resident_bytes(os.getpid()) > MIB


@pytest.mark.parametrize(
    ("known", "kin", "found"),
    [
        # parent, session
        ([5], {5: (1, 5), 6: (5, 5), 7: (6, 7), 8: (1, 8)}, {5, 6, 7}),
        ([5], {4: (1, 4), 5: (1, 4), 6: (1, 4)}, {5}),  # in the session of a shell that runs
        ([5], {5: (1, 4), 6: (1, 4)}, {5, 6}),  # its leader, the hook, has ended
        ([5], {5: (1, 0), 6: (1, 0)}, {5}),  # sessions of another namespace
        ([5, 9], {5: (1, 5)}, {5}),  # 9 has ended meanwhile
        ([], {5: (1, 5)}, set()),
    ],
    ids=["descendants", "shell", "session", "namespace", "ended", "none"],
)
def test_which_processes_belong_together(
    known: list[int], kin: dict[int, tuple[int, int]], found: set[int]
) -> None:
    assert with_kin(known, {pid: Kin(*each) for pid, each in kin.items()}) == found


# ---- By its hook ----


async def test_a_hook_tells_what_a_model_holds(bench: Bench) -> None:
    hook = (
        'echo "about $LLMUX_MODEL" >&2; echo gpu0 1024; echo "ram 1.5GiB"; [ $LLMUX_HOOK = memory ]'
    )
    measurer = bench.measurer(m={"wake": "true", "memory": hook})
    assert await measurer.measure("m") == {"gpu0": 1024, "ram": 3 * GIB // 2}
    assert not (bench.state_dir / "logs" / "m.log").read_text()


async def test_a_hook_that_fails_is_no_measurement(bench: Bench) -> None:
    measurer = bench.measurer(m={"wake": "true", "memory": "echo gpu0 1; echo broken >&2; exit 3"})
    with capture_logs() as logs:
        assert await measurer.measure("m") is None
    (said,) = (each for each in logs if each["log_level"] == "warning")
    assert (said["event"], said["hook"], said["stderr"]) == ("hook_failed", "memory", "broken")


async def test_a_hook_that_takes_too_long_is_ended(bench: Bench) -> None:
    limits = {"memory": 0.2}
    hook = "echo gpu0 1; sleep 30"
    measurer = bench.measurer(m={"wake": "true", "memory": hook, "hook_timeouts": limits})
    with trio.fail_after(20):
        assert await measurer.measure("m") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu0 5\n", {"gpu0": 5}),
        ("\n gpu0\t4.5GiB \n\nram 2 MB", {"gpu0": 9 * GIB // 2, "ram": 2_000_000}),
        ("gpu0 5\ngpu0 6", {"gpu0": 11}),
        ("gpu0 big 7", {"gpu0 big": 7}),
        ("gpu0 0", {"gpu0": 0}),
    ],
)
def test_its_lines_are_read(text: str, found: dict[str, int]) -> None:
    assert read_amounts(text, ["gpu0", "gpu0 big", "ram"]) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "printed nothing"),
        ("gpu7 5", "'gpu7 5': it does not begin with the name of a resource; there is gpu0, ram"),
        ("gpu0", "'gpu0': it does not begin"),
        ("gpu0 -5", "expected a size such as 80GiB"),
        ("gpu0 5 apples", "expected a size such as 80GiB"),
        ("gpu0 ٣", "expected a size such as 80GiB"),
        ("gpu0 99999999TiB", "more than any machine has"),
        (f"gpu0 {10**19}", "more than any machine has"),
        ("gpu0 999999999999999999\ngpu0 999999999999999999", "more than any machine has"),
        ("gpu0 5\nTotal: 6", "'Total: 6'"),
    ],
)
def test_other_lines_are_no_measurement(text: str, why: str) -> None:
    with pytest.raises(Unmeasured, match=why):
        read_amounts(text, ["gpu0", "ram"])


# ---- What comes of it ----


async def test_a_measured_model_is_no_longer_awake_alone(bench: Bench) -> None:
    wakes = {"a": bench.wake("a"), "b": bench.wake("b")}
    measurer = bench.measurer(
        resources={"gpu0": "20GiB"},
        smi=bench.smi("a 10240 0", "b 8192 0"),
        **{name: {"wake": wake} for name, wake in wakes.items()},
    )
    config = bench.config
    seen = SeenNeeds(bench.state_dir / FILE_NAME, config)

    def fit_together() -> bool:
        shared = memory_of(config, "default", seen.all())
        assert shared is not None
        needs = [shared.memory.needs[name].awake for name in ("a", "b")]
        return all(
            sum(each) <= most for *each, most in zip(*needs, shared.memory.amounts, strict=True)
        )

    await bench.wakes("a", "b")
    for model in ("a", "b"):
        assert not fit_together()
        found = await measurer.measure(model)
        assert found is not None
        assert seen.note(model, found)
    assert fit_together()
    assert seen.all() == {"a": {"gpu0": 10 * GIB}, "b": {"gpu0": 8 * GIB}}
