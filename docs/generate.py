"""Writes the parts of the documentation that say what the code says: `python -m docs.generate`.

They stand in the pages between `<!-- generated: NAME -->` and `<!-- end -->`; the rest of a page is
written by hand. `tests/docs/test_docs.py` fails if a page is not what this makes of it. The JSON
Schema of the config is written into the package, where editors find it as a file.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llmux import errors
from llmux.config import config_schema, editor_schema
from llmux.config.models import NEEDS_SLEEP
from llmux.config.recipes import Parameter, find_recipe, recipe_names
from llmux.config.schema import SCHEMA_FILE
from llmux.errors import LlmuxError
from llmux.http.paths import PASSIVE, PASSIVE_PATHS
from llmux.observe.metrics import Metrics
from llmux.observe.outlook_series import OutlookGauges
from llmux.switching.reload import FIXED

DOCS = Path(__file__).parent


MIB = 1 << 20

WHILE_ASLEEP = {"port", "host", "url", "recipe", "with", *NEEDS_SLEEP}
"""Keys of a model: its address is made of the first three, its variables of the next two."""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# ---- The config ----


def config_tables() -> str:
    """A heading and a table for each section of the config."""
    schema = config_schema()
    parts = []
    for path, section in sections(schema["$defs"], "", schema["$ref"]):
        required = section.get("anyOf", [section])
        rows = (
            (
                f"`{key}`",
                kind(shape, unit(path, key)),
                needed(key, required) or default(shape),
                shape["description"],
                reload(path, key),
            )
            for key, shape in section["properties"].items()
        )
        title = f"`{path}`" if path else "The file"
        head = ("key", "type", "default", "meaning", "on reload")
        parts += [f"## {title}", section["description"], table(head, rows)]
    return "\n\n".join(parts)


def needed(key: str, ways: list[dict[str, Any]]) -> str:
    """Whether a key is required, or is unless the section is written in another way."""
    if key not in ways[0].get("required", ()):
        return ""
    others = [f"`{other}`" for way in ways[1:] for other in way["required"]]
    return " or ".join(["required", *others])


def sections(defs: dict[str, Any], path: str, ref: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A section and those below it, each with its path in the file."""
    section = defs[ref.rpartition("/")[2]]
    yield path, section
    for key, shape in section["properties"].items():
        inner = shape.get("additionalProperties")
        name = ".NAME" if isinstance(inner, dict) else ""
        items = shape.get("items", {})
        name = "[]" if items else name
        for below in (shape, inner if name == ".NAME" else {}, *variants(shape), *variants(items)):
            if "$ref" in below:
                yield from sections(defs, f"{path}.{key}{name}".lstrip("."), below["$ref"])


def variants(shape: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The shapes of which a value has one."""
    found: Iterable[dict[str, Any]] = shape.get("anyOf", ())
    return found


def unit(path: str, key: str) -> str:
    """What a number counts; empty: things."""
    if key.endswith("_secs") or path.endswith("hook_timeouts"):
        return "seconds"
    return "bytes" if key.endswith("_bytes") else ""


def kind(shape: dict[str, Any], unit: str = "") -> str:
    """A type as people say it."""
    if "anyOf" in shape:
        return ", or ".join(kind(choice, unit) for choice in shape["anyOf"])
    if "enum" in shape:
        return " or ".join(f"`{choice}`" for choice in shape["enum"])
    if "$ref" in shape:
        return "section"
    if shape.get("type") == "array":
        return f"list of: {kind(shape['items'])}"
    if "required" in shape:
        return f"`{{{shape['required'][0]}: …}}`"
    words = {"object": "mapping", "boolean": "true or false", "integer": "integer"}
    name = shape.get("type", "anything")
    name = name[0] if isinstance(name, list) else name  # the others are other ways to write it
    word = words.get(name, name)
    limits = [
        f"{sign} {shape[limit]:,}"
        for limit, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if limit in shape
    ]
    return " ".join([unit if unit and word in {"number", "integer"} else word, *limits])


def default(shape: dict[str, Any]) -> str:
    """What a key has that the file does not give."""
    if "default" not in shape or "$ref" in shape:
        return "see below" if "$ref" in shape else "see its meaning"
    value = shape["default"]
    if isinstance(value, list | tuple) and tuple(value) == PASSIVE_PATHS:
        return "[these](http-api.md#paths-that-only-look)"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_large = isinstance(value, int) and value >= MIB
    return f"`{json.dumps(value)}`" + (f" ({value // MIB:,} MiB)" if is_large else "")


def reload(path: str, key: str) -> str:
    """When another value counts."""
    if f"{path}.{key}".lstrip(".") in FIXED:
        return "**restart**"
    if path in FIXED:
        return "restart"
    if path == "models.NAME" and key in WHILE_ASLEEP:
        return "once asleep"
    if path == "models.NAME" and key == "group":
        return "if not in use"
    return "at once"


# ---- Metrics ----


def metrics_table() -> str:
    """Every series, as its own code describes it."""
    metrics = Metrics()
    metrics.watch_counts(dict)
    metrics.watch_site(is_healthy=lambda: True, is_cordoned=lambda: False, queue_limit=lambda: 0)
    metrics.watch_outlook(lambda: OutlookGauges({}, 0, 0, (), (), 0))
    metrics.watch_gpus(list)
    metrics.watch_memory(dict)
    metrics.watch_certificate(lambda: 0.0)
    rows = (
        (f"`{name}`", family.type, labels(source, family), family.documentation)
        for source in metrics.registry._collector_to_names  # noqa: SLF001 - no public way
        for family in source.collect()
        for name in [family.name + ("_total" if family.type == "counter" else "")]
        if not name.startswith("process_")  # the client library's, and the system's
    )
    return table(("series", "type", "labels", "meaning"), sorted(rows))


def labels(*sources: object) -> str:
    """The label names that the first of these which has some declares."""
    found = (getattr(thing, "_labelnames", None) for thing in sources)
    names = next(each for each in found if each is not None)
    return ", ".join(f"`{name}`" for name in names) or "-"


# ---- Errors ----


def errors_table() -> str:
    """Every status and code that llmux itself answers with."""
    kinds = (
        error
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, LlmuxError) and error is not LlmuxError
    )
    causes: dict[tuple[int, str], list[str]] = {}
    elsewhere: set[tuple[int, str]] = set()
    for error in sorted(kinds, key=lambda error: (error.status, error.code)):
        said = (inspect.getdoc(error) or "").partition("\n")[0]
        causes.setdefault((error.status, error.code), []).append(said)
        if error.may_be_served_elsewhere:
            elsewhere.add((error.status, error.code))
    rows = (
        (str(key[0]), f"`{key[1]}`", "yes" if key in elsewhere else "", " ".join(said))
        for key, said in causes.items()
    )
    return table(("status", "`code`", "elsewhere", "when"), rows)


# ---- Paths ----


def passive_table() -> str:
    """The paths that only look at a model by default, and why."""
    rows = ((", ".join(f"`{path}`" for path in paths), why) for why, paths in PASSIVE)
    return table(("path", "why"), rows)


# ---- Recipes ----


def recipes_tables() -> str:
    """A heading and a table for each recipe."""
    parts = []
    for name in recipe_names():
        recipe = find_recipe(name, Path())
        page = f"[What it does](../hooks/{name})."
        rows = (
            (
                f"`{key}`",
                parameter_kind(each),
                "required" if each.required else stated(each.default),
                each.doc + ".",
                f"`{recipe.variable_of(key)}`" if each.variable else "-",
            )
            for key, each in recipe.parameters.items()
        )
        description = recipe.file.description
        head = ("parameter", "type", "default", "meaning", "variable")
        parts += [
            f"### {name}",
            f"{as_sentence(description)}. {page}",
            table(head, rows),
        ]
    return "\n\n".join(parts)


def as_sentence(text: str) -> str:
    """Begin with a capital, except where the first word is a name such as vLLM or llama.cpp."""
    is_name = not re.match(r"[a-z]+(?= )", text)
    return text if is_name else text[0].upper() + text[1:]


def stated(default: str | int | bool | None) -> str:
    text = default if isinstance(default, str) else json.dumps(default)
    return f"`{text}`" if text and default is not None else "-"


def parameter_kind(parameter: Parameter) -> str:
    """The type of a parameter, or its allowed values."""
    return " or ".join(f"`{choice}`" for choice in parameter.choices) or parameter.type


PARTS: dict[str, Callable[[], str]] = {
    "config": config_tables,
    "metrics": metrics_table,
    "errors": errors_table,
    "passive": passive_table,
    "recipes": recipes_tables,
}


def renew(text: str) -> str:
    """Return a page with its generated parts replaced."""
    return re.sub(
        r"(<!-- generated: (\w+) -->\n).*?(?=<!-- end -->)",
        lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n",
        text,
        flags=re.DOTALL,
    )


def pages() -> list[Path]:
    """The pages that have generated parts."""
    return [page for page in sorted(DOCS.glob("*.md")) if "<!-- generated:" in page.read_text()]


def schema_text() -> str:
    """The config's JSON Schema, as `llmux schema` prints it."""
    return json.dumps(editor_schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text())
    for page in pages():
        page.write_text(renew(page.read_text()))
