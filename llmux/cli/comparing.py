"""What `llmux simulate` and `llmux replay` share: policies to compare, a plot, progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from llmux.config import PolicyConfig
from llmux.errors import ConfigError
from llmux.policy import POLICIES, Policy, load_policy
from llmux.simulate.outcome import Outcome
from llmux.simulate.report import NoPlots, plot, plot_formats


def _parse_policies(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if name not in POLICIES and ":" not in name:
            known = ", ".join(POLICIES)
            raise click.BadParameter(
                f"unknown policy {name!r} (one of: {known}; or package.module:Class)"
            )
    if not names:
        raise click.BadParameter(f"names none (of: {', '.join(POLICIES)})")
    return names


def policy_from(config: PolicyConfig) -> Policy:
    """Create a policy; report an error in it as a command line error."""
    with policy_errors():
        return load_policy(config, Path.cwd())


@contextmanager
def policy_errors() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise click.BadParameter(str(error).removeprefix("policy.name: ")) from None


def _check_plot_path(
    _context: click.Context, _option: click.Parameter, path: Path | None
) -> Path | None:
    """Reject a file that cannot be plotted to, before the simulations run."""
    if path is None:
        return None
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no directory '{path.parent}'")
    try:
        formats = plot_formats()
    except NoPlots as error:
        raise click.ClickException(error.message) from None
    if path.suffix and path.suffix[1:].lower() not in formats:
        raise click.BadParameter(f"{path.suffix!r} is none of: {', '.join(formats)}")
    return path


policies_option = click.option(
    "--policy",
    "policies",
    default="fifo,exhaustive,adaptive",
    show_default=True,
    callback=_parse_policies,
    help="Policies to compare, separated by commas.",
)
plot_option = click.option(
    "--plot",
    "plot_to",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=_check_plot_path,
    help="Plot when each model was awake (needs llmux-proxy[plot]).",
)


def plot_if_asked(outcomes: dict[str, Outcome], plot_to: Path | None) -> None:
    if plot_to is None:
        return
    try:
        plot(outcomes, plot_to)
    except (OSError, RuntimeError, ValueError) as error:
        raise click.ClickException(f"--plot: {error}") from None


@contextmanager
def progress_bar(name: str, length: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; call the result with the number of requests answered."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    done = 0
    with click.progressbar(length=length, label=name, file=sys.stderr) as bar:

        def note(count: int) -> None:
            nonlocal done
            bar.update(count - done)
            done = count

        yield note
