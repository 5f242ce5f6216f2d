"""Create the policy that `policy.name` in the config refers to."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from llmux.config import PolicyConfig
from llmux.config.places import Source, mistaken
from llmux.policy.adaptive import AdaptivePolicy
from llmux.policy.base import Policy
from llmux.policy.classic import CostAwarePolicy, TimeSlicePolicy
from llmux.policy.exhaustive import ExhaustivePolicy
from llmux.policy.fifo import FifoPolicy

POLICIES: dict[str, Callable[[PolicyConfig], Policy]] = {
    "adaptive": AdaptivePolicy,
    "fifo": FifoPolicy,
    "exhaustive": ExhaustivePolicy,
    "cost_aware": CostAwarePolicy,
    "time_slice": TimeSlicePolicy,
}
"""The built-in policies, by name."""

OPTIONS = {"cost_aware": ("coalesce_secs", "amortization_factor")}
"""The keys of `policy.options` that built-in policies accept."""


def load_policy(
    config: PolicyConfig, directory: Path | None = None, source: Source | None = None
) -> Policy:
    """Create the policy `config.name`: a built-in one, or `package.module:Class`.

    The class is called with the `policy` section of the config; `options` in it are for the policy.
    Its module may also be in `directory`, the config file's folder. `source` is its text, for the
    places of mistakes.

    Raises:
        ConfigError: Unknown policy or option, or its constructor failed.
    """
    if directory is not None and str(directory) not in sys.path:
        sys.path.append(str(directory))
    if config.name in POLICIES and (mistakes := list(_odd_options(config))):
        raise mistaken(mistakes, source)
    try:
        policy = _find(config.name)(config)
    except _UnusableError as error:
        raise mistaken([(("policy", "name"), str(error))], source) from error
    except Exception as error:
        what = f"{config.name} cannot be made: {type(error).__name__}: {error}"
        raise mistaken([(("policy", "name"), what)], source) from error
    if not callable(getattr(policy, "decide", None)):
        what = f"{config.name} has no method `decide`"
        raise mistaken([(("policy", "name"), what)], source)
    return policy


def _odd_options(config: PolicyConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    known = OPTIONS.get(config.name, ())
    for name in config.options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            takes = f"one of: {', '.join(known)}" if known else "it takes none"
            yield ("policy", "options"), f"{config.name} has no {name!r}{hint} ({takes})"


class _UnusableError(Exception):
    pass


def _find(name: str) -> Callable[[PolicyConfig], Policy]:
    if name in POLICIES:
        return POLICIES[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        known = ", ".join(POLICIES)
        raise _UnusableError(
            f"unknown policy {name!r}{hint} (one of: {known}; or package.module:Class)"
        )
    try:
        found: Callable[[PolicyConfig], Policy] = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise _UnusableError(f"cannot import {name!r}: {error}") from error
    return found
