"""Findings about the running llmux: what its requests wait for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmux.cli.doctor.asking import requests_of, setting
from llmux.cli.doctor.facts import Facts, Running
from llmux.cli.doctor.findings import Finding, Severity, number
from llmux.cli.doctor.probes import is_of_this_machine, port_of
from llmux.cli.doctor.reached import silence_findings, version_findings
from llmux.cli.doctor.requests import request_findings
from llmux.cli.doctor.sharing import fits_beside, members, memory_findings, shares_memory
from llmux.cli.terminal.several import awake_of, models_of, pins_of, switches_of
from llmux.cli.terminal.views import span
from llmux.config.section import show_keys
from llmux.observe.schemas import GroupStatus, ModelStatus, SwitchRecord

USUAL_SWITCH_S = 60.0
"""Duration from which to warn of a switch whose duration is not known yet."""

LATE_S = 30.0
"""Delay that is not worth a problem, whatever was expected."""

STUCK_S = 30.0
"""Wait for nothing in particular from which something is wrong."""

LONG_WAIT_S = 60.0
"""Wait from which to warn although the policy has its reasons."""

NEAR = 0.8
"""Share of a limit from which to warn."""


def findings_running(facts: Facts) -> Iterator[Finding]:
    """Yield what is found about the running llmux, or why it does not answer."""
    running = facts.running
    if running is None:
        yield from silence_findings(facts)
        return
    status = running.status
    since = span(status.at - status.started)
    yield Finding("ok", "llmux", f"llmux {status.version} answers at {facts.url}, up {since}")
    if not running.can_switch:
        what = "llmux cannot switch any more: its switcher has stopped (/health is 503)"
        why = "a hook could not be killed, or llmux has met a bug: its log tells"
        remedy = "restart llmux, for example: sudo systemctl restart llmux"
        yield Finding("problem", "llmux", what, why, remedy)
    if facts.is_elsewhere:
        what = f"llmux listens at {facts.url}, and not where the config says (-H, -p, or port 0)"
        yield Finding("note", "llmux", what, "clients need this address")
    yield from version_findings(facts, running)
    yield from operator_findings(facts, running)
    for name, group in status.groups.items():
        yield from group_findings(facts, running, name, group)
    for name, model in status.models.items():
        yield from model_findings(facts, running, name, model)
    yield from request_findings(facts, running)


# ---- Operators' settings ----


def operator_findings(facts: Facts, running: Running) -> Iterator[Finding]:
    """Yield the mode, the cordon and the pins that keep requests from being served."""
    status = running.status
    if status.mode == "manual":
        waiting = _waiting_elsewhere(status.models.values())
        what = "the mode is manual: only commands switch models"
        why = "requests for models that are not awake get 503 manual_mode"
        if waiting:
            why += f"; {_wait(waiting)}"
        severity: Severity = "problem" if waiting else "warning"
        yield Finding(severity, "mode", what, why, facts.llmux("mode", "auto"))
    if status.cordoned:
        what = "llmux is cordoned: it takes no new requests"
        why = "they get 503 cordoned, until it is uncordoned or started again"
        yield Finding("warning", "cordon", what, why, facts.llmux("uncordon"))
    for name, group in status.groups.items():
        pins = pins_of(group)
        if not pins:
            continue
        names = [pin.model for pin in pins]
        others = [
            model
            for each, model in members(running, group)
            if not (shares_memory(running, group) and fits_beside(running, group, each, names))
        ]
        waiting = _waiting_elsewhere(others)
        waits = any(pin.wait for pin in pins)
        does = f"{waiting} wait" if waiting else "wait" if waits else "get 503"
        whose = "models that cannot be awake beside it"
        if not shares_memory(running, group):
            whose = "the group's other models"
        yield Finding(
            "problem" if waiting else "warning",
            "pin",
            f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} pinned in group {name}",
            f"requests for {whose if len(names) == 1 else whose.replace('it', 'them')}: {does}",
            facts.llmux("unpin", "--group", name),
        )


def _wait(count: int) -> str:
    return f"{number(count, 'request')} {'waits' if count == 1 else 'wait'}"


def _waiting_elsewhere(models: Iterable[ModelStatus]) -> int:
    return sum(model.queued for model in models if not model.awake)


# ---- Switches and lines ----


def group_findings(
    facts: Facts, running: Running, name: str, group: GroupStatus
) -> Iterator[Finding]:
    """Yield a switch that takes long, and lines that the policy lets wait."""
    switches, shared = switches_of(group), shares_memory(running, group)
    for switch in switches:
        yield from _switch_findings(facts, running, group, switch)
    yield from memory_findings(name, group)
    pinned = [pin.model for pin in pins_of(group)]
    if running.status.mode != "auto" or (not shared and (switches or pinned)):
        return
    targets = {switch.target for switch in switches}
    for model, _ in members(running, group):
        if model not in targets and fits_beside(running, group, model, pinned):
            yield from _line_findings(facts, running, name, group, model)


def _switch_findings(
    facts: Facts, running: Running, group: GroupStatus, switch: SwitchRecord
) -> Iterator[Finding]:
    took, usual = running.status.at - switch.started, switch.expected_secs
    moved, waiting_for = models_of(switch), [switch.target]
    if not shares_memory(running, group):
        moved, waiting_for = tuple(group.models), group.models
    phase, why, remedy = _phase(facts, running, moved)
    if deaf := _deaf(facts, running, switch, moved):
        why += f"; {deaf}"
    of = f" of ~{span(usual)}" if usual is not None else ""
    waiting = sum(model.queued for name, model in members(running, group) if name in waiting_for)
    sources = " and ".join(models_of(switch)[:-1]) or "nothing"
    what = (
        f"the switch from {sources} to {switch.target} takes {span(took)}{of}, "
        f"now: {phase}; {_wait(waiting)}"
    )
    if usual is not None and took > max(2 * usual, usual + LATE_S):
        yield Finding("problem", "switch", what, why, remedy)
    elif usual is None and took > (STUCK_S if deaf else USUAL_SWITCH_S):
        yield Finding("warning", "switch", what, f"{why}; no earlier one to compare with", remedy)
    else:
        yield Finding("note", "switch", what, why)


def _phase(facts: Facts, running: Running, moved: Iterable[str]) -> tuple[str, str, str]:
    """Return what a switch does, what it waits for, and what to do about it."""
    models, at = running.status.models, running.status.at
    for name in moved:
        state = models[name].state if name in models else ""
        if state == "draining":
            inside = requests_of(running, name, "forwarding", "answering")
            why = f"it waits for {number(models[name].in_flight, 'request')} in flight of {name}"
            if not inside:
                return f"drains {name}", why, facts.llmux("requests")
            oldest = inside[0]
            why += f"; the oldest, {oldest.id}, is {span(at - oldest.arrived)} old"
            return f"drains {name}", why, facts.llmux("cancel", oldest.id)
        if state in {"sleeping", "waking"}:
            hook = "sleep" if state == "sleeping" else "wake"
            limit = setting(running, "models", name, "hook_timeouts", hook)
            bound = f"fails after {span(limit)}" if limit else "has no time limit"
            why = f"the {hook} hook of {name} has not ended; it {bound} (hook_timeouts.{hook})"
            return f"{hook} hook of {name}", why, facts.llmux("logs", name)
    return "between two hooks", "", facts.llmux("status")


def _deaf(facts: Facts, running: Running, switch: SwitchRecord, moved: Iterable[str]) -> str:
    """Return what a wake that has gone on for long finds at its server's address."""
    for name in moved:
        model = running.status.models.get(name)
        if model is None or model.state != "waking" or facts.listeners is None:
            continue
        waited_s = running.status.at - max(model.since, switch.started)
        port = port_of(model.backend) if is_of_this_machine(model.backend) else None
        if port is None or waited_s <= STUCK_S:
            continue
        if not any(each.port == port for each in facts.listeners):
            return (
                f"{span(waited_s)} after its start nobody listens at {model.backend}: the command "
                "should listen on ${PORT}, unless its server still loads"
            )
        if waited_s > USUAL_SWITCH_S:
            return (
                f"a server listens at {model.backend}: if it has loaded, its health check fails "
                "(its path: `health` of a recipe, or the hooks' own)"
            )
    return ""


def _line_findings(
    facts: Facts, running: Running, group: str, state: GroupStatus, name: str
) -> Iterator[Finding]:
    model = running.status.models[name]
    wait = model.oldest_wait_secs or 0.0
    if not model.queued or model.failing or (model.retry_in_secs or 0.0) > 0:
        return
    what = f"{_wait(model.queued)} for {name}, the oldest for {span(wait)}"
    if model.awake:
        is_full = model.max_in_flight is not None and model.in_flight >= model.max_in_flight
        if is_full:
            why = f"all {model.max_in_flight} slots of {name} are taken (max_in_flight)"
            remedy = "raise max_in_flight, if the server can do more at once"
            yield Finding(_by_wait(wait, running), "line", what, why, remedy)
        return
    most = setting(running, "policy", "max_wait_secs")
    expected = f"; expected wait of a new one: {span(model.eta_secs)}" if model.eta_secs else ""
    if state.stays is not None:
        bound = f" (at most about {span(most)}, policy.max_wait_secs)" if most else ""
        awake = ", ".join(awake_of(state)) or "what is awake"
        why = f"the policy stays with {awake}: {state.stays}{bound}{expected}"
        yield Finding(_by_wait(wait, running), "line", what, why, facts.llmux("switch", name))
    elif switches_of(state):
        why = f"it waits until a running switch has ended, or for memory{expected}"
        yield Finding(_by_wait(wait, running), "line", what, why, facts.llmux("switch", name))
    elif wait > STUCK_S:
        why = f"no switch of group {group} runs, and its policy gives no reason{expected}"
        yield Finding("problem", "line", what, why, facts.llmux("switch", name))
    else:
        yield Finding("note", "line", what, f"the group decides now{expected}")


def _by_wait(wait_s: float, running: Running) -> Severity:
    most = setting(running, "policy", "max_wait_secs")
    if most is not None and wait_s > most:
        return "problem"
    return "warning" if wait_s > LONG_WAIT_S else "note"


# ---- Models ----


def _failed_findings(
    facts: Facts, running: Running, name: str, model: ModelStatus
) -> Iterator[Finding]:
    """Yield that a model cannot be woken or put to sleep: a problem until it has succeeded."""
    error = model.last_error or ""
    other = _whose_hook(running, error, name)
    logs = facts.llmux("logs", other or name)
    causes = "".join(f"\n{each}" for each in _causes(facts, other or name))
    if model.failing:
        yield Finding(
            "problem",
            "model",
            f"the wake of {name} has failed {model.failed_wakes} times in a row",
            f"{error}; it is not tried while other models are used, and its requests get 503"
            + causes,
            f"{logs}; {facts.llmux('switch', name)}",
        )
        return
    if model.last_error is None:
        return
    again = model.retry_in_secs or 0.0
    retry = f" (next try in {span(again)})" if again > 0 else ""
    what = f"the last wake or sleep of {name} has failed{retry}"
    if other is not None:
        what = f"{name} was not woken, since a hook of {other} has failed{retry}"
    is_down = model.state == "failed" or model.failed_wakes > 0 or model.retry_in_secs is not None
    severity: Severity = "problem" if model.queued or is_down else "warning"
    yield Finding(severity, "model", what, error + causes, logs)


def _whose_hook(running: Running, error: str, name: str) -> str | None:
    """Return the model whose hook an error is about, if it is another one: see `HookError`."""
    for other in running.status.models:
        if other != name and error.startswith(f"Hook failed for {other}: "):
            return other
    return None


def _causes(facts: Facts, name: str) -> Iterator[str]:
    """Yield what the config's remarks say about a model."""
    found, about = facts.config, show_keys(("models", name))
    for remark in (*found.unusable, *found.missing, *found.addresses):
        place, is_about, rest = remark.partition(f"{about}.")
        if is_about and (not place or place.endswith(": ")):
            yield f"likely cause: {about}.{rest}"


def model_findings(
    facts: Facts, running: Running, name: str, model: ModelStatus
) -> Iterator[Finding]:
    """Yield what is wrong with a model, and limits that its line comes near."""
    yield from _failed_findings(facts, running, name, model)
    if (trouble := model.alive_trouble) is not None:
        severity: Severity = "problem" if trouble.failures >= trouble.limit else "warning"
        what = f"alive of {name} has failed {trouble.failures} of {trouble.limit} times"
        why = f"{trouble.error}; after {trouble.limit} it is put to sleep and woken again"
        yield Finding(severity, "model", what, why, facts.llmux("logs", name))
    most = setting(running, "limits", "queued_per_model")
    if most and model.queued >= NEAR * most:
        severity = "problem" if model.queued >= most else "warning"
        what = f"{model.queued} of at most {most:.0f} requests wait for {name}"
        why = "further ones get 429 queue_full"
        yield Finding(severity, "line", what, why, "raise limits.queued_per_model in the config")
