"""Findings about this machine: the config, keys, folders, ports, GPUs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from urllib.parse import urlsplit

from llmux.cli.doctor.facts import Facts, GpuUse, Listener, Process
from llmux.cli.doctor.findings import Finding, Severity, number
from llmux.cli.doctor.probes import is_of_this_machine
from llmux.cli.terminal.views import size
from llmux.config.own_address import is_here
from llmux.observe.schemas import ModelStatus
from llmux.server.connection_limits import DESCRIPTORS

LOW_BYTES = 1 << 30
"""Free space below which to warn: logs and the journal (128 MiB) need some."""

FULL_BYTES = 64 << 20
"""Free space below which writing is about to fail."""

FEW_DESCRIPTORS = 1024
"""Hard limit below which to warn; each client takes two."""

MOST_USED = 0.8
"""Share of a limit from which to warn."""

HELD_BYTES, HELD_SHARE = 4 << 30, 0.1
"""GPU memory that the server of a sleeping model may keep, whichever is more: the context of CUDA,
and what vLLM keeps at its sleep levels."""

FULL_GPU = 0.9
"""Share of a GPU's memory in use from which no model fits beside what is there."""

USERS_OWN = ("is not set", "Permission denied")
"""Mistakes of a config that are none for a user with other variables or rights, as of a service."""

STARTED_BY_HOOKS = frozenset({"llama-cpp", "process", "sglang", "vllm-sleep"})
"""Recipes whose hooks start the server themselves, with their environment."""

STARTED_ELSEWHERE = frozenset({
    "cuda-checkpoint", "docker", "ollama", "podman", "podman-criu", "systemd",
})  # fmt: skip
"""Recipes whose servers are no children of hooks, and do not have their environment."""


def findings_here(facts: Facts) -> Iterator[Finding]:
    """Yield what is found on this machine."""
    yield from config_findings(facts)
    yield from secret_findings(facts)
    if not facts.is_here:
        yield Finding(
            "note",
            "machine",
            f"{facts.url} is on another machine",
            "its config, ports, disk and GPUs were not looked at",
            "on that machine: llmux doctor",
        )
        return
    yield from folder_findings(facts)
    yield from own_port_findings(facts)
    yield from backend_findings(facts)
    yield from gpu_findings(facts)
    yield from descriptor_findings(facts)


# ---- Config and keys ----


def config_findings(facts: Facts) -> Iterator[Finding]:
    """Yield the mistakes of the config, and what looks wrong in it."""
    found = facts.config
    again = shlex.join(["llmux", "check", str(found.path)])
    if found.path is None:
        if not facts.is_here:
            return
        is_needed = facts.running is None
        why = " ".join(found.mistakes).partition("\nTo begin:")[0]
        yield Finding(
            "problem" if is_needed else "note", "config", "no config was found", why, "llmux init"
        )
        return
    for mistake in found.mistakes:
        is_users = facts.is_served and any(each in mistake for each in USERS_OWN)
        yield Finding(
            "warning" if is_users else "problem",
            "config",
            mistake,
            "that is so for you; the running llmux may be another user's" if is_users else "",
            f"{again}    # once it is corrected",
        )
    for remark in found.unusable:
        yield Finding("problem", "hooks", remark, "the hook will fail", f"{again} --strict")
    for remark in found.missing:
        why = "the hook will fail, unless llmux is started with another PATH"
        yield Finding("warning", "hooks", remark, why, f"{again} --strict")
    for remark in found.addresses:
        yield Finding("warning", "config", remark, "", f"{again} --strict")
    if found.config is not None:
        models = number(len(found.config.models), "model")
        yield Finding("ok", "config", f"config {found.path} ({models})")


def secret_findings(facts: Facts) -> Iterator[Finding]:
    """Yield the files of keys that all users can read."""
    for each in dict.fromkeys(facts.secrets):
        if each.mode & 0o004:
            yield Finding(
                "warning",
                "keys",
                f"every user of this machine can read {each.path} (mode {each.mode:04o})",
                f"it holds {each.key}",
                shlex.join(["chmod", "o-rwx", str(each.path)]),
            )
    config = facts.config.config
    if config is not None and (config.api_keys or config.answers_other_machines):
        yield Finding("ok", "keys", f"keys: {config.key_counts}")


# ---- State folder and disk ----


def folder_findings(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the state folder and its disk."""
    folder = facts.folder
    if folder is None:
        return
    path = shlex.quote(str(folder.path))
    if not folder.is_writable and folder.is_own:
        remedy = f"mkdir -p {path} && chmod u+rwx {path}"
        what = f"llmux cannot write to its state folder {folder.path}"
        yield Finding("problem", "state", what, "it does not start without one", remedy)
    elif not folder.is_writable:
        yield Finding(
            "warning",
            "state",
            f"you cannot write to the state folder {folder.path}, which is {folder.owner}'s",
            f"that is right if llmux runs as {folder.owner}; else it does not start",
            f"sudo -u {shlex.quote(folder.owner)} {facts.llmux('doctor')}",
        )
    elif folder.unsafe is not None:
        why = "other users could replace its files"
        what = f"the state folder {folder.path} is unsafe: {folder.unsafe}"
        yield Finding("warning", "state", what, why, f"chmod 700 {path}")
    else:
        yield Finding("ok", "state", f"state folder {folder.path}")
    yield from _disk_findings(facts)


def _disk_findings(facts: Facts) -> Iterator[Finding]:
    folder = facts.folder
    assert folder is not None
    look = f"du -sh {shlex.quote(str(folder.path))}/*; df -h {shlex.quote(str(folder.path))}"
    why = "logs, the journal and the record of the model that is awake are there"
    if folder.free_files is not None and folder.free_files < 100:
        what = f"the disk of {folder.path} has room for {folder.free_files} more files"
        yield Finding("problem", "disk", what, why, look)
    elif folder.free_bytes < LOW_BYTES:
        severity: Severity = "problem" if folder.free_bytes < FULL_BYTES else "warning"
        what = f"{size(folder.free_bytes)} are free for {folder.path}"
        yield Finding(severity, "disk", what, why, look)
    else:
        yield Finding("ok", "disk", f"{size(folder.free_bytes)} of disk free")


# ---- Ports ----


def own_port_findings(facts: Facts) -> Iterator[Finding]:
    """Yield other programs on the port that llmux is to listen on."""
    config = facts.config.config
    if config is None or facts.listeners is None or facts.running is not None or not config.port:
        return
    for listener in facts.listeners:
        if listener.port != config.port or not is_here(listener.host, config.host):
            continue
        who = _owner(listener)
        if facts.holder is not None and listener.process in {None, facts.holder}:
            continue  # it is llmux's own, which `running` tells of
        yield Finding(
            "problem",
            "ports",
            f"llmux's port {config.port} is taken by {who}",
            "llmux cannot listen there; clients reach that program instead",
            f"llmux serve -p {_other_port(config.port)}    # or end it: {_look_at(listener)}",
        )
        return


def _other_port(port: int) -> int:
    return port + 1 if port < 65535 else port - 1


def backend_findings(facts: Facts) -> Iterator[Finding]:
    """Yield models whose port nobody listens on, or another server than their own."""
    fine = 0
    for name, url, recipe in _backends(facts):
        found = list(_at_port(facts, name, url, recipe))
        yield from found
        fine += not found
    if fine and facts.listeners is not None:
        yield Finding("ok", "ports", f"ports of {number(fine, 'model')}")


def _backends(facts: Facts) -> Iterator[tuple[str, str, str | None]]:
    """Yield name, URL and recipe of the models whose servers are on this machine."""
    config = facts.config.config
    configured = config.models if config is not None else {}
    states = _states(facts)
    for name in dict.fromkeys([*states, *configured]):
        own = configured.get(name)
        url = states[name].backend if name in states else own.address if own else None
        if url is not None and is_of_this_machine(url):
            yield name, url, own.recipe if own else None


def _at_port(facts: Facts, name: str, url: str, recipe: str | None) -> Iterator[Finding]:
    port = urlsplit(url).port
    if facts.listeners is None or port is None:
        return
    there = [each for each in facts.listeners if each.port == port]
    state = _states(facts).get(name)
    if not there:
        if state is not None and state.awake:
            yield Finding(
                "problem",
                "ports",
                f"{name} is awake, but nobody listens on its port {port}",
                "requests get 502: its server has ended, or listens elsewhere",
                facts.llmux("logs", name),
            )
        return
    known = [each for each in there if each.process is not None and each.process.is_readable]
    if not known or any(_is_servers(each.process, name, port, facts) for each in known):
        return
    yield from _foreign(facts, known[0], name, port, recipe)


def _is_servers(process: Process | None, name: str, port: int, facts: Facts) -> bool:
    """Return whether a process is the model's server, or that of one with the same port."""
    if process is None or process.model is None:
        return False
    if facts.folder is not None and process.state_dir not in {None, str(facts.folder.path)}:
        return False
    sharing = {other for other, url, _ in _backends(facts) if urlsplit(url).port == port}
    return process.model in sharing | {name}


def _foreign(
    facts: Facts, listener: Listener, name: str, port: int, recipe: str | None
) -> Iterator[Finding]:
    process = listener.process
    assert process is not None
    if process.model is not None:
        whose = f"the server of {process.model}: {process}"
        if facts.folder is not None and process.state_dir not in {None, str(facts.folder.path)}:
            whose += f", of the llmux with the state folder {process.state_dir}"
        why = f"requests for {name} reach the wrong model, or its wake fails (address in use)"
        what = f"{name}'s port {port} is taken by {whose}"
        yield Finding("problem", "ports", what, why, "give one of them another port in the config")
        return
    state = _states(facts).get(name)
    severity = _severity_of_foreign(recipe, is_awake=state is not None and state.awake)
    if severity is None:
        return
    why = (
        "right if its hooks use a service or a container; else its wake fails (address in use), "
        "or requests reach the wrong server"
    )
    if recipe in STARTED_BY_HOOKS:
        why = "its wake fails (address in use), or requests reach the wrong server"
    what = f"{process}, which no hook has started, listens on port {port}, which is {name}'s"
    remedy = (
        f"stop that program, or change the 'port' of {name} in the config: {_look_at(listener)}"
    )
    yield Finding(severity, "ports", what, why, remedy)


def _severity_of_foreign(recipe: str | None, *, is_awake: bool) -> Severity | None:
    """Judge a server that no hook has started; None if its model's servers are all like that."""
    if recipe in STARTED_ELSEWHERE:
        return None
    if recipe in STARTED_BY_HOOKS:
        return "warning" if is_awake else "problem"
    return "note" if is_awake else "warning"


def _owner(listener: Listener) -> str:
    return "another user's program" if listener.process is None else str(listener.process)


def _look_at(listener: Listener) -> str:
    if listener.process is None:
        return f"sudo ss -ltnp 'sport = :{listener.port}'"
    return f"ps -fp {listener.process.pid}"


def _states(facts: Facts) -> dict[str, ModelStatus]:
    return {} if facts.running is None else facts.running.status.models


# ---- GPUs and descriptors ----


def gpu_findings(facts: Facts) -> Iterator[Finding]:
    """Yield GPU memory that sleeping models and other programs hold."""
    if facts.gpu_error is not None:
        why = "if the driver has hung, no model can be woken"
        yield Finding("warning", "gpu", facts.gpu_error, why, "nvidia-smi; sudo dmesg | tail")
    for use in facts.gpus:
        found = list(_gpu_findings(facts, use))
        yield from found
        if not found:
            gpu = use.gpu
            used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
            known = f", {size(used)} of {size(total)} used" if used and total else ""
            yield Finding("ok", "gpu", f"GPU {gpu.index}{known}")


def _gpu_findings(facts: Facts, use: GpuUse) -> Iterator[Finding]:
    gpu, states, has_told = use.gpu, _states(facts), False
    for process, used in use.users:
        state = states.get(process.model or "")
        if used <= max(HELD_BYTES, HELD_SHARE * (gpu.memory_total_bytes or 0), _kept(state)):
            continue
        holds = f"holds {size(used)} of GPU {gpu.index}"
        if process.model is None:
            has_told = True
            severity: Severity = "warning" if process.is_readable else "note"
            why = "no hook has started it; it may be a model's service, else models do not fit"
            yield Finding(severity, "gpu", f"{process} {holds}", why, f"ps -fp {process.pid}")
        elif state is not None and state.state in {"asleep", "failed"}:
            has_told = True
            what = f"{process.model} is {state.state}, but its server {process} {holds}"
            why = "its sleep hook does not free the GPU: others do not fit, and their wakes fail"
            yield Finding("problem", "gpu", what, why, facts.llmux("sleep", process.model))
        elif facts.running is None:
            has_told = True
            what = f"{process.model}'s server {process} {holds}, and no llmux answers"
            yield Finding("note", "gpu", what, "a new llmux adopts it, or puts it to sleep")
    used_now, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    is_full = used_now is not None and total is not None and used_now >= FULL_GPU * total
    should_be_free = bool(states) and not any(
        state.awake or state.state in {"waking", "draining", "sleeping"}
        for state in states.values()
    )
    if is_full and should_be_free and not has_told:
        what = f"all models are asleep, but {size(used_now or 0)} of GPU {gpu.index} are in use"
        yield Finding("problem", "gpu", what, "the next wake will not fit", "nvidia-smi")


def _kept(state: ModelStatus | None) -> int:
    """Return what a sleeping model may hold of one resource, in bytes, as its config says."""
    if state is None or state.state != "asleep" or state.stopped:
        return 0
    return max((state.needs_asleep or {}).values(), default=0)


def descriptor_findings(facts: Facts) -> Iterator[Finding]:
    """Yield limits on file descriptors that are low or nearly reached."""
    found = facts.descriptors
    if found is None:
        return
    why = f"each client takes two, and llmux itself {DESCRIPTORS}; further clients are refused"
    remedy = "LimitNOFILE=65536 in the unit of systemd, or: ulimit -n 65536"
    if found.used is not None and found.used >= MOST_USED * found.limit:
        what = f"llmux has {found.used} of at most {found.limit} file descriptors open"
        yield Finding("problem", "descriptors", what, why, remedy)
    elif found.limit < FEW_DESCRIPTORS:
        what = f"llmux may have {found.limit} file descriptors only"
        yield Finding("warning", "descriptors", what, why, remedy)
    else:
        yield Finding("ok", "descriptors", f"{found.limit} file descriptors")
