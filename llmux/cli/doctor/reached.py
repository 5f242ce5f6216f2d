"""Findings about the connection to llmux: it does not answer, or is another one than expected."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from llmux.api.masked import masked_config
from llmux.cli.doctor.facts import Facts, Process, Running
from llmux.cli.doctor.findings import Finding
from llmux.switching.reload import FIXED


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
        yield _holder_finding(facts, holder)
    elif facts.trouble == "refused":
        if facts.is_here:
            what = f"no llmux runs at {facts.url}: clients are refused"
            yield Finding("warning", "llmux", what, facts.trouble_text, start)
        else:
            what = f"no llmux can be reached at {facts.url}"
            look = shlex.join(["curl", "-sS", f"{facts.url}/health"])
            yield Finding("problem", "llmux", what, facts.trouble_text, look)
    else:
        yield Finding(
            "problem",
            "llmux",
            f"no llmux answers at {facts.url}",
            facts.trouble_text,
            "llmux doctor --url URL    # where llmux is",
        )


def _holder_finding(facts: Facts, holder: Process) -> Finding:
    """Say why a llmux that runs does not answer."""
    what = f"llmux runs ({holder}), but does not answer at {facts.url}"
    if "stop" in holder.state:
        why = "its process is stopped (SIGSTOP, Ctrl-Z, a debugger)"
        return Finding("problem", "llmux", what, why, f"kill -CONT {holder.pid}")
    look = f"ps -o pid,stat,etime,%cpu,args -p {holder.pid}"
    if facts.trouble == "refused":
        why = f"{facts.trouble_text}; it has not started yet, is stopping, or listens elsewhere"
        return Finding("problem", "llmux", what, why, f"{look}; ss -ltnp | grep pid={holder.pid},")
    why = f"{facts.trouble_text}; it is overloaded or hangs, or another program is there"
    return Finding("problem", "llmux", what, why, look)


def _key_file(facts: Facts) -> str:
    """Return a file with a key that the doctor can use: to read, any will do."""
    found = {each.key: str(each.path) for each in reversed(facts.secrets)}
    return found.get("control_keys") or found.get("read_keys") or "FILE"


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
    whys = [f"takes effect at a restart only: {', '.join(fixed)}"] if fixed else []
    if facts.config.has_variables:
        whys.append("this shell may have other environment variables (${env:...}) than llmux")
    what = f"the running llmux has another config than {config.path} now: {shown}"
    yield Finding("warning", "config", what, "; ".join(whys), facts.llmux("reload"))


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
