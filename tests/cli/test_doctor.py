"""`llmux doctor`: each rule over facts of its own; the probes on this machine; a real llmux."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from click.testing import CliRunner, Result

from llmux import __version__
from llmux.api.masked import masked_config
from llmux.cli.doctor import nvidia, probes
from llmux.cli.doctor.facts import (
    ConfigFacts,
    Descriptors,
    Facts,
    Folder,
    GpuUse,
    Listener,
    Process,
    Running,
    SecretFile,
)
from llmux.cli.doctor.findings import Finding, lines, ordered
from llmux.cli.doctor.here import findings_here
from llmux.cli.doctor.probes import Probes
from llmux.cli.doctor.processes import listeners, listeners_of, lock_holder
from llmux.cli.doctor.reached import differences
from llmux.cli.doctor.running import findings_running
from llmux.cli.main import main
from llmux.cli.terminal.client import Client
from llmux.cli.terminal.target import Target
from llmux.config import parse_config
from llmux.hooks.sockets import listening
from llmux.observe.gpus import QueryFailed
from llmux.observe.schemas import (
    AliveTrouble,
    Gpu,
    GroupStatus,
    Pin,
    RequestInfo,
    RequestList,
    Status,
    SwitchRecord,
)
from llmux.server.statelock import state_lock
from tests.cli.test_terminal import NOW, model, request
from tests.prefork import run_llmux
from tests.servers import Rack, chat, running_backends, running_llmux

CHAT = "/v1/chat/completions"
GIB = 1 << 30
PATH = Path("/etc/llmux/llmux.yaml")
SCRIPTS = {"wake": "true", "sleep": "true", "alive": "true"}
CONFIG = parse_config(
    {
        "models": {"llama": {"port": 8001, **SCRIPTS}, "mistral": {"port": 8002, **SCRIPTS}},
        "state_dir": "/var/lib/llmux",
    },
    path=PATH,
)
SETTINGS = json.loads(msgspec.json.encode(masked_config(CONFIG)))
FOLDER = Folder(
    Path("/var/lib/llmux"), exists=True, is_writable=True, owner="llmux", is_own=True, unsafe=None,
    free_bytes=80 * GIB, free_files=10**6,
)  # fmt: skip
GPU = Gpu(
    index=0, name="H200", memory_used_bytes=20 * GIB, memory_total_bytes=140 * GIB,
    utilization=0.0,
)  # fmt: skip
FACTS = Facts(
    url="http://127.0.0.1:3000", version=__version__, config=ConfigFacts(PATH, CONFIG),
    folder=FOLDER, listeners=(), descriptors=Descriptors(65536, 50),
)  # fmt: skip
HOLDER = Process(77, "llmux")


def status(
    models: dict[str, Any] | None = None, switch: SwitchRecord | None = None, **group: Any
) -> Status:
    named = {
        "llama": model("awake"),
        "mistral": model(backend="http://127.0.0.1:8002"),
        **(models or {}),
    }
    facts = {
        "state": "active", "since": NOW - 60, "active_model": "llama", "models": list(named),
        "pinned": None, "standby": None, **group,
    }  # fmt: skip
    return Status(
        at=NOW, version=__version__, boot="b", started=NOW - 9000, state="active",
        active_model="llama", mode="auto", policy="adaptive", queue_depth={},
        groups={"default": GroupStatus(switch=switch, **facts)}, models=named, estimated_costs={},
    )  # fmt: skip


def listed(*found: RequestInfo) -> RequestList:
    return RequestList(at=NOW, total=len(found), requests=list(found))


def running(found: Status, *requests: RequestInfo, **settings: Any) -> Facts:
    answered = Running(found, listed(*requests), SETTINGS | settings)
    listening = (Listener("127.0.0.1", 8001, Process(9, "server", "llama")),)
    return replace(FACTS, running=answered, listeners=listening)


def bad(facts: Facts) -> list[Finding]:
    """All but what is fine."""
    found = [*findings_running(facts), *findings_here(facts)]
    return [each for each in ordered(found) if each.severity != "ok"]


def the_one(facts: Facts) -> Finding:
    (found,) = bad(facts)
    return found


def test_nothing_is_wrong() -> None:
    facts = running(status())
    assert bad(facts) == []
    fine = [each.what for each in findings_running(facts)]
    assert fine == [
        f"llmux {__version__} answers at http://127.0.0.1:3000, up 2.5 h",
        "0 requests",
    ]


# ---- The running llmux ----


def test_a_model_that_keeps_failing() -> None:
    failing = model("failed", failing=True, failed_wakes=3, last_error="Hook failed: no memory")
    found = the_one(running(status({"a b": failing})))
    assert (found.severity, found.about) == ("problem", "model")
    assert found.what == "the wake of a b has failed 3 times in a row"
    assert found.why.startswith("Hook failed: no memory; it is not tried while")
    assert found.do == "llmux logs 'a b'; llmux switch 'a b'"


@pytest.mark.parametrize("queued", [0, 2])
def test_a_failed_wake(queued: int) -> None:
    failed = model("failed", queued=queued, last_error="exit 1", retry_in_secs=4.0)
    found = the_one(running(status({"mistral": failed})))
    assert found.severity == "problem"
    assert found.what == "the last wake or sleep of mistral has failed (next try in 4.0 s)"


def test_a_failure_that_is_over() -> None:
    facts = running(status({"mistral": model(last_error="exit 1")}))
    assert the_one(facts).severity == "warning"


def test_a_failed_hook_of_another_model_is_its() -> None:
    error = "Hook failed for llama: sleep hook exited with 7"
    failed = model("failed", last_error=error, failed_wakes=1, retry_in_secs=4.0)
    found = the_one(running(status({"mistral": failed})))
    assert found.what == (
        "mistral was not woken, since a hook of llama has failed (next try in 4.0 s)"
    )
    assert found.do == "llmux logs llama"


@pytest.mark.parametrize("is_failing", [False, True])
def test_what_the_config_says_of_a_failing_model_is_told_as_its_cause(is_failing: bool) -> None:
    failed = model("failed", last_error="exit 127", failing=is_failing, failed_wakes=3)
    missing = (
        "x.yaml:3:1: models.mistral.with.command: there is no gone on the PATH",
        "x.yaml:9:1: models.mistral2.with.command: there is no other on the PATH",
    )
    facts = replace(
        running(status({"mistral": failed})), config=ConfigFacts(PATH, CONFIG, missing=missing)
    )
    (found,) = about(facts, "model")
    assert found.severity == "problem"
    assert found.why.endswith(
        "\nlikely cause: models.mistral.with.command: there is no gone on the PATH"
    )


@pytest.mark.parametrize(("failures", "severity"), [(2, "warning"), (3, "problem")])
def test_failing_alive_checks(failures: int, severity: str) -> None:
    trouble = AliveTrouble(failures=failures, limit=3, error="timed out")
    found = the_one(running(status({"llama": model("awake", alive_trouble=trouble)})))
    assert (found.severity, found.what) == (
        severity,
        f"alive of llama has failed {failures} of 3 times",
    )


def switch(age_s: float, expected_s: float | None = 20.0) -> SwitchRecord:
    return SwitchRecord(
        id=1, group="default", source="llama", target="mistral", started=NOW - age_s,
        expected_secs=expected_s,
    )  # fmt: skip


def test_a_drain_that_takes_long_names_the_oldest_request() -> None:
    models = {"llama": model("draining", in_flight=2), "mistral": model(queued=3)}
    oldest = request("r-1", "answering", model="llama", arrived=NOW - 400, waited_secs=0.0)
    younger = request("r-2", "answering", model="llama", arrived=NOW - 9, waited_secs=0.0)
    found = the_one(running(status(models, switch(90)), oldest, younger))
    assert (found.severity, found.about) == ("problem", "switch")
    assert found.what == (
        "the switch from llama to mistral takes 90 s of ~20 s, now: drains llama; 3 requests wait"
    )
    assert found.why == "it waits for 2 requests in flight of llama; the oldest, r-1, is 7 min old"
    assert found.do == "llmux cancel r-1"


@pytest.mark.parametrize(
    ("age_s", "expected_s", "severity"),
    [(12, 20, "note"), (45, 20, "note"), (51, 20, "problem"), (99, 50, "note"), (101, 50, "problem"),
     (12, None, "note"), (61, None, "warning")],
)  # fmt: skip
def test_a_wake_that_takes_long(age_s: float, expected_s: float | None, severity: str) -> None:
    models = {"llama": model(), "mistral": model("waking")}
    facts = running(status(models, switch(age_s, expected_s)))
    found = the_one(replace(facts, listeners=()))
    assert found.severity == severity
    assert "wake hook of mistral" in found.what
    assert "fails after 10 min (hook_timeouts.wake)" in found.why


@pytest.mark.parametrize(
    ("age_s", "port", "severity"), [(29, None, "note"), (31, None, "warning"), (31, 8001, "note")]
)
def test_a_wake_whose_server_listens_nowhere(age_s: float, port: int | None, severity: str) -> None:
    models = {"llama": model(), "mistral": model("waking", since=NOW - age_s)}
    facts = running(status(models, switch(age_s, None)))
    there = () if port is None else listen(port, Process(9, "server", "mistral"))
    (found,) = about(replace(facts, listeners=there), "switch")
    assert found.severity == severity
    said = "31 s after its start nobody listens at http://127.0.0.1:8001: the command should"
    assert (said in found.why) == (severity == "warning")
    assert about(replace(facts, listeners=None), "switch")[0].severity == "note"


def test_a_wake_whose_server_listens_but_is_not_healthy() -> None:
    models = {"llama": model(), "mistral": model("waking", since=NOW - 61)}
    (found,) = about(running(status(models, switch(61, None))), "switch")
    assert found.severity == "warning"
    assert "a server listens at http://127.0.0.1:8001: if it has loaded, its health" in found.why


def test_the_mode_is_manual() -> None:
    manual = msgspec.structs.replace(status({"mistral": model(queued=2)}), mode="manual")
    found = the_one(running(manual))
    assert (found.severity, found.do) == ("problem", "llmux mode auto")
    assert the_one(running(msgspec.structs.replace(status(), mode="manual"))).severity == "warning"


def test_a_cordon() -> None:
    found = the_one(running(msgspec.structs.replace(status(), cordoned=True)))
    assert (found.severity, found.do) == ("warning", "llmux uncordon")


def test_a_pin() -> None:
    pin = Pin(model="llama", wait=True)
    found = the_one(running(status(pinned=pin)))
    assert (found.severity, found.do) == ("warning", "llmux unpin --group default")
    found = the_one(
        running(status({"mistral": model(queued=2, oldest_wait_secs=500.0)}, pinned=pin))
    )
    assert (found.severity, found.why) == (
        "problem",
        "requests for the group's other models: 2 wait",
    )


@pytest.mark.parametrize(
    ("wait_s", "severity"), [(5.0, "note"), (61.0, "warning"), (301.0, "problem")]
)
def test_a_line_that_the_policy_lets_wait(wait_s: float, severity: str) -> None:
    waiting = model(queued=4, oldest_wait_secs=wait_s, eta_secs=40.0)
    found = the_one(running(status({"mistral": waiting}, stays="it still has work")))
    assert found.severity == severity
    assert found.what.startswith("4 requests wait for mistral, the oldest for ")
    assert found.why == (
        "the policy stays with llama: it still has work (at most about 5 min, "
        "policy.max_wait_secs); expected wait of a new one: 40 s"
    )
    assert found.do == "llmux switch mistral"


def test_a_line_that_waits_for_nothing() -> None:
    found = the_one(running(status({"mistral": model(queued=4, oldest_wait_secs=31.0)})))
    assert found.severity == "problem"
    assert "no switch of group default runs" in found.why


def test_all_slots_are_taken() -> None:
    full = model("awake", in_flight=8, max_in_flight=8, queued=1, oldest_wait_secs=70.0)
    found = the_one(running(status({"llama": full})))
    assert (found.severity, found.why) == (
        "warning",
        "all 8 slots of llama are taken (max_in_flight)",
    )


def test_a_line_near_its_limit() -> None:
    near = model("awake", queued=8, oldest_wait_secs=1.0)
    facts = running(status({"llama": near}), limits={"queued_per_model": 10})
    (found,) = about(facts, "line")
    assert (found.severity, found.what) == ("warning", "8 of at most 10 requests wait for llama")


def test_a_server_that_does_not_answer() -> None:
    silent = request("r-1", "forwarding", model="llama", arrived=NOW - 200, waited_secs=20.0)
    found = the_one(running(status(), silent))
    assert (
        found.what == "the server of llama has not answered 1 request, the oldest (r-1) for 3 min"
    )
    assert found.do == "curl -sS http://127.0.0.1:8001/v1/models"
    waited = request("r-1", "forwarding", model="llama", arrived=NOW - 200, waited_secs=190.0)
    assert bad(running(status(), waited)) == []


def test_long_responses_and_slow_bodies() -> None:
    long = request("r-1", "answering", model="llama", arrived=NOW - 700, waited_secs=0.0)
    slow = request("r-2", "reading", model="", arrived=NOW - 70, waited_secs=0.0)
    about = [(each.severity, each.why) for each in bad(running(status(), long, slow))]
    assert about == [
        ("note", "the oldest is r-1; a switch waits for them"),
        ("note", "10.0.0.7:51322 has been sending the oldest, r-2, for 70 s"),
    ]


def test_another_version_runs() -> None:
    old = msgspec.structs.replace(status(), version="0.1.9")
    found = the_one(running(old, port=4000))
    assert found.what == f"llmux 0.1.9 runs; this command is {__version__}"


def test_the_file_has_changed() -> None:
    found = the_one(running(status(), port=4000, default_model="llama"))
    assert (found.severity, found.about, found.do) == ("warning", "config", "llmux reload")
    assert found.what.endswith(
        "has another config than /etc/llmux/llmux.yaml now: port, default_model"
    )
    assert found.why == "takes effect at a restart only: port"


def test_the_shell_may_have_other_variables() -> None:
    facts = running(status(), default_model="llama")
    found = the_one(replace(facts, config=replace(facts.config, has_variables=True)))
    assert found.why == "this shell may have other environment variables (${env:...}) than llmux"


def test_another_config_is_in_use() -> None:
    found = the_one(running(status(), path="/srv/other.yaml"))
    assert found.do == "llmux doctor -c /srv/other.yaml"


def test_differences_leave_out_what_llmux_chooses() -> None:
    scripts = SCRIPTS | {"recipe": "process", "with": {"command": "x"}}
    mine = masked_config(parse_config({"models": {"a": scripts, "b": scripts}}, path=PATH))
    theirs = json.loads(msgspec.json.encode(mine))
    theirs["models"]["a"]["port"] = 29000
    theirs["state_dir"] = "/elsewhere"
    assert differences(mine, theirs) == []
    theirs["models"]["b"]["wake"] = "other"
    del theirs["models"]["a"]
    assert differences(mine, theirs) == ["models.a", "models.b"]


def test_the_switcher_has_stopped() -> None:
    facts = running(status())
    assert facts.running is not None
    found = the_one(replace(facts, running=replace(facts.running, can_switch=False)))
    assert (found.severity, found.about) == ("problem", "llmux")
    assert "cannot switch any more" in found.what


# ---- It does not answer ----


@pytest.mark.parametrize(
    ("facts", "severity", "remedy"),
    [
        ({"trouble": "refused"}, "warning", "llmux -c /etc/llmux/llmux.yaml"),
        (
            {"trouble": "refused", "holder": HOLDER},
            "problem",
            "ps -o pid,stat,etime,%cpu,args -p 77; ss -ltnp | grep pid=77,",
        ),
        (
            {"trouble": "silent", "holder": HOLDER},
            "problem",
            "ps -o pid,stat,etime,%cpu,args -p 77",
        ),
        (
            {"trouble": "silent", "holder": Process(77, "llmux", state="stopped")},
            "problem",
            "kill -CONT 77",
        ),
        ({"trouble": "foreign"}, "problem", "llmux doctor --url URL    # where llmux is"),
        ({"trouble": "key"}, "warning", "llmux doctor --key-file FILE"),
        ({"url": None}, "note", "llmux doctor --url URL"),
    ],
    ids=["refused", "starting", "hangs", "stopped", "foreign", "key", "unknown"],
)
def test_no_llmux_answers(facts: dict[str, Any], severity: str, remedy: str) -> None:
    found = the_one(replace(FACTS, **facts))
    assert (found.severity, found.do) == (severity, remedy)


def test_the_remedy_names_the_file_of_keys() -> None:
    secret = SecretFile(Path("/etc/llmux/control"), "control_keys", 0o600)
    found = the_one(replace(FACTS, trouble="key", secrets=(secret,), options="-c x.yaml"))
    assert found.do == "llmux doctor --key-file /etc/llmux/control -c x.yaml"
    reading = SecretFile(Path("/etc/llmux/read"), "read_keys", 0o600)
    for secrets, file in (((reading,), "read"), ((reading, secret), "control")):
        found = the_one(replace(FACTS, trouble="key", secrets=secrets, options="-c x.yaml"))
        assert found.do == f"llmux doctor --key-file /etc/llmux/{file} -c x.yaml"


# ---- This machine ----


def about(facts: Facts, area: str) -> list[Finding]:
    return [each for each in bad(facts) if each.about == area]


def test_no_config() -> None:
    (found,) = about(replace(FACTS, config=ConfigFacts(mistakes=("no config",))), "config")
    assert (found.severity, found.do) == ("problem", "llmux init")
    facts = replace(running(status()), config=ConfigFacts(mistakes=("no config",)))
    assert [each.severity for each in about(facts, "config")] == ["note"]


def test_mistakes_and_remarks_of_the_config() -> None:
    config = ConfigFacts(
        PATH, mistakes=("x.yaml:3:1: port: expected int",), unusable=("./wake is not executable",),
        missing=("there is no llama-server",), addresses=("0.0.0.0 is open",),
    )  # fmt: skip
    found = bad(replace(FACTS, config=config, trouble="refused"))
    assert [(each.severity, each.about) for each in found] == [
        ("problem", "config"), ("problem", "hooks"),
        ("warning", "llmux"), ("warning", "hooks"), ("warning", "config"),
    ]  # fmt: skip
    assert found[0].what == "x.yaml:3:1: port: expected int"


@pytest.mark.parametrize(
    "mistake", ["the environment variable HF_TOKEN is not set", "cannot be read: Permission denied"]
)
def test_what_only_the_service_may_know(mistake: str) -> None:
    mistakes = (f"x.yaml:3:1: {mistake}",)
    facts = replace(FACTS, config=ConfigFacts(PATH, mistakes=mistakes))
    assert about(facts, "config")[0].severity == "problem"
    assert about(replace(facts, holder=HOLDER), "config")[0].severity == "warning"


@pytest.mark.parametrize(("mode", "count"), [(0o600, 0), (0o640, 0), (0o644, 1)])
def test_keys_that_everybody_can_read(mode: int, count: int) -> None:
    secret = SecretFile(Path("/etc/llmux/my keys"), "api_keys", mode)
    found = about(replace(FACTS, secrets=(secret, secret)), "keys")
    assert len(found) == count
    assert [each.do for each in found] == ["chmod o-rwx '/etc/llmux/my keys'"] * count


@pytest.mark.parametrize(
    ("change", "severity", "area"),
    [
        ({"is_writable": False}, "problem", "state"),
        ({"is_writable": False, "is_own": False}, "warning", "state"),
        ({"unsafe": "everybody may write to it"}, "warning", "state"),
        ({"free_bytes": GIB - 1}, "warning", "disk"),
        ({"free_bytes": 1 << 20}, "problem", "disk"),
        ({"free_files": 3}, "problem", "disk"),
    ],
    ids=["not-writable", "of-another-user", "unsafe", "low", "full", "no-inodes"],
)
def test_the_state_folder(change: dict[str, Any], severity: str, area: str) -> None:
    facts = replace(running(status()), folder=replace(FOLDER, **change))
    found = the_one(facts)
    assert (found.severity, found.about) == (severity, area)
    assert found.do


def listen(port: int, process: Process | None, host: str = "127.0.0.1") -> tuple[Listener, ...]:
    return (Listener(host, port, process),)


def test_another_program_has_the_port_of_llmux() -> None:
    facts = replace(
        FACTS, trouble="foreign", listeners=listen(3000, Process(5, "nginx"), "0.0.0.0")
    )
    (found,) = about(facts, "ports")
    assert found.what == "llmux's port 3000 is taken by nginx (pid 5)"
    assert found.do == "llmux serve -p 3001    # or end it: ps -fp 5"
    assert about(replace(facts, holder=Process(5, "nginx")), "ports") == []
    unknown = about(replace(facts, listeners=listen(3000, None)), "ports")[0]
    assert unknown.do.endswith("sudo ss -ltnp 'sport = :3000'")


def test_an_awake_model_whose_port_is_silent() -> None:
    found = the_one(replace(running(status()), listeners=()))
    assert found.what == "llama is awake, but nobody listens on its port 8001"
    assert the_one(replace(running(status()), listeners=())).do == "llmux logs llama"
    assert bad(replace(running(status()), listeners=None)) == []


@pytest.mark.parametrize(
    ("process", "severity"),
    [
        (Process(9, "server", "mistral"), None),
        (Process(9, "server", "mistral", "/var/lib/llmux"), None),
        (Process(9, "server", "llama"), "problem"),
        (Process(9, "server", "mistral", "/var/lib/other"), "problem"),
        (Process(9, "python3"), "warning"),
        (Process(9, "docker-proxy", is_readable=False), None),
        (None, None),
    ],
    ids=["own", "own-state", "others", "other-llmux", "foreign", "unreadable", "unknown"],
)
def test_who_listens_on_the_port_of_a_sleeping_model(
    process: Process | None, severity: str | None
) -> None:
    facts = running(status())
    assert facts.listeners is not None
    facts = replace(facts, listeners=facts.listeners + listen(8002, process))
    assert [each.severity for each in bad(facts)] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("recipe", "state", "severity"),
    [
        ("process", "asleep", "problem"), ("process", "awake", "warning"),
        ("docker", "asleep", None), ("docker", "awake", None),
        (None, "asleep", "warning"), (None, "awake", "note"),
    ],
)  # fmt: skip
def test_a_server_that_no_hook_has_started(
    recipe: str | None, state: str, severity: str | None
) -> None:
    assert CONFIG.models["mistral"].recipe is None
    models = {
        **CONFIG.models,
        "mistral": msgspec.structs.replace(CONFIG.models["mistral"], recipe=recipe),
    }
    facts = running(status({"mistral": model(state, backend="http://127.0.0.1:8002")}))
    assert facts.listeners is not None
    facts = replace(
        facts,
        listeners=facts.listeners + listen(8002, Process(9, "python3")),
        config=ConfigFacts(PATH, msgspec.structs.replace(CONFIG, models=models)),
    )
    assert [each.severity for each in about(facts, "ports")] == ([severity] if severity else [])


def gpu(*users: tuple[Process, int], **fields: Any) -> Facts:
    use = GpuUse(msgspec.structs.replace(GPU, **fields), users)
    return replace(running(status()), gpus=(use,))


def test_gpu_memory_that_nobody_should_hold() -> None:
    awake, asleep = Process(9, "server", "llama"), Process(8, "server", "mistral")
    assert bad(gpu((awake, 100 * GIB), (asleep, 2 * GIB))) == []
    found = the_one(gpu((awake, 100 * GIB), (asleep, 20 * GIB)))
    assert (found.severity, found.do) == ("problem", "llmux sleep mistral")
    assert found.what == "mistral is asleep, but its server server (pid 8) holds 20 GiB of GPU 0"
    found = the_one(gpu((Process(7, "python3"), 20 * GIB)))
    assert (found.severity, found.do) == ("warning", "ps -fp 7")


def test_a_gpu_that_is_full_while_all_sleep() -> None:
    facts = gpu(memory_used_bytes=135 * GIB)
    assert bad(facts) == []
    asleep = running(status({"llama": model()}))
    found = the_one(replace(asleep, gpus=facts.gpus))
    assert found.what == "all models are asleep, but 135 GiB of GPU 0 are in use"


def test_nvidia_smi_hangs() -> None:
    found = the_one(replace(running(status()), gpu_error="nvidia-smi took more than 8 s"))
    assert (found.severity, found.about) == ("warning", "gpu")


@pytest.mark.parametrize(
    ("descriptors", "severity"),
    [(Descriptors(512), "warning"), (Descriptors(1024, 900), "problem"), (Descriptors(1024), None)],
)
def test_descriptors(descriptors: Descriptors, severity: str | None) -> None:
    found = about(replace(running(status()), descriptors=descriptors), "descriptors")
    assert [each.severity for each in found] == ([severity] if severity else [])


def test_another_machine_is_not_this_one() -> None:
    facts = replace(running(status(), path="/x"), is_here=False, listeners=(), folder=None)
    found = the_one(facts)
    assert (found.severity, found.do) == ("note", "on that machine: llmux doctor")
    facts = replace(facts, running=None, trouble="refused", config=ConfigFacts())
    first, second = bad(facts)
    assert (first.severity, first.do) == ("problem", "curl -sS http://127.0.0.1:3000/health")
    assert second.severity == "note"


# ---- The probes ----


def test_a_probe_neither_hangs_nor_raises() -> None:
    checks, stop = Probes(longest_s=0.05), threading.Event()

    def broken() -> int:
        raise ZeroDivisionError("x")

    try:
        assert checks.run("disk", stop.wait, otherwise=True)
    finally:
        stop.set()
    assert checks.run("gpu", broken, 3) == 3
    assert checks.run("ports", lambda: 5, 3) == 5
    assert checks.unchecked == [
        ("disk", "no result within 0.05 s"),
        ("gpu", "ZeroDivisionError: x"),
    ]


def test_listeners_are_found_with_their_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = listeners({port})
        if found is None:
            pytest.skip("no /proc")
        (listener,) = found
        assert (listener.host, listener.port) == ("127.0.0.1", port)
        assert listener.process is not None
        assert listener.process.pid == os.getpid()
        assert Listener("127.0.0.1", port) in listeners_of(os.getpid())
    assert listeners({port}) == ()


def test_listening_sockets_of_both_families() -> None:
    row = " 0: {} {} {} 00000000:00000000 00:00000000 00000000 1000 0 {} 1 0 100 0 0 10 0"
    table = "\n".join([
        "  sl  local_address ...",
        row.format("0100007F:0BB8", "00000000:0000", "0A", "11"),
        row.format("0100007F:0BB9", "0100007F:0BB8", "01", "12"),
        row.format("00000000000000000000000001000000:1F41", "0:0", "0A", "13"),
        "broken",
    ])  # fmt: skip
    assert list(listening(table)) == [("127.0.0.1", 3000, "11"), ("::1", 8001, "13")]


def test_the_holder_of_the_lock(tmp_path: Path) -> None:
    assert lock_holder(tmp_path) is None
    with state_lock(tmp_path, None):
        found = lock_holder(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()
    assert lock_holder(tmp_path) is None


def test_nvidia_smis_answers() -> None:
    gpus = "GPU-a, 0, H200, 20480, 143771, 3\nGPU-b, 1, H200, [N/A], 143771, 0\n"
    users = f"GPU-b, {os.getpid()}, 1024\nGPU-b, 2, [N/A]\n[Insufficient Permissions]\n"
    first, second = nvidia.uses(gpus, users)
    assert (first.gpu.memory_used_bytes, first.users) == (20 * GIB, ())
    assert [(process.pid, used) for process, used in second.users] == [
        (os.getpid(), GIB), (2, 0),
    ]  # fmt: skip
    assert nvidia.uses("", "") == []
    for odd in ("GPU-a, what, is, this", "No devices were found", "GPU-a,"):
        with pytest.raises(QueryFailed):
            nvidia.uses(odd, "")


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nvidia-smi"
    monkeypatch.setattr(nvidia, "find_nvidia_smi", lambda: str(path))
    return path


def test_a_nvidia_smi_that_answers(smi: Path) -> None:
    smi.write_text(
        """#!/bin/sh
        case $1 in
        --query-gpu=uuid,index,*) echo 'GPU-a, 0, H200, 20480, 143771, 3' ;;
        --query-compute-apps=*) echo "GPU-a, $PPID, 20000" ;;
        esac
        """
    )
    smi.chmod(0o700)
    (use,) = nvidia.gpu_uses()
    assert use.gpu.memory_used_bytes == 20 * GIB
    assert [process.pid for process, _ in use.users] == [os.getpid()]


def test_a_nvidia_smi_that_fails_or_hangs(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QueryFailed, match="No such file"):
        nvidia.gpu_uses()
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML'; exit 9\n")
    smi.chmod(0o700)
    with pytest.raises(QueryFailed, match="exited with 9: Failed to initialize NVML"):
        nvidia.gpu_uses()
    monkeypatch.setattr(nvidia, "LONGEST_S", 0.1)
    smi.write_text("#!/bin/sh\nexec sleep 60\n")
    began = time.monotonic()
    with pytest.raises(QueryFailed, match="took more than"):
        nvidia.gpu_uses()
    assert time.monotonic() - began < 10


def test_the_state_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    found = probes.look_at_folder(tmp_path / "a" / "b")
    assert not found.exists
    assert found.is_writable
    assert found.free_bytes > 0
    (tmp_path / "file").touch()
    assert not probes.look_at_folder(tmp_path / "file").is_writable


def test_files_with_keys(tmp_path: Path) -> None:
    keys, path = tmp_path / "keys", tmp_path / "llmux.yaml"
    keys.write_text("k1\n")
    keys.chmod(0o640)
    path.write_text('api_keys: [{file: keys}, {file: gone}]\ncontrol_keys: ["k2"]\n')
    path.chmod(0o604)
    assert probes.secret_files(path) == (
        SecretFile(keys, "api_keys", 0o640),
        SecretFile(path, "control_keys", 0o604),
    )


# ---- The command ----


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a config, and a port without a llmux."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMUX_URL", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("LLMUX_CONFIG", raising=False)
    monkeypatch.delenv("LLMUX_CONTROL_KEY", raising=False)
    return tmp_path


def doctor(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["doctor", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def test_doctor_without_anything(alone: Path) -> None:
    result = doctor()
    assert result.exit_code == 1
    assert result.output.startswith("problem  config: no config was found\n")
    assert "-> llmux init\n" in result.output
    assert "no llmux runs at" in result.output


def test_doctor_with_mistakes_in_the_config(alone: Path) -> None:
    (alone / "llmux.yaml").write_text("port: x\nmodels: {}\n")
    result = doctor()
    assert result.exit_code == 1
    assert "llmux.yaml:1:1: port: expected int" in result.output
    assert "-> llmux check " in result.output


def test_doctor_with_a_missing_key_and_no_policy(alone: Path) -> None:
    models = json.dumps({"a": {"port": 8001, **SCRIPTS}})
    (alone / "llmux.yaml").write_text(f"api_keys: [{{file: gone}}]\nmodels: {models}\n")
    assert "the file 'gone' cannot be read: No such file" in doctor().output
    (alone / "llmux.yaml").write_text(f"policy: {{name: 'no.such:Policy'}}\nmodels: {models}\n")
    result = doctor()
    assert result.exit_code == 1
    assert "no.such:Policy" in result.output


def test_doctor_as_json(alone: Path) -> None:
    (alone / "wake").write_text("#!/bin/sh\n")
    models = {"a": {"port": 1, **SCRIPTS, "wake": "./wake"}}
    (alone / "llmux.json").write_text(json.dumps({"state_dir": "state", "models": models}))
    result = doctor("-c", "llmux.json", "--json")
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert report["config"] == str(alone / "llmux.json")
    assert report["problems"] == 1
    first = report["findings"][0]
    assert (first["severity"], first["about"]) == ("problem", "hooks")
    assert "./wake is not executable" in first["what"]
    assert {"severity": "ok", "about": "state", "what": f"state folder {alone / 'state'}",
            "why": "", "do": ""} in report["findings"]  # fmt: skip
    (alone / "wake").chmod(0o700)
    assert doctor("-c", "llmux.json").exit_code == 0


@contextmanager
def foreign_server(answer: bytes) -> Iterator[str]:
    """A server that is no llmux: it sends the same to everybody, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    if not answer:
                        time.sleep(0.5)
                        continue
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize(
    ("first_line", "body", "expected"),
    [
        ("503 Service Unavailable", '{"status":"the switcher has stopped"}', False),
        ("200 OK", '{"status":"ok"}', True),
        (
            "404 Not Found",
            '{"error":{"message":"x","type":"llmux_error","param":null,"code":"y"}}',
            True,
        ),
    ],
    ids=["503", "200", "404"],
)
def test_the_health_of_the_switcher(first_line: str, body: str, expected: bool) -> None:
    head = f"HTTP/1.1 {first_line}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with foreign_server(f"{head}\r\n\r\n{body}".encode()) as url:
        assert probes.can_switch(Client(Target(url))) is expected


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "does not answer as llmux does"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "does not know"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "broke"),
        (b"", "takes too long to answer"),
    ],
    ids=["http", "json", "ssh", "silent"],
)
def test_doctor_and_another_server(
    alone: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, said: str
) -> None:
    monkeypatch.setattr(probes, "ANSWER_S", 0.2)
    with foreign_server(answer) as url:
        result = doctor("--url", url)
    assert result.exit_code == 1
    assert f"problem  llmux: no llmux answers at {url}" in result.output
    assert said in result.output


def test_a_wrong_url_is_a_mistake_in_the_command_line(alone: Path) -> None:
    assert doctor("--url", "ftp://x").exit_code == 2


def test_lines_for_people() -> None:
    found = [
        Finding("problem", "model", "it\x1b[31m fails", "word " * 200, "llmux logs a"),
        Finding("ok", "disk", "80 GiB of disk free"),
        Finding("ok", "gpu", "GPU 0"),
    ]
    drawn = list(lines(found, 60))
    assert drawn[0] == "problem  model: it\N{REPLACEMENT CHARACTER}[31m fails"
    assert all(len(line) <= 60 for line in drawn)
    assert drawn[-2] == "         -> llmux logs a"
    assert drawn[-1] == "ok       80 GiB of disk free; GPU 0"


def test_a_remedy_of_several_findings_is_printed_once() -> None:
    found = [
        Finding("problem", "config", "x.yaml:1:1: port", do="llmux check x.yaml"),
        Finding("problem", "config", "x.yaml:2:1: host", do="llmux check x.yaml"),
        Finding("warning", "model", "it fails", do="llmux logs a"),
    ]
    assert list(lines(found, 60)) == [
        "problem  config: x.yaml:1:1: port",
        "problem  config: x.yaml:2:1: host",
        "         -> llmux check x.yaml",
        "warning  model: it fails",
        "         -> llmux logs a",
    ]


def test_the_end_of_a_hooks_output_is_kept() -> None:
    output = "".join(f"line {number}\n" for number in range(200))
    why = f"Hook failed for a: wake hook exited with 7: {output}out of memory\n"
    text = " ".join("\n".join(lines([Finding("problem", "model", "it fails", why)], 60)).split())
    assert "Hook failed for a: wake hook exited with 7: line 0 | line 1 |" in text
    assert " ... " in text
    assert "line 100 |" not in text
    assert text.endswith("line 198 | line 199 | out of memory")


# ---- A real llmux ----


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a", "b") as rack:
        yield rack


async def run(url: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    env = {key: text for key, text in os.environ.items() if not key.startswith("LLMUX_")}
    with trio.fail_after(30):
        code, printed, said = await run_llmux(
            "doctor", "--json", *arguments, env={**env, "LLMUX_URL": url}
        )
    assert not said
    return code, json.loads(printed)


async def test_a_llmux_that_listens_elsewhere_is_found(rack: Rack) -> None:
    config = rack.write_config()  # with port 0
    async with running_llmux(config) as llmux:
        env = {key: text for key, text in os.environ.items() if not key.startswith("LLMUX_")}
        with trio.fail_after(30):
            _, printed, _ = await run_llmux("doctor", "--json", "-c", str(config), env=env)
        report = json.loads(printed)
        assert report["url"] == llmux.url
        assert (
            f"llmux listens at {llmux.url}, and not where the config says (-H, -p, or port 0)"
            in (of(report, "note"))
        )


def of(report: dict[str, Any], *severities: str) -> Iterable[str]:
    return [each["what"] for each in report["findings"] if each["severity"] in severities]


async def test_commands_name_the_address_of_a_llmux_that_listens_elsewhere(rack: Rack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    config = rack.write_config(port=free)
    env = {key: text for key, text in os.environ.items() if not key.startswith("LLMUX_")}
    async with running_llmux(config, "llmux", "-p", "0") as llmux:
        code, _, said = await run_llmux("status", "-c", str(config), env=env)
        assert code == 5
        assert "cannot reach llmux at http://127.0.0.1:" in said
        assert f"the llmux that serves {config} listens elsewhere: --url {llmux.url}" in said
        code, _, said = await run_llmux("status", "--url", f"http://127.0.0.1:{free}", env=env)
        assert code == 5
        assert "elsewhere" not in said
    code, _, said = await run_llmux("status", "-c", str(config), env=env)
    assert code == 5
    assert "elsewhere" not in said


async def test_a_running_llmux(rack: Rack, tmp_path: Path) -> None:
    config = rack.write_config(models={"b": {"wake": "echo no memory; exit 1"}})
    async with running_llmux(config) as llmux, llmux.client() as client:
        await client.post("/control/switch", json={"model": "a"})
        code, report = await run(llmux.url, "-c", str(config))
        # The stand-ins of this test are no children of hooks.
        assert [
            what for what in of(report, "problem", "warning") if "no hook has started" not in what
        ] == []
        assert code == 0
        assert f"llmux {__version__} answers at {llmux.url}, up" in " ".join(of(report, "ok"))
        assert "2 models" in " ".join(of(report, "ok"))

        await client.post("/control/switch", json={"model": "b"})
        await client.post("/control/mode", json={"mode": "manual"})
        changed = json.loads(config.read_text()) | {"default_model": "a"}
        config.write_text(json.dumps(changed))
        code, report = await run(llmux.url)
        assert report["config"] == str(config), "the config of the running llmux is found"
        found = " | ".join(of(report, "problem", "warning"))
        assert "the last wake or sleep of b has failed" in found
        assert "the mode is manual" in found
        assert "has another config than" in found
        assert ": default_model" in found


async def test_a_request_that_holds_up_a_switch(rack: Rack) -> None:
    config = rack.write_config(policy={"name": "fifo"})
    inside = trio.Event()
    rack.backends["a"].inside = inside.set
    async with running_llmux(config) as llmux, llmux.client() as client:

        async def ask(body: dict[str, Any]) -> None:
            with suppress(httpx.HTTPError):
                await client.post(CHAT, json=body)

        async with trio.open_nursery() as asking:
            asking.start_soon(ask, chat("a", stream=True, chunks=1000, interval=0.05))
            with trio.fail_after(20):
                await inside.wait()
                asking.start_soon(ask, chat("b"))
                while True:
                    status = (await client.get("/control/status")).json()
                    if status["models"]["a"]["state"] == "draining":
                        break
                    await trio.sleep(0.01)
            _, report = await run(llmux.url, "-c", str(config))
            (found,) = [each for each in report["findings"] if each["about"] == "switch"]
            assert found["severity"] == "note"
            assert "now: drains a; 1 request waits" in found["what"]
            assert found["why"].startswith("it waits for 1 request in flight of a; the oldest, ")
            (held,) = (await client.get("/control/requests")).json()["requests"][:1]
            assert held["id"] in found["why"]
            await client.delete(f"/control/requests/{held['id']}")


async def test_a_llmux_that_wants_a_key(rack: Rack, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ck-1\n")
    keys.chmod(0o644)
    config = rack.write_config(control_keys=[{"file": "keys"}])
    async with running_llmux(config) as llmux:
        _, report = await run(llmux.url, "-c", str(config))
        found = " | ".join(of(report, "warning"))
        assert "wants a key" in found
        assert "every user of this machine can read" in found
        remedies = [each["do"] for each in report["findings"]]
        assert f"llmux doctor --key-file {keys} -c {config}" in remedies
        _, report = await run(llmux.url, "-c", str(config), "--key-file", str(keys))
        assert "answers at" in " ".join(of(report, "ok"))
