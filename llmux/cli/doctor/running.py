"""Findings about the running llmux: what its requests wait for."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from llmux.api.masked import masked_config
from llmux.cli.doctor.facts import Facts, Running
from llmux.cli.doctor.findings import Finding, Severity
from llmux.cli.terminal.views import span
from llmux.observe.schemas import GroupStatus, ModelStatus, RequestInfo
from llmux.switching.reload import FIXED

USUAL_SWITCH_S = 60.0
"""Duration from which to warn of a switch whose duration is not known yet."""

LATE_S = 30.0
"""Delay that is not worth a problem, whatever was expected."""

STUCK_S = 30.0
"""Wait for nothing in particular from which something is wrong."""

LONG_WAIT_S = 60.0
"""Wait from which to warn although the policy has its reasons."""

SILENT_S = 120.0
"""Time without a response from which a server may hang; long prompts take a while."""

LONG_ANSWER_S = 600.0
"""Duration of a response from which to mention it."""

NEAR = 0.8
"""Share of a limit from which to warn."""

Requests = list[RequestInfo]


def findings_running(facts: Facts) -> Iterator[Finding]:
    """Yield what is found about the running llmux, or why it does not answer."""
    running = facts.running
    if running is None:
        yield from silence_findings(facts)
        return
    status = running.status
    since = span(status.at - status.started)
    yield Finding("ok", "llmux", f"llmux {status.version} answers at {facts.url}, up {since}")
    yield from version_findings(facts, running)
    yield from operator_findings(facts, running)
    for name, group in status.groups.items():
        yield from group_findings(facts, running, name, group)
    for name, model in status.models.items():
        yield from model_findings(facts, running, name, model)
    yield from request_findings(facts, running)


# ---- It does not answer, or is another one ----


def silence_findings(facts: Facts) -> Iterator[Finding]:
    """Yield why llmux does not answer."""
    config = facts.config.path
    start = "" if config is None else shlex.join(["llmux", "-c", str(config)])
    holder = facts.holder
    if facts.url is None:
        what = "the config does not tell where llmux listens"
        yield Finding("note", "llmux", what, facts.trouble_text, "llmux doctor --url URL")
    elif facts.trouble == "key":
        yield Finding(
            "warning",
            "llmux",
            f"llmux at {facts.url} wants a key: its state was not looked at",
            facts.trouble_text,
            facts.llmux("doctor", "--key-file", _key_file(facts)),
        )
    elif holder is not None and facts.is_here:
        where = f"ss -ltnp | grep pid={holder.pid},"
        what = f"llmux runs as {holder}, but does not answer at {facts.url}"
        why = f"{facts.trouble_text}; it listens elsewhere (-H, -p), still starts, or hangs"
        yield Finding("problem", "llmux", what, why, where)
    elif facts.trouble == "refused":
        severity: Severity = "warning" if facts.is_here else "problem"
        what = f"no llmux runs at {facts.url}: clients are refused"
        yield Finding(severity, "llmux", what, facts.trouble_text, start)
    else:
        yield Finding(
            "problem",
            "llmux",
            f"no llmux answers at {facts.url}",
            facts.trouble_text,
            "llmux doctor --url URL    # where llmux is",
        )


def _key_file(facts: Facts) -> str:
    return next((str(each.path) for each in facts.secrets if each.key == "control_keys"), "FILE")


def version_findings(facts: Facts, running: Running) -> Iterator[Finding]:
    """Yield differences between the running llmux and what is on disk."""
    status, config = running.status, facts.config.config
    if status.version != facts.version:
        yield Finding(
            "warning",
            "llmux",
            f"llmux {status.version} runs; this command is {facts.version}",
            "after an upgrade llmux runs on as it was; its config was not compared",
            "restart llmux, for example: sudo systemctl restart llmux",
        )
        return
    path = running.settings.get("path")
    if not facts.is_here or config is None or config.path is None or path is None:
        return
    if path != str(config.path):
        what = f"the llmux at {facts.url} was started with another config: {path}"
        yield Finding("warning", "config", what, "", shlex.join(["llmux", "doctor", "-c", path]))
        return
    changed = differences(masked_config(config), running.settings)
    if not changed:
        return
    fixed = [key for key in changed if key.partition(".")[0] in _FIXED]
    shown = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
    yield Finding(
        "warning",
        "config",
        f"the running llmux has another config than {config.path} now: {shown}",
        f"takes effect at a restart only: {', '.join(fixed)}" if fixed else "",
        facts.llmux("reload"),
    )


_FIXED = frozenset(key.partition(".")[0] for key in FIXED) - {"limits"}


def differences(on_disk: Mapping[str, Any], in_use: Mapping[str, Any]) -> list[str]:
    """Return the keys with different values, of single models as `models.NAME`.

    The state folder is left out, whose default depends on the user, and ports that llmux chooses.

    Args:
        on_disk: The config of the file, without secrets.
        in_use: That of the running llmux.
    """
    file = msgspec.json.decode(msgspec.json.encode(on_disk))
    mine, theirs = file.pop("models", {}), in_use.get("models", {})
    keys = [
        key
        for key in file
        if key in in_use and key not in {"state_dir", "directory"} and file[key] != in_use[key]
    ]
    for name in dict.fromkeys([*mine, *theirs]):
        one, other = dict(mine.get(name, {})), dict(theirs.get(name, {}))
        if one and one.get("port") is None and one.get("url") is None:
            other["port"] = None
        if one != other:
            keys.append(f"models.{name}")
    return keys


# ---- Operators' settings ----


def operator_findings(facts: Facts, running: Running) -> Iterator[Finding]:
    """Yield the mode and the pins that keep requests from being served."""
    status = running.status
    if status.mode == "manual":
        waiting = _waiting_elsewhere(status.models.values())
        what = "the mode is manual: only commands switch models"
        why = "requests for models that are not awake get 503 manual_mode"
        if waiting:
            why += f"; {waiting} requests wait"
        severity: Severity = "problem" if waiting else "warning"
        yield Finding(severity, "mode", what, why, facts.llmux("mode", "auto"))
    for name, group in status.groups.items():
        if group.pinned is None:
            continue
        waiting = _waiting_elsewhere(_models_of(running, group))
        does = f"{waiting} wait" if waiting else "wait" if group.pinned.wait else "get 503"
        yield Finding(
            "problem" if waiting else "warning",
            "pin",
            f"{group.pinned.model} is pinned in group {name}",
            f"requests for the group's other models: {does}",
            facts.llmux("unpin", "--group", name),
        )


def _waiting_elsewhere(models: Iterable[ModelStatus]) -> int:
    return sum(model.queued for model in models if not model.awake)


def _models_of(running: Running, group: GroupStatus) -> list[ModelStatus]:
    models = running.status.models
    return [models[name] for name in group.models if name in models]


# ---- Switches and lines ----


def group_findings(
    facts: Facts, running: Running, name: str, group: GroupStatus
) -> Iterator[Finding]:
    """Yield a switch that takes long, and lines that the policy lets wait."""
    if group.switch is not None:
        yield from _switch_findings(facts, running, group)
    elif running.status.mode == "auto" and group.pinned is None:
        for model in group.models:
            if model in running.status.models:
                yield from _line_findings(facts, running, name, group, model)


def _switch_findings(facts: Facts, running: Running, group: GroupStatus) -> Iterator[Finding]:
    switch, at = group.switch, running.status.at
    assert switch is not None
    took, usual = at - switch.started, switch.expected_secs
    phase, why, remedy = _phase(facts, running, group)
    of = f" of ~{span(usual)}" if usual is not None else ""
    waiting = sum(model.queued for model in _models_of(running, group))
    what = (
        f"the switch from {switch.source or 'nothing'} to {switch.target} takes {span(took)}{of}, "
        f"now: {phase}; {waiting} requests wait"
    )
    if usual is not None and took > max(2 * usual, usual + LATE_S):
        yield Finding("problem", "switch", what, why, remedy)
    elif usual is None and took > USUAL_SWITCH_S:
        yield Finding("warning", "switch", what, f"{why}; no earlier one to compare with", remedy)
    else:
        yield Finding("note", "switch", what, why)


def _phase(facts: Facts, running: Running, group: GroupStatus) -> tuple[str, str, str]:
    """Return what a switch does, what it waits for, and what to do about it."""
    models, at = running.status.models, running.status.at
    for name in group.models:
        state = models[name].state if name in models else ""
        if state == "draining":
            inside = _of(running, name, "forwarding", "answering")
            why = f"it waits for {models[name].in_flight} requests in flight of {name}"
            if not inside:
                return f"drains {name}", why, facts.llmux("requests")
            oldest = inside[0]
            why += f"; the oldest, {oldest.id}, is {span(at - oldest.arrived)} old"
            return f"drains {name}", why, facts.llmux("cancel", oldest.id)
        if state in {"sleeping", "waking"}:
            hook = "sleep" if state == "sleeping" else "wake"
            limit = _setting(running, "models", name, "hook_timeouts", hook)
            bound = f"fails after {span(limit)}" if limit else "has no time limit"
            why = f"the {hook} hook of {name} has not ended; it {bound} (hook_timeouts.{hook})"
            return f"{hook} hook of {name}", why, facts.llmux("logs", name)
    return "between two hooks", "", facts.llmux("status")


def _line_findings(
    facts: Facts, running: Running, group: str, state: GroupStatus, name: str
) -> Iterator[Finding]:
    model = running.status.models[name]
    wait = model.oldest_wait_secs or 0.0
    if not model.queued or model.failing or (model.retry_in_secs or 0.0) > 0:
        return
    what = f"{model.queued} requests wait for {name}, the oldest for {span(wait)}"
    if model.awake:
        is_full = model.max_in_flight is not None and model.in_flight >= model.max_in_flight
        if is_full:
            why = f"all {model.max_in_flight} slots of {name} are taken (max_in_flight)"
            remedy = "raise max_in_flight, if the server can do more at once"
            yield Finding(_by_wait(wait, running), "line", what, why, remedy)
        return
    most = _setting(running, "policy", "max_wait_secs")
    expected = f"; expected wait of a new one: {span(model.eta_secs)}" if model.eta_secs else ""
    if state.stays is not None:
        bound = f" (at most about {span(most)}, policy.max_wait_secs)" if most else ""
        why = f"the policy stays with {state.active_model}: {state.stays}{bound}{expected}"
        yield Finding(_by_wait(wait, running), "line", what, why, facts.llmux("switch", name))
    elif wait > STUCK_S:
        why = f"no switch of group {group} runs, and its policy gives no reason{expected}"
        yield Finding("problem", "line", what, why, facts.llmux("switch", name))
    else:
        yield Finding("note", "line", what, f"the group decides now{expected}")


def _by_wait(wait_s: float, running: Running) -> Severity:
    most = _setting(running, "policy", "max_wait_secs")
    if most is not None and wait_s > most:
        return "problem"
    return "warning" if wait_s > LONG_WAIT_S else "note"


# ---- Models ----


def model_findings(
    facts: Facts, running: Running, name: str, model: ModelStatus
) -> Iterator[Finding]:
    """Yield what is wrong with a model, and limits that its line comes near."""
    if model.failing:
        yield Finding(
            "problem",
            "model",
            f"the wake of {name} has failed {model.failed_wakes} times in a row",
            f"{model.last_error or ''}; it is not tried while other models are used, and its "
            "requests get 503",
            f"{facts.llmux('logs', name)}; {facts.llmux('switch', name)}",
        )
    elif model.last_error is not None:
        again = model.retry_in_secs or 0.0
        retry = f" (next try in {span(again)})" if again > 0 else ""
        what = f"the last wake or sleep of {name} has failed{retry}"
        remedy = facts.llmux("logs", name)
        severity: Severity = "problem" if model.queued else "warning"
        yield Finding(severity, "model", what, model.last_error, remedy)
    if (trouble := model.alive_trouble) is not None:
        severity = "problem" if trouble.failures >= trouble.limit else "warning"
        what = f"alive of {name} has failed {trouble.failures} of {trouble.limit} times"
        why = f"{trouble.error}; after {trouble.limit} it is put to sleep and woken again"
        yield Finding(severity, "model", what, why, facts.llmux("logs", name))
    most = _setting(running, "limits", "queued_per_model")
    if most and model.queued >= NEAR * most:
        severity = "problem" if model.queued >= most else "warning"
        what = f"{model.queued} of at most {most:.0f} requests wait for {name}"
        why = "further ones get 429 queue_full"
        yield Finding(severity, "line", what, why, "raise limits.queued_per_model in the config")


# ---- Requests ----


def request_findings(facts: Facts, running: Running) -> Iterator[Finding]:
    """Yield the oldest requests that their server, or their client, keeps waiting."""
    at, models = running.status.at, running.status.models
    for name in models:
        silent = [
            each
            for each in _of(running, name, "forwarding")
            if at - each.arrived - each.waited_secs > SILENT_S
        ]
        if silent:
            oldest = silent[0]
            inside = span(at - oldest.arrived - oldest.waited_secs)
            url = models[name].backend
            curl = (
                ["curl", "-sS", f"{url}/v1/models"]
                if url.startswith("http")
                else [
                    "curl",
                    "-sS",
                    "--unix-socket",
                    url.removeprefix("unix:"),
                    "http://x/v1/models",
                ]
            )
            yield Finding(
                "warning",
                "requests",
                f"the server of {name} has not answered {len(silent)} requests, the oldest "
                f"({oldest.id}) for {inside}",
                "it reads a long prompt, works on others first, or has hung: ask it directly",
                shlex.join(curl),
            )
        long = [
            each
            for each in _of(running, name, "answering")
            if at - each.arrived - each.waited_secs > LONG_ANSWER_S
        ]
        if long:
            what = f"{len(long)} responses of {name} run for more than {span(LONG_ANSWER_S)}"
            why = f"the oldest is {long[0].id}; a switch waits for them"
            yield Finding("note", "requests", what, why, facts.llmux("cancel", long[0].id))
    yield from _reading_findings(running)
    if running.requests is not None:
        yield Finding("ok", "requests", f"{running.requests.total} requests")


def _reading_findings(running: Running) -> Iterator[Finding]:
    at, found = running.status.at, running.requests
    slow = [
        each
        for each in (found.requests if found is not None else ())
        if each.phase == "reading" and at - each.arrived > LONG_WAIT_S
    ]
    if slow:
        what = f"the bodies of {len(slow)} requests have not arrived yet"
        why = f"the oldest, {slow[0].id}, is sent since {span(at - slow[0].arrived)} by "
        why += str(slow[0].client or "a client")
        yield Finding("note", "requests", what, why)


def _of(running: Running, model: str, *phases: str) -> Requests:
    found = running.requests
    return [
        each
        for each in (found.requests if found is not None else ())
        if each.model == model and each.phase in phases
    ]


def _setting(running: Running, *keys: str) -> float | None:
    """Return a number of the config in use; None if it is not there, or null."""
    value: Any = running.settings
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None
