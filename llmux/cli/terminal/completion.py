"""Shell completion: click's own, with the names of the running llmux."""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import BashComplete, ShellComplete, get_completion_class

from llmux.cli.terminal.failures import Failed
from llmux.cli.terminal.target import config_of, target_of
from llmux.config import default_config_path
from llmux.config.environment import decode_plainly
from llmux.errors import ConfigError

PATIENCE_S = 1.0
"""Longest wait for a running llmux after Tab."""


INSTALLING = """\b
bash: echo 'eval "$(llmux completion bash)"' >> ~/.bashrc
zsh:  echo 'eval "$(llmux completion zsh)"' >> ~/.zshrc
fish: llmux completion fish > ~/.config/fish/completions/llmux.fish"""


class WholeWords(BashComplete):
    """Bash completion for words with colons, which Bash splits: `llama3:8b`.

    The words are taken from the line instead, and the part of a name up to its last colon, which
    Bash keeps as it is, is taken off what it gets.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' type value whole prefix
    local -a line_words
    IFS=$' \\t' read -ra line_words <<< "${COMP_LINE:0:COMP_POINT}"
    if [[ "${COMP_LINE:0:COMP_POINT}" == *[[:space:]] ]]; then line_words+=(""); fi
    whole="${line_words[${#line_words[@]}-1]}"
    if [[ "$COMP_WORDBREAKS" == *:* ]]; then prefix="${whole%%"${whole##*:}"}"; fi
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case "$type" in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$prefix"}") ;;
        esac
    done < <(COMP_WORDS="${line_words[*]}" COMP_CWORD=$(( ${#line_words[@]} - 1 )) \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def source(self) -> str:
        """Return the script without a look at the installed Bash."""
        return ShellComplete.source(self)


@click.command("completion", epilog=INSTALLING)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, /, shell: str) -> None:
    """Print a script for your shell: Tab then completes.

    Commands, options, and the names of models: those of the llmux that runs, else the config's.
    """
    kind = WholeWords if shell == "bash" else get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "llmux", "_LLMUX_COMPLETE").source())


def complete_models(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Complete model names: the running llmux's, else the config's."""
    found = _ask(context, "/control/status") or _configured(context)
    models = found.get("models")
    names = []
    for name, model in models.items() if isinstance(models, dict) else ():
        aliases = model.get("aliases") if isinstance(model, dict) else None
        names += [name, *map(_name_of, aliases if isinstance(aliases, list) else ())]
    return [name for name in names if isinstance(name, str) and name.startswith(begun)]


def complete_requests(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Complete ids of requests."""
    found = _ask(context, "/control/requests") or {"requests": ()}
    ids = [request["id"] for request in found["requests"]]
    return [text for text in ids if text.startswith(begun)]


def _ask(context: click.Context, path: str) -> dict[str, Any] | None:
    """GET a path; None if llmux does not answer soon."""
    from llmux.cli.terminal.client import Client  # noqa: PLC0415

    try:
        client = Client(target_of(context), answer_s=PATIENCE_S)
        return client.decode(client.ask("GET", path), dict)
    except (Failed, click.UsageError):
        return None


def _configured(context: click.Context) -> dict[Any, Any]:
    """Return the raw config file, unchecked; empty if there is none."""
    try:
        found = decode_plainly(config_of(context) or default_config_path(os.environ))
    except ConfigError:
        return {}
    return found if isinstance(found, dict) else {}


def _name_of(alias: object) -> object:
    """Return the name of an alias of the raw file, which may be a mapping with filters."""
    return alias.get("name") if isinstance(alias, dict) else alias
