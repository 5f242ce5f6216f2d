"""Reloads at random moments, which add and remove each optional key of the config."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import trio

from bench.soak.ask import upstream_name
from bench.soak.run import BROKEN, Run
from bench.soak.settings import HOOK_S, KEY, LIMITS, POLICY
from bench.soak.sharing import lower_amounts, raise_needs
from bench.soak.stage import Member
from bench.soak.watch import DEATH_S

Config = dict[str, Any]
Change = Callable[[random.Random, Config, Member], None]
"""Changes one key of a base config, for a model or globally."""

SIGHUP_S = 2.0
"""Longest time until a reload by signal shows."""


def change_prefetch(rng: random.Random, model: Config, member: Member) -> None:
    """Add or remove a prefetch hook."""
    if model.pop("prefetch", None) is None:
        model["prefetch"] = "sleep 0.02"


def change_verify(rng: random.Random, model: Config, member: Member) -> None:
    """Add a verify_asleep hook to a model that has none of its own."""
    if not member.is_verified:
        model["verify_asleep"] = member.verify_asleep


def change_slots(rng: random.Random, model: Config, member: Member) -> None:
    """Set or remove `max_in_flight`."""
    if model.pop("max_in_flight", None) is None:
        model["max_in_flight"] = rng.choice((1, 4))


def change_aliases(rng: random.Random, model: Config, member: Member) -> None:
    """Replace a model's aliases."""
    model["aliases"] = rng.choice(([], [f"other-{member.slug}"]))


def change_timeouts(rng: random.Random, model: Config, member: Member) -> None:
    """Set the timeouts of hooks."""
    model["hook_timeouts"] = {**HOOK_S, "alive": rng.choice((1, 2)), "prefetch": None}


def change_preserving(rng: random.Random, model: Config, member: Member) -> None:
    """Declare that a model preserves its requests, which it then loses.

    Not one with a stop hook: it could not be stopped, and there is room asleep for one model only.
    """
    if "stop" not in model:
        model["preserves_in_flight"] = True
        model["sleep"] = member.hook(f"lose_requests; go_to_sleep {member.group}")


def change_needs(rng: random.Random, model: Config, member: Member) -> None:
    """Let a model need more of what models share."""
    raise_needs(rng, model)


def set_key(key: str, value: Callable[[random.Random, Member], Any]) -> Change:
    """Make a change that adds a key to a model."""

    def change(rng: random.Random, model: Config, member: Member) -> None:
        model[key] = value(rng, member)

    return change


MODEL_CHANGES: dict[str, Change] = {
    "prefetch": change_prefetch,
    "verify_asleep": change_verify,
    "max_in_flight": change_slots,
    "aliases": change_aliases,
    "hook_timeouts": change_timeouts,
    "preserves_in_flight": change_preserving,
    "upstream_model": set_key("upstream_model", lambda _, member: upstream_name(member.name)),
    "headers": set_key("headers", lambda rng, _: {"x-added": str(rng.random())}),
    "needs": change_needs,
    "idle_sleep_secs": set_key("idle_sleep_secs", lambda rng, _: rng.choice((0.5, 3))),
}


def change_policy(rng: random.Random, config: Config) -> None:
    """Change the policy and `min_active_secs`."""
    one_awake = ("fifo", "exhaustive", "cost_aware", "time_slice")
    name = rng.choice(("adaptive", *(() if "resources" in config else one_awake)))
    config["policy"] = {**POLICY, "name": name, "min_active_secs": rng.choice((0, 0.3))}
    if name == "cost_aware":
        config["policy"]["options"] = {"coalesce_secs": 0.2}


def change_policy_flags(rng: random.Random, config: Config) -> None:
    """Turn `gate` and `client_hints` on or off."""
    config["policy"] |= {"gate": rng.random() < 0.5, "client_hints": rng.random() < 0.5}


def change_limits(rng: random.Random, config: Config) -> None:
    """Lower some limits."""
    smaller = {"queued_per_model": rng.choice((5, 20)), "queued_bytes": rng.choice((4, 32)) << 20}
    config["limits"] = {**LIMITS, **smaller}


def change_groups(rng: random.Random, config: Config) -> None:
    """Set standby and preload."""
    for name, model in config["models"].items():
        if "idle_sleep_secs" not in model and rng.random() < 0.5:
            rules = {"standby": name, "standby_after_secs": rng.choice((0.5, 5)), "preload": name}
            config.setdefault("groups", {}).setdefault(model["group"], rules)


def change_keys(rng: random.Random, config: Config) -> None:
    """Require a key, which good clients always send."""
    config["api_keys"] = [KEY]
    config["forward_api_keys"] = rng.random() < 0.5
    if rng.random() < 0.5:
        config["control_keys"] = [KEY]


def change_pages(rng: random.Random, config: Config) -> None:
    """Allow some origins (CORS)."""
    config["cors_origins"] = rng.choice(("*", ["https://example.org"]))


def change_rest(rng: random.Random, config: Config) -> None:
    """Change the access log, and the grace period of a shutdown."""
    config["access_log"] = rng.random() < 0.5
    config["shutdown_grace_secs"] = rng.choice((5, 10))


SITE_CHANGES = (
    change_policy, change_policy_flags, change_limits, change_keys, change_pages, change_rest,
    lower_amounts, change_groups,
)  # fmt: skip
"""Changes outside of models. `change_groups` is last: it reads keys of models."""


class Reloads:
    """Changes the config, and makes llmux reload it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._absent: dict[str, ExitStack] = {}

    async def act(self, rng: random.Random) -> None:
        """Make one reload."""
        if self._run.llmux.is_starting:
            return
        if rng.random() < 0.05:
            await self._reload_bad(rng)
            return
        config = self.random_config(rng)
        await self._use(config, by_signal=self._run.llmux.lane == "serve" and rng.random() < 0.5)

    async def restore(self) -> None:
        """Restore the config that the run began with."""
        await self._use(self._run.stage.base_config(), by_signal=False)

    def random_config(self, rng: random.Random) -> Config:
        """Return the base config with some keys added and some removed."""
        stage = self._run.stage
        config = stage.base_config()
        for member in stage.members:
            model = config["models"][member.name]
            for key, change in MODEL_CHANGES.items():
                if rng.random() < (0.02 if key == "preserves_in_flight" else 0.15):
                    change(rng, model, member)
            if member.is_guest and rng.random() < 0.3:
                del config["models"][member.name]
        for change_site in SITE_CHANGES:
            if rng.random() < 0.25:
                change_site(rng, config)
        return config

    async def _use(self, config: Config, *, by_signal: bool) -> None:
        names = {*config["models"]}
        names |= {alias for model in config["models"].values() for alias in model["aliases"]}
        usual = {name for each in self._run.stage.members for name in (each.name, each.alias)}
        for name in usual - names - self._absent.keys():
            self._absent[name] = ExitStack()
            self._absent[name].enter_context(self._run.record.window(f"absent {name}", SIGHUP_S))
        self._run.stage.write(config)
        if by_signal:
            self._run.llmux.hang_up()
            await trio.sleep(SIGHUP_S / 4)
        elif not await self._ask(200):
            return
        for name in names & self._absent.keys():
            self._absent.pop(name).close()

    async def _reload_bad(self, rng: random.Random) -> None:
        """Check that an invalid file changes nothing."""
        before = json.loads(self._run.stage.config.read_text())
        bad = rng.choice(('{"models": ', json.dumps({**before, "prot": 1}), "[" * 5000))
        async with self._run.file_is_bad:
            self._run.stage.write(bad)
            try:
                await self._ask(400)
            finally:
                self._run.stage.write(before)

    async def _ask(self, wanted: int) -> bool:
        """POST /control/reload; returns True if llmux has answered."""
        begun_at = time.time()
        self._run.stage.note(f"reload ({wanted})", "")
        try:
            with trio.fail_after(20):
                status, body = await self._run.fetch("POST", "/control/reload")
        except (*BROKEN, trio.TooSlowError) as error:
            await trio.sleep(2 * DEATH_S)
            if not self._run.llmux.was_away(begun_at, time.time()):
                self._run.record.violations.append(f"reload: {error!r}")
            return False
        flood = self._run.record.was("flood", begun_at, time.time())
        if status != wanted and not (status == 503 and flood):
            self._run.record.violations.append(f"reload: {status} {body!r}")
        return status == wanted
