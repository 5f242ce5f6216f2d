"""Find the config that is used when none is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from llmux.errors import ConfigError

VARIABLE = "LLMUX_CONFIG"
"""Environment variable that names the config."""

DEFAULTS = (Path("llmux.yaml"), Path("config.yaml"))
"""Files of the working directory that are looked for, the preferred one first."""

NEAR = (Path("llmux.yml"), Path("llmux.json"), Path("config.yml"), Path("config.json"))
"""Files that may be meant, but are only used if they are named."""

ADVICE = """\
To begin:
  llmux init RECIPE   writes a config for your model server
  llmux demo          serves two stand-in models, without a GPU and without a config"""


def default_config_path(environ: Mapping[str, str]) -> Path:
    """Return the default config: `$LLMUX_CONFIG`, `./llmux.yaml` or `./config.yaml`.

    Raises:
        ConfigError: There is none of them; says what was looked for, and how to begin.
    """
    if named := environ.get(VARIABLE):
        return Path(named)
    for path in DEFAULTS:
        if path.is_file():
            return path
    raise ConfigError(["\n".join([*_looked_for(environ), ADVICE])])


def _looked_for(environ: Mapping[str, str]) -> Iterator[str]:
    names = " or ".join(f"./{path}" for path in DEFAULTS)
    variable = f"${VARIABLE} is {'empty' if VARIABLE in environ else 'not set'}"
    yield f"no config: {variable}, and there is no {names} in {_here()}; name one with -c FILE"
    for path in DEFAULTS:
        if path.exists():
            yield f"./{path} is there, but is not a file"
    for path in NEAR:
        if path.is_file():
            yield f"./{path} is there, but is not looked for: llmux -c {path}"


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "the working directory, which is gone"
