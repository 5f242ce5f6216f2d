"""Tables and texts for people: readable at 80 columns, without colours, in pipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.text import Text

from llmux.cli.terminal.failures import shown
from llmux.cli.terminal.grid import Grid
from llmux.cli.terminal.several import awake_of, models_of, pins_of, switches_of
from llmux.observe.schemas import (
    GroupStatus,
    HeldMemory,
    ModelStatus,
    PromisedMemory,
    RequestInfo,
    RequestList,
    Status,
    SwitchRecord,
)

UNCUT = 10_000
"""Width where the output is no terminal: programs that read it want whole names."""

STYLES = {
    "awake": "green", "active": "green", "success": "green", "answering": "green",
    "waking": "yellow", "draining": "yellow", "sleeping": "yellow", "switching": "yellow",
    "waiting": "yellow", "abandoned": "yellow",
    "failed": "bold red", "failure": "bold red",
    "asleep": "dim", "stopped": "dim", "idle": "dim",
}  # fmt: skip

LAST_LINES = 4
"""Number of a hook's last lines that are shown below its error."""

SPARKS = "▁▂▃▄▅▆▇█"


def console(file: TextIO | None = None) -> Console:
    """The console to draw on; a pipe gets neither colours nor line breaks."""
    file = sys.stdout if file is None else file
    reconfigure = getattr(file, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a name that the locale cannot show is no reason to fail
    cut = file.isatty() or "COLUMNS" in os.environ
    return Console(file=file, width=None if cut else UNCUT, highlight=False, emoji=False)


# ---- Words ----


def word(text: str | None, style: str = "") -> Text:
    """A text from llmux without markup and control codes, cut where there is no room."""
    return Text(_line(text or "-"), style, no_wrap=True, overflow="ellipsis")


def _wrapped(text: str | None, style: str = "") -> Text:
    return Text(_line(text or "-"), style)


def _line(text: str) -> str:
    return shown(" ".join(text.split("\n")))


def span(seconds: float | None) -> str:
    """A length of time with about two digits: `4.2 s`, `45 s`, `12 min`, `3.5 h`, `4.0 d`."""
    if seconds is None:
        return "-"
    for unit, length, digits in (("d", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{max(0.0, seconds):.{0 if seconds >= 9.95 else 1}f} s"


def size(count: int) -> str:
    """A number of bytes with at most four digits, as people write it: 4 GiB, 1.5 GiB, 512 MiB."""
    if count < 0:
        return f"-{size(-count)}"
    if count < 10_000:
        return f"{count} B"
    value, unit = count / 1024, "KiB"
    for larger in ("MiB", "GiB"):
        if value < 1023.5:
            break
        value, unit = value / 1024, larger
    text = f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
    return f"{text.removesuffix('.0')} {unit}"


def sparkline(values: Sequence[int], width: int) -> str:
    """Draw the last values as bars; the highest one fills a line."""
    last = list(values)[-width:]
    top = max(last, default=0) or 1
    bars = (" " if not value else SPARKS[(8 * value - 1) // top] for value in last)
    return "".join(bars).rjust(width)


def _state(state: str) -> Text:
    return Text(state, STYLES.get(state, ""))


def _count(count: int, style: str = "") -> Text:
    return Text(str(count), style if count else "dim")


# ---- Status ----


def head_line(status: Status, url: str, now: float) -> Text:
    """Show llmux's version, state, mode and policy."""
    line = Text.assemble(("llmux", "bold"), f" {shown(status.version)} at {url}")
    if status.cordoned:
        line.append(", ").append("cordoned", "bold yellow")
    line.append(f", up {span(now - status.started)}, policy {shown(status.policy)}, mode ")
    return line.append(status.mode, "bold yellow" if status.mode == "manual" else "")


def show_status(status: Status, url: str) -> RenderableType:
    """Show all of a status on one screen."""
    parts: list[RenderableType] = [
        head_line(status, url, status.at),
        Text(),
        groups_table(status, status.at),
        Text(),
        models_table(status, status.at),
    ]
    if memory := memory_table(status, wraps=True):
        parts += [Text(), memory]
    remarks = remark_lines(status, status.at)
    return Group(*parts, *([Text(), *remarks] if remarks else []))


def groups_table(status: Status, now: float) -> Grid:
    """Show a line for each group, and one for each switch beside models that are awake."""
    table = Grid(
        ("GROUP", "~?"), ("MODEL", "~"), ("STATE", ""), ("IN FLIGHT", ">?"), ("WAITING", ">?"),
        ("PINNED", "?"),
    )  # fmt: skip
    for name, group in status.groups.items():
        models = [status.models[model] for model in group.models if model in status.models]
        awake, switches = awake_of(group), switches_of(group)
        first = switches[0] if len(switches) == 1 else None
        alone = first if first and {*awake} <= {*models_of(first)} else None
        table.add_row(
            word(name),
            word(_change(alone) if alone else ", ".join(awake) or None),
            _switching(alone, status, now, group.models) if alone else _doing(group, status, now),
            _count(sum(model.in_flight for model in models)),
            _count(sum(model.queued for model in models), "yellow"),
            _pinned(group),
        )
        for switch in [] if alone else switches:
            doing = _switching(switch, status, now, models_of(switch))
            table.add_row(Text(), word(_change(switch)), doing, Text(), Text(), Text())
    return table


def _change(switch: SwitchRecord) -> str:
    *evicts, target = models_of(switch)
    return f"{' + '.join(evicts) or 'nothing'} -> {target}"


def _pinned(group: GroupStatus) -> Text:
    pins = pins_of(group)
    if not pins:
        return Text("-")
    wait = ", wait" if any(pin.wait for pin in pins) else ""
    several = len(pins) > 1 or len(awake_of(group)) > 1
    return word((", ".join(pin.model for pin in pins) if several else "yes") + wait)


def _busy(status: Status, models: Iterable[str]) -> str | None:
    """Return the state of the first of these models that is between two states of rest."""
    states = (status.models[model].state for model in models if model in status.models)
    return next((each for each in states if each in {"draining", "sleeping", "waking"}), None)


def _doing(group: GroupStatus, status: Status, now: float) -> Text:
    """Return the activity of a group without a switch, and its duration."""
    state = None if awake_of(group) else _busy(status, group.models)
    return _state(state or group.state).append(f" {span(now - group.since)}", "default")


def _switching(switch: SwitchRecord, status: Status, now: float, models: Iterable[str]) -> Text:
    """Return the activity of a switch and its duration: `waking 12 s of ~40 s`."""
    doing = _state(_busy(status, models) or "switching")
    doing.append(f" {span(now - switch.started)}", "default")
    if switch.expected_secs is not None:
        doing.append(f" of ~{span(switch.expected_secs)}", "default")
    return doing


def models_table(
    status: Status, now: float, chosen: str | None = None, sparks: dict[str, str] | None = None
) -> Grid:
    """A line for each model.

    Args:
        status: Where they stand.
        now: The time at llmux.
        chosen: The model whose line is marked.
        sparks: How many have waited for each, drawn.
    """
    rates = any(model.tokens_per_sec for model in status.models.values())
    table = Grid(
        ("MODEL", "~"), ("STATE", ""), ("FOR", ">?"), ("IN FLIGHT", ">"), ("WAITING", ">"),
        ("OLDEST", ">?"), ("COST", ">?"), ("ETA", ">?"), *([("TOK/S", ">?")] if rates else []),
        *([("QUEUE", "?")] if sparks else []),
    )  # fmt: skip
    passed = now - status.at
    for name, model in status.models.items():
        oldest = model.oldest_wait_secs if model.queued else None
        cells = [
            word(name),
            _state("stopped" if model.stopped and model.state == "asleep" else model.state),
            Text(span(now - model.since)),
            Text(_in_flight(model), "" if model.in_flight else "dim"),
            _count(model.queued, "yellow"),
            Text(span(None if oldest is None else oldest + passed)),
            Text(span(model.cost_secs)),
            Text(span(model.eta_secs)),
        ]
        if rates:
            cells.append(Text(f"{model.tokens_per_sec:.1f}" if model.tokens_per_sec else "-"))
        if sparks:
            cells.append(Text(sparks.get(name, ""), "yellow"))
        table.add_row(*cells, style="reverse" if name == chosen else "")
    return table


def _in_flight(model: ModelStatus) -> str:
    return f"{model.in_flight}" + (f"/{model.max_in_flight}" if model.max_in_flight else "")


def memory_table(status: Status, *, wraps: bool = False) -> Grid | None:
    """Show who holds each resource that models share; None: there is none.

    Args:
        status: Says it.
        wraps: True to take several lines for a resource rather than to cut.
    """
    names = _wrapped if wraps else word
    shared = {name: group.memory for name, group in status.groups.items() if group.memory}
    if not shared:
        return None
    table = Grid(
        ("MEMORY", "~"), ("SIZE", ">"), ("FREE", ">"), ("HELD BY", "~"), ("PROMISED", "~?"),
    )  # fmt: skip
    for name, memory in shared.items():
        for each in memory:
            table.add_row(
                word(each.resource if len(shared) == 1 else f"{name}: {each.resource}"),
                Text(size(each.amount)),
                Text(size(each.free), "bold red" if each.free < 0 else ""),
                names(", ".join(map(_held, each.held)) or None),
                names(", ".join(map(_promised, each.promised)) or None, "yellow"),
            )
    return table


def _held(held: HeldMemory) -> str:
    how = "" if held.holding == "awake" else f" ({held.holding})"
    return f"{held.model} {size(held.bytes)}{how}"


def _promised(promised: PromisedMemory) -> str:
    after = f" after {' + '.join(promised.evicts)}" if promised.evicts else ""
    return f"{promised.model} {size(promised.bytes)}{after}"


def remark_lines(status: Status, now: float) -> list[Text]:
    """Show the reasons of running switches, errors of models, and whether llmux is cordoned."""
    cordon = "cordoned: new requests get 503 (`llmux uncordon` ends that)"
    lines = [Text(cordon, "yellow")] if status.cordoned else []
    lines += [
        Text(_line(f"{name}: switch {switch.id}, {why(switch)}"))
        for name, group in status.groups.items()
        for switch in switches_of(group)
    ]
    for name, group in status.groups.items():
        if group.stays is not None and not switches_of(group):
            awake = ", ".join(awake_of(group))
            lines.append(Text(_line(f"{name}: stays with {awake}: {group.stays}")))
    for name, model in status.models.items():
        if (found := model.alive_trouble) is not None:
            failed = f"alive failed {found.failures} of {found.limit}: {found.error}"
            lines.append(Text(_line(f"{name}: {failed}"), "yellow"))
        if model.failing:
            times = f"{model.failed_wakes} failed wakes in a row"
            when = "tried only while no other model is used, or by `llmux switch`"
            lines.append(Text(_line(f"{name}: failing, {times}; {when}"), "red"))
        if model.last_error is not None:
            left = (model.retry_in_secs or 0.0) - (now - status.at)
            again = f" (next try in {span(left)})" if left > 0 else ""
            lines += [
                Text(line, "red") for line in _error_lines(f"{name}: ", model.last_error, again)
            ]
    return lines


def _error_lines(before: str, error: str, after: str) -> Iterator[str]:
    """Yield an error's first line, and the last ones of a hook's output, where the cause stands."""
    first, *others = [line for line in error.splitlines() if line.strip()] or [""]
    yield _line(f"{before}{first}{after}")
    if len(others) > LAST_LINES:
        yield "  ..."
    for line in others[-LAST_LINES:]:
        yield _line(f"  {line}")


def why(switch: SwitchRecord) -> str:
    """Show the rule behind a switch, and its reason."""
    rule = switch.rule or "no rule"
    request = f", request {switch.request}" if switch.request else ""
    return f"{rule}: {switch.reason or 'no reason given'}{request}"


# ---- Switches and requests ----


def switches_table(switches: Iterable[SwitchRecord], now: float) -> Grid:
    """A line for each switch, in the order given."""
    table = Grid(
        ("AGO", ">"),
        ("SWITCH", "~"),
        ("RESULT", ""),
        ("TOOK", ">?"),
        ("DRAIN", ">?"),
        ("WHY", "~?"),
    )
    for switch in switches:
        table.add_row(
            Text(span(now - switch.started)),
            word(_change(switch)),
            _state(switch.result or "running"),
            Text(span((now if switch.ended is None else switch.ended) - switch.started)),
            Text(span(switch.drain_secs)),
            word(f"{why(switch)}{f'; {switch.error}' if switch.error else ''}"),
        )
    return table


def requests_table(requests: Iterable[RequestInfo], now: float) -> Grid:
    """A line for each request, in the order given."""
    table = Grid(
        ("ID", ""), ("MODEL", "~"), ("PHASE", ""), ("AGE", ">"), ("WAITED", ">?"),
        ("CLIENT", "~?"), ("OUT", ">?"), ("REQUEST", "~?"),
    )  # fmt: skip
    for request in requests:
        table.add_row(
            word(request.id),
            word(request.model or None),
            _state(request.phase),
            Text(span(now - request.arrived)),
            Text(span(request.waited_secs)),
            word(request.client),
            Text(size(request.bytes_out)),
            word(f"{request.method} {request.path}"),
        )
    return table


def show_requests(found: RequestList) -> RenderableType:
    """Show the requests in progress, and the number left out."""
    if not found.total:
        return Text("no requests")
    more = found.total - len(found.requests)
    left_out = [Text(f"... and {more} more")] if more > 0 else []
    return Group(requests_table(found.requests, found.at), *left_out)
