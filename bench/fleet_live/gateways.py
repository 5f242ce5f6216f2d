"""Configs of Envoy for each way to choose: as `llmux pick envoy-config` prints it, less or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmux.pick.bootstrap import bootstrap
from llmux.pick.clusters import home_clusters, socket_address, typed
from llmux.pick.config import PickConfig

Json = dict[str, Any]

PICKER_FILTER = "picker"


def picked(config: PickConfig) -> Json:
    """Return the config in which a picker chooses."""
    return bootstrap(config)


def by_homes(config: PickConfig) -> Json:
    """Return the same without a picker: each model's requests go to its home."""
    made = bootstrap(config)
    manager = _manager(made)
    for filters in (manager, *manager["upgrade_configs"]):
        key = "http_filters" if "http_filters" in filters else "filters"
        filters[key] = [each for each in filters[key] if each["name"] != PICKER_FILTER]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        route.get("typed_per_filter_config", {}).pop(PICKER_FILTER, None)
    return made


def round_robin(config: PickConfig, having: Mapping[str, Sequence[str]]) -> Json:
    """Return the same without a picker, with each model's hosts in turn.

    Args:
        config: Its homes are, for each model, the hosts that have it.
        having: The same, by model.
    """
    made = by_homes(config)
    turns = typed("load_balancing_policies.round_robin.v3.RoundRobin")
    policy = {"policies": [{"typed_extension_config": {"name": "turns", "typed_config": turns}}]}
    by_name = {each["name"]: each for each in made["static_resources"]["clusters"]}
    for name, models, _ in home_clusters(config):
        places = [
            {"endpoint": {"address": socket_address(address)}} for address in having[models[0]]
        ]
        by_name[name]["load_balancing_policy"] = policy
        by_name[name]["load_assignment"]["endpoints"] = [{"lb_endpoints": places}]
    return made


def _manager(made: Json) -> Json:
    chain = made["static_resources"]["listeners"][0]["filter_chains"][0]
    manager: Json = chain["filters"][0]["typed_config"]
    return manager
