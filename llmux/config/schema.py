"""The config's JSON Schema, for editors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from llmux.config.control import ControlConfig, ErrorsConfig
from llmux.config.durations import DURATION_PATTERN
from llmux.config.filters import AliasConfig
from llmux.config.limits import Limits
from llmux.config.models import GroupConfig, HookTimeouts, ModelConfig
from llmux.config.policy import PolicyConfig
from llmux.config.recipes import Kind, Parameter, find_recipe, recipe_names
from llmux.config.section import file_keys
from llmux.config.shape import Config
from llmux.config.tls import TlsConfig
from llmux.config.values import A_SHARE

SECTIONS = (
    Config, ModelConfig, AliasConfig, HookTimeouts, GroupConfig, PolicyConfig, Limits, ErrorsConfig,
    ControlConfig, TlsConfig,
)  # fmt: skip


SCHEMA_FILE = Path(__file__).with_name("llmux.schema.json")
"""The schema for editors, in the package."""


def modeline() -> str:
    """Return the comment by which editors with yaml-language-server find the schema.

    It names the file in the package, so that the schema is always that of the llmux in use, needs
    no network, and no second file beside the config.
    """
    return f"# yaml-language-server: $schema={SCHEMA_FILE.as_uri()}"


def described_schema(root: type, sections: Iterable[type]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a section and of those in it, described by their docs."""
    schema = msgspec.json.schema(root, schema_hook=lambda _: {"type": "string"})  # Path
    for section in sections:
        shape = schema["$defs"][section.__name__]
        text = inspect.getdoc(section) or ""
        shape["description"] = text.partition("\n")[0]
        described = _attributes(text)
        shape["properties"] = {
            key: shape["properties"][key] | {"description": described.get(key, "")}
            for key in file_keys(section)
        }
        if "required" in shape:  # the loader fills in the others
            shape["required"] = [key for key in shape["required"] if key in shape["properties"]]
        for key, kind in file_keys(section).items():
            if A_SHARE not in getattr(kind, "__metadata__", ()):
                _allow_durations(shape["properties"][key])
    return schema


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the config."""
    schema = described_schema(Config, SECTIONS)
    _add_recipes(schema["$defs"]["ModelConfig"])
    config = schema["$defs"]["Config"]
    config["required"] = ["models"]  # the loader fills in the rest
    config["patternProperties"] = {"^x-": {}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def editor_schema() -> dict[str, Any]:
    """Return the schema for editors: any value may also be a reference to a variable."""
    schema = config_schema()
    for shape in schema["$defs"].values():
        for key, value in shape["properties"].items():
            shape["properties"][key] = _or_variable(value)
        for each in shape.get("allOf", ()):
            taken = each["then"]["properties"]["with"]["properties"]
            taken |= {key: _or_variable(value) for key, value in taken.items()}
    return schema


VARIABLE_PATTERN = r"\$\{env:"


def _or_variable(shape: dict[str, Any]) -> dict[str, Any]:
    """Let a value that is no list, mapping or free text also refer to a variable."""
    shape = dict(shape)
    for key in ("items", "additionalProperties"):
        if isinstance(shape.get(key), dict):
            shape[key] = _or_variable(shape[key])
    if "anyOf" in shape:
        shape["anyOf"] = [_or_variable(each) for each in shape["anyOf"]]
    elif "enum" in shape:
        choices = {"enum": shape.pop("enum")}
        shape["anyOf"] = [choices, {"type": "string", "pattern": VARIABLE_PATTERN}]
    elif shape.get("type") in ("integer", "boolean"):
        shape |= {"type": [shape["type"], "string"], "pattern": VARIABLE_PATTERN}
    elif "pattern" in shape:
        shape["pattern"] = f"{shape['pattern']}|{VARIABLE_PATTERN}"
    return shape


def _allow_durations(shape: dict[str, Any]) -> None:
    """Let a number also be a duration with units: all but shares are seconds."""
    for each in (shape, *shape.get("anyOf", ())):
        if each.get("type") == "number":
            each |= {"type": ["number", "string"], "pattern": DURATION_PATTERN}


def _add_recipes(model: dict[str, Any]) -> None:
    """Demand hooks or a recipe, and describe what each of llmux's own recipes takes in `with`."""
    names = recipe_names()
    recipe = model["properties"]["recipe"]
    recipe.pop("type", None)
    recipe["anyOf"] = [{"enum": names}, {"type": "string", "pattern": "/"}, {"type": "null"}]
    model["anyOf"] = [{"required": model.pop("required")}, {"required": ["recipe"]}]
    model["allOf"] = [
        {
            "if": {"properties": {"recipe": {"const": name}}, "required": ["recipe"]},
            "then": _with_of(find_recipe(name, Path()).parameters),
        }
        for name in names
    ]


def _with_of(parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    needed = [name for name, each in parameters.items() if each.required]
    taken = {
        "properties": {name: _shape_of(each) for name, each in parameters.items()},
        "required": needed,
        "additionalProperties": False,
    }
    return {"properties": {"with": taken}, "required": ["with"] if needed else []}


def _shape_of(parameter: Parameter) -> dict[str, Any]:
    word: dict[str, Any] = {"type": ["string", "number"]}
    also = (f"^{re.escape(each)}$" for each in parameter.also)
    shapes: dict[Kind, dict[str, Any]] = {
        "text": {"type": "string"},
        "path": {"type": "string", "pattern": "|".join(["^/", *also])},
        "words": {"anyOf": [{"type": "string"}, {"type": "array", "items": word}]},
        "command": {"anyOf": [{"type": "string"}, {"type": "array", "items": word}]},
        "integer": {"type": "integer", "minimum": parameter.minimum},
        "boolean": {"type": "boolean"},
    }
    choices = {"enum": list(parameter.choices)} if parameter.choices else None
    shape = {"description": parameter.doc, **(choices or shapes[parameter.type])}
    return shape if parameter.default is None else {**shape, "default": parameter.default}


def _attributes(docstring: str) -> dict[str, str]:
    """Return the description of each attribute in the section "Attributes:", on one line."""
    found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", docstring, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
