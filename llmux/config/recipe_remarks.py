"""Remarks on what models give their recipes: values that cannot work, by all that llmux can see."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from llmux.config.gpus import gpu_indexes
from llmux.config.models import ModelConfig
from llmux.config.places import placed
from llmux.config.recipes import PREFIX, Recipe, find_recipe
from llmux.config.remarks import is_loopback
from llmux.config.shape import Config
from llmux.http.socketpath import socket_path

MOST_BYTES = 1 << 20
"""Limit for a script that is looked into."""

_PORT = re.compile(r"\$\{?(?:LLMUX_)?(?:PORT|URL)\b")
"""The variables of hooks that hold the port."""

_OWN_PORT = re.compile(r"\s--port[\s=]+([0-9]{1,5})\b")


def recipe_remarks(config: Config) -> Iterator[str]:
    """Yield one line for each value of `with` that does not fit the rest of its model."""
    for model in config.models.values():
        if model.recipe is None:
            continue
        with suppress(OSError, ValueError):  # a folder of the user's may have gone since
            recipe = find_recipe(model.recipe, config.directory)
            found = [
                *_deaf_commands(recipe, model, config.directory),
                *_other_ports(recipe, model),
                *_late_ends(recipe, model),
            ]
            for parameter, remark in found:
                yield placed(("models", model.name, "with", parameter), remark, config.source)
            for remark in _kept_asleep(recipe, model, config.resources):
                yield placed(("models", model.name, "needs"), remark, config.source)


def _deaf_commands(
    recipe: Recipe, model: ModelConfig, directory: Path
) -> Iterator[tuple[str, str]]:
    """Yield commands that are not told the port that llmux chooses."""
    if not model.chooses_port:
        return
    for name, parameter in recipe.parameters.items():
        text = _text_of(recipe, model, name)
        if parameter.type != "command" or not text or _takes_port(text, directory):
            continue
        why = "lacks ${PORT}, so its server does not listen where llmux looks for it"
        own = _OWN_PORT.search(f" {text}")
        other = f"port: {own[1]}" if own else "'port' or 'url'"
        yield name, f"{why}: write ${{PORT}} in it, or give the model {other}"


def _other_ports(recipe: Recipe, model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield commands whose server listens on another port of this machine than the model's."""
    port = _local_port(model)
    if port is None:
        return
    for name, parameter in recipe.parameters.items():
        text = _text_of(recipe, model, name)
        if parameter.type != "command" or _PORT.search(text):
            continue
        named = {int(each) for each in _OWN_PORT.findall(f" {text}")}
        # With its own number elsewhere, as in `docker run -p 8391:8080`, it is another's inside.
        if named and port not in named and not re.search(rf"(?<!\d){port}(?!\d)", text):
            others = " and ".join(str(each) for each in sorted(named))
            why = (
                f"names port {others}, but the model's is {port}, where llmux looks for its server"
            )
            yield name, f"{why}: write ${{PORT}} in place of the number"


def _local_port(model: ModelConfig) -> int | None:
    """Return the port of this machine that the config gives a model; None: none, or elsewhere."""
    address = model.address
    if address is None or socket_path(address) is not None:
        return None
    parts = urlsplit(address)
    return parts.port if is_loopback(parts.hostname or "") else None


def _takes_port(command: str, directory: Path) -> bool:
    """Return whether a command, or the script that it runs, names the variable of the port."""
    if _PORT.search(command):
        return True
    with suppress(OSError, ValueError):
        paths = [Path(word).expanduser() for word in shlex.split(command) if "/" in word]
        files = [directory / os.path.expandvars(path) for path in paths]
        return any(_names_port(file) for file in files if file.is_file())
    return False


def _names_port(file: Path) -> bool:
    with file.open("rb") as script:
        return re.search(rb"\bPORT\b|LLMUX_(?:PORT|URL)", script.read(MOST_BYTES)) is not None


def _late_ends(recipe: Recipe, model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield times that a hook is not given: llmux ends it before."""
    for name, parameter in recipe.parameters.items():
        if parameter.below is None:
            continue
        limit_s, text = model.timeout_s(parameter.below), _text_of(recipe, model, name)
        if limit_s is not None and text.isdecimal() and int(text) >= limit_s:
            limit = f"hook_timeouts.{parameter.below}, which is {limit_s:g} s"
            yield name, f"must be less than {limit}: at {text} s llmux has ended the hook"


def _kept_asleep(recipe: Recipe, model: ModelConfig, resources: Mapping[str, int]) -> Iterator[str]:
    """Yield a remark if `needs_asleep` lacks the GPUs of which a sleeping server keeps a part."""
    # With this level, the server ends.
    if not recipe.file.keeps_asleep or model.variables.get(f"{PREFIX}LEVEL") == "stop":
        return
    asleep = gpu_indexes(model.needs_asleep)
    if isinstance(model.needs, dict):
        missing = [name for name in gpu_indexes(model.needs) if name not in asleep]
    else:  # which ones it uses is not known yet
        missing = list(gpu_indexes(resources)) if model.needs and not asleep else []
    if missing:
        example = ", ".join(f"{name}: 1GiB" for name in missing)
        yield (
            f"while it sleeps, its server keeps {recipe.file.keeps_asleep}: "
            f"say how much with needs_asleep, such as {{{example}}}"
        )


def _text_of(recipe: Recipe, model: ModelConfig, name: str) -> str:
    """Return the value of a parameter as the hooks get it; empty if there is none."""
    variable, default = recipe.variable_of(name), recipe.parameters[name].default
    own = model.variables.get(variable) or os.environ.get(variable)
    return own or ("" if default is None else str(default))
