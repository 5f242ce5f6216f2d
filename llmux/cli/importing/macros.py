"""Expand llama-swap's macros, in its order: the last one first, a model's own over global ones.

`${env.NAME}` becomes `${env:NAME}`, which llmux reads when it starts: secrets stay out of the file.
`${PORT}` stays, since llmux has it, too; `${PID}` is left to `cmdStop`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmux.errors import ConfigError

Macros = dict[str, Any]

_ENV = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
_MACRO = re.compile(r"\$\{([A-Za-z0-9_-]+)\}")

OURS = frozenset({"PORT", "PID"})


def scope(global_macros: object, model_macros: object, model: str) -> Macros:
    """Return a model's macros, in the order of their declaration."""
    macros: Macros = {"MODEL_ID": model}
    for declared in (global_macros, model_macros):
        if isinstance(declared, Mapping):
            macros |= {str(name): value for name, value in declared.items()}
    return macros


def expand(value: Any, macros: Macros, where: str) -> Any:
    """Return a value with its macros expanded, in keys of mappings, too.

    Args:
        value: Anything that YAML can hold.
        macros: By name, in the order of their declaration.
        where: Path of the value, for errors.

    Raises:
        ConfigError: A macro is not declared.
    """
    if isinstance(value, Mapping):
        return {
            expand(key, macros, where): expand(item, macros, f"{where}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [expand(item, macros, f"{where}[{index}]") for index, item in enumerate(value)]
    return _expand_text(value, macros, where) if isinstance(value, str) else value


def _expand_text(text: str, macros: Macros, where: str) -> Any:
    for name, value in reversed(macros.items()):
        if text == f"${{{name}}}" and not isinstance(value, str):
            return value  # a number stays one
        text = text.replace(f"${{{name}}}", _written(value))
    for match in _MACRO.finditer(text):
        if match[1] not in OURS:
            raise ConfigError([f"{where}: the macro {match[0]} is not declared"])
    return _ENV.sub(r"${env:\1}", text)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
