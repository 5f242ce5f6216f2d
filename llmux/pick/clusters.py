"""Envoy's clusters: the hosts, their order as homes, the picker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmux.pick.config import PickConfig, is_name, split_address
from llmux.pick.protocol import DESTINATION, LB

Json = dict[str, Any]

HOSTS, SITES, MODELS, PICKER, PICKER_WEB = "hosts", "sites", "models", "picker", "picker_web"

HEALTH_PATH = "/health/ready"


def typed(kind: str, **settings: Any) -> Json:
    """Return a typed extension's settings."""
    return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **settings}


def socket_address(text: str) -> Json:
    """Return an address as Envoy writes it."""
    host, port = split_address(text)
    return {"socket_address": {"address": host.strip("[]"), "port_value": port}}


def clusters(config: PickConfig) -> list[Json]:
    """Return all clusters."""
    made = [_hosts(config), _sites(config)]
    made += [_homes(config, name, order) for name, _, order in home_clusters(config)]
    made.append(_picker(config))
    if config.web is not None:
        made.append(_picker_web(config.web))
    made.append(_models(config))
    return made


def home_clusters(config: PickConfig) -> list[tuple[str, list[str], tuple[str, ...]]]:
    """Return a cluster for each order of homes: its name, its models, and the hosts in order."""
    by_order: dict[tuple[str, ...], list[str]] = {}
    for model, homes in config.envoy.homes.items():
        others = [host.address for host in config.addresses if host.address not in homes]
        by_order.setdefault((*homes, *others), []).append(model)
    return [
        (f"homes-{number}", models, order)
        for number, (order, models) in enumerate(by_order.items(), 1)
    ]


def _hosts(config: PickConfig) -> Json:
    """Return the cluster of all hosts, where the hash of a model's name decides on its home."""
    hashed = typed("load_balancing_policies.maglev.v3.Maglev")
    return {
        "name": HOSTS,
        **_common(config),
        "load_balancing_policy": _picked_or("maglev", hashed),
        **_everywhere(config, HOSTS),
    }


def _sites(config: PickConfig) -> Json:
    """Return the cluster of all hosts for what they answer themselves: lists, health.

    On connections of its own: after such a request, a host serves a connection in its slow lane,
    which takes twice the CPU for each request of a model.
    """
    return {"name": SITES, **_common(config), **_everywhere(config, SITES)}


def _everywhere(config: PickConfig, name: str) -> Json:
    """Return that a cluster has all hosts."""
    if config.eds_file is not None:
        source = {"path_config_source": {"path": str(config.eds_file)}}
        found = {"eds_config": source, "service_name": HOSTS}
        return {"type": "EDS", "eds_cluster_config": found}
    return _placed(name, [[host.address for host in config.addresses]])


def _homes(config: PickConfig, name: str, order: Sequence[str]) -> Json:
    """Return a cluster in which each host is a priority of its own."""
    least = typed("load_balancing_policies.least_request.v3.LeastRequest")
    return {
        "name": name,
        **_common(config),
        "load_balancing_policy": _picked_or("least_request", least),
        **_placed(name, [[each] for each in order]),
    }


def _common(config: PickConfig) -> Json:
    made: Json = {
        "connect_timeout": "2s",
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": HEALTH_PATH},
            }
        ],
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 100_000,
                    "max_pending_requests": 100_000,
                    "max_requests": 100_000,
                    "max_retries": 100_000,
                }
            ]
        },
        # If no host seems healthy, try all of them: one may have come back just now.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
    }
    if config.hosts_tls is not None:
        made["transport_socket"] = _hosts_tls(config)
    return made


def _hosts_tls(config: PickConfig) -> Json:
    tls = config.hosts_tls
    assert tls is not None
    ca = "/etc/ssl/certs/ca-certificates.crt" if tls.ca is None else str(tls.ca)
    trusted: Json = {"trusted_ca": {"filename": ca}}
    context: Json = {}
    if tls.name is not None:
        context["sni"] = tls.name
        trusted["match_typed_subject_alt_names"] = [
            {"san_type": "DNS", "matcher": {"exact": tls.name}}
        ]
    context["common_tls_context"] = {"validation_context": trusted}
    return {
        "name": "tls",
        "typed_config": typed("transport_sockets.tls.v3.UpstreamTlsContext", **context),
    }


def _picked_or(name: str, fallback: Json) -> Json:
    """Return the policy that takes the picker's hosts, in order, and else another policy's.

    Only from metadata, which clients cannot send.
    """
    source = {"metadata": {"key": LB, "path": [{"key": DESTINATION}]}}
    other = {"policies": [{"typed_extension_config": {"name": name, "typed_config": fallback}}]}
    policy = typed(
        "load_balancing_policies.override_host.v3.OverrideHost",
        override_host_sources=[source],
        fallback_policy=other,
    )
    return {
        "policies": [{"typed_extension_config": {"name": "override_host", "typed_config": policy}}]
    }


def _placed(name: str, priorities: Sequence[Sequence[str]]) -> Json:
    """Return where a cluster's hosts are, by priority."""
    all_addresses = [address for each in priorities for address in each]
    has_names = any(is_name(split_address(address)[0]) for address in all_addresses)
    return {
        "type": "STRICT_DNS" if has_names else "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {
                    "priority": number,
                    "lb_endpoints": [
                        {"endpoint": {"address": socket_address(address)}} for address in addresses
                    ],
                }
                for number, addresses in enumerate(priorities)
            ],
        },
    }


def _picker(config: PickConfig) -> Json:
    options = typed(
        "upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http2_protocol_options": {}},
    )
    made: Json = {
        "name": PICKER,
        "connect_timeout": "0.25s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
        # A picker that hangs is left out after a second; one that has heard no host, too.
        "health_checks": [
            {
                "timeout": "0.5s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        **_placed(PICKER, [[config.listen]]),
    }
    if config.tls is not None:
        ca = {"validation_context": {"trusted_ca": {"filename": str(config.tls.cert)}}}
        made["transport_socket"] = {
            "name": "tls",
            "typed_config": typed(
                "transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=ca
            ),
        }
    return made


def _picker_web(address: str) -> Json:
    return {
        "name": PICKER_WEB,
        "connect_timeout": "0.25s",
        "health_checks": [
            {
                "timeout": "0.5s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/health"},
            }
        ],
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        **_placed(PICKER_WEB, [[address]]),
    }


def _models(config: PickConfig) -> Json:
    """Return who answers `GET /v1/models`: the picker for all hosts, else some host for itself."""
    names = [SITES] if config.web is None else [PICKER_WEB, SITES]
    return {
        "name": MODELS,
        "connect_timeout": "0.25s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": typed("clusters.aggregate.v3.ClusterConfig", clusters=names),
        },
    }
