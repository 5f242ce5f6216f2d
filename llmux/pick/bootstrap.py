"""`llmux pick envoy-config`: a complete config of Envoy for a picker and its hosts.

Each setting that is not obvious was tried with a real Envoy (tests/pick/test_envoy.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from llmux.errors import ConfigError
from llmux.http.paths import CONTROL_PATHS
from llmux.pick.clusters import HOSTS, MODELS, SITES, clusters, home_clusters, socket_address, typed
from llmux.pick.config import PickConfig
from llmux.pick.protocol import DESTINATION, OWN, SUBSET

Json = dict[str, Any]

MODEL_HEADER = "x-llmux-model"
"""Carries the model from Envoy's filters to the picker, and to the hash of homes."""

CLIENT_HEADER = "x-llmux-client"
"""Carries the number of the client's key to the hosts."""

PICK_TIMEOUT = "0.25s"
"""Time for a pick; then, and if there is no picker, Envoy chooses by itself."""

PRIVATE = (*(path.decode() for path in CONTROL_PATHS), "/ui", "/metrics", "/logs")
"""Paths of hosts that clients of Envoy do not reach, with those below: what comes from Envoy may
come from the host's own machine, which needs no key."""

OPEN = ("/health", "/health/ready")
"""Paths that need no key, for balancers in front: whether any host would answer."""

LISTS = ("/v1/models", "/models", "/api/tags")
"""Lists of models, which the picker has of all hosts."""

PLAIN = ("/", "/api/ps", "/api/version", "/running")
"""What any host answers itself."""

HEAD = """\
# Made by `llmux pick envoy-config`. Start with: envoy -c THIS_FILE
#
# A request's model is read from its body, the picker orders the hosts, and Envoy tries them in that
# order. Without a picker, each model's requests go to its home.
"""


def bootstrap_text(config: PickConfig) -> str:
    """Return the config of Envoy as YAML.

    Raises:
        ConfigError: A home is none of the hosts.
    """
    text = yaml.safe_dump(bootstrap(config), sort_keys=False, width=100)
    return f"{HEAD}\n{text}"


def bootstrap(config: PickConfig) -> Json:
    """Return the config of Envoy; raises ConfigError."""
    _check_homes(config)
    made: Json = {
        "node": {"id": "llmux", "cluster": "llmux"},
        "static_resources": {"listeners": [_listener(config)], "clusters": clusters(config)},
    }
    if config.envoy.admin is not None:
        made["admin"] = {"address": socket_address(config.envoy.admin)}
    return made


def _check_homes(config: PickConfig) -> None:
    known = {host.address for host in config.addresses}
    if not known and config.envoy.homes:
        raise ConfigError(["envoy.homes: goes with 'hosts' only, not with 'eds_file'"])
    mistakes = [
        f"envoy.homes.{model}: {home} is none of the hosts ({', '.join(sorted(known))})"
        for model, homes in config.envoy.homes.items()
        for home in homes
        if home not in known
    ]
    if mistakes:
        raise ConfigError(mistakes)


def _listener(config: PickConfig) -> Json:
    envoy = config.envoy
    chain: Json = {"filters": [_filter("http_connection_manager", _manager(config))]}
    if envoy.tls is not None:
        files = {
            "certificate_chain": {"filename": str(envoy.tls.cert)},
            "private_key": {"filename": str(envoy.tls.key)},
        }
        chain["transport_socket"] = _filter(
            "tls",
            typed(
                "transport_sockets.tls.v3.DownstreamTlsContext",
                common_tls_context={
                    "tls_certificates": [files],
                    "alpn_protocols": ["h2", "http/1.1"],
                },
            ),
        )
    return {
        "name": "clients",
        "address": socket_address(envoy.listen),
        "filter_chains": [chain],
    }


def _manager(config: PickConfig) -> Json:
    return typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="clients",
        use_remote_address=True,
        # Routes are compared with paths as hosts read them: no `//control`, no `%63ontrol`.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="UNESCAPE_AND_FORWARD",
        # Requests wait for a switch, and streams for their model; hosts limit both.
        stream_idle_timeout="3600s",
        request_timeout="0s",
        # What clients may not say: the pick, the model, who they are, and how Envoy retries.
        early_header_mutation_extensions=[
            _filter(
                "header_mutation",
                typed(
                    "http.early_header_mutation.header_mutation.v3.HeaderMutation",
                    mutations=[{"remove": name} for name in _forbidden(config)]
                    + [{"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}}],
                ),
            )
        ],
        # A WebSocket has no body to wait for.
        upgrade_configs=[
            {"upgrade_type": "websocket", "filters": list(_filters(config, has_body=False))}
        ],
        http_filters=list(_filters(config, has_body=True)),
        route_config=_routes(config),
    )


ORIGINS = ("forwarded", "x-real-ip", "x-forwarded-host")
"""Headers that claim a request's origin, and that Envoy does not set itself as X-Forwarded-For:
hosts that trust Envoy would believe them."""


def _forbidden(config: PickConfig) -> list[str]:
    """Return the headers that are taken off what clients send."""
    own = [DESTINATION, SUBSET, CLIENT_HEADER, MODEL_HEADER, *ORIGINS]
    return list(dict.fromkeys([*own, *(name.lower() for name in config.model_headers)]))


def _filter(name: str, settings: Json) -> Json:
    return {"name": name, "typed_config": settings}


# ---- Filters ----


def _filters(config: PickConfig, *, has_body: bool) -> Iterator[Json]:
    if config.envoy.api_keys:
        yield _filter("api_key_auth", _key_auth(config.envoy.api_keys.texts))
    if has_body:
        yield _filter("json_to_metadata", _model_of_body())
    yield _filter("model_header", _model_header(has_body=has_body))
    yield _filter("picker", _ext_proc())
    yield _filter("router", typed("filters.http.router.v3.Router"))


def _key_auth(keys: Sequence[str]) -> Json:
    return typed(
        "filters.http.api_key_auth.v3.ApiKeyAuth",
        credentials=[
            {"key": key, "client": f"client-{number}"} for number, key in enumerate(keys, 1)
        ],
        key_sources=[{"header": "authorization"}, {"header": "x-api-key"}],
        forwarding={"header": CLIENT_HEADER, "hide_credentials": True},
    )


def _model_of_body() -> Json:
    """Read the model of a JSON body of any type: `curl -d` calls it a form."""
    found = {"metadata_namespace": OWN, "key": "model", "type": "STRING"}
    rule = {"selectors": [{"key": "model"}], "on_present": found}
    return typed(
        "filters.http.json_to_metadata.v3.JsonToMetadata",
        request_rules={
            "rules": [rule],
            "allow_content_types_regex": {"regex": ".*"},
            "allow_empty_content_type": True,
        },
    )


def _model_header(*, has_body: bool) -> Json:
    """Put the model into a header: for the hash of homes, and for other pickers."""
    from_body = f"%DYNAMIC_METADATA({OWN}:model)%"
    from_query = "%QUERY_PARAM(model)%"
    return typed(
        "filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "request_mutations": [
                {
                    "append": {
                        "header": {"key": MODEL_HEADER, "value": text},
                        "append_action": "ADD_IF_ABSENT",
                    }
                }
                for text in ([from_body] if has_body else []) + [from_query]
            ]
        },
    )


def _ext_proc() -> Json:
    return typed(
        "filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": "picker"}, "timeout": PICK_TIMEOUT},
        # Only heads, and only of requests: bodies of 20 MB failed, and responses cost twice.
        processing_mode={
            "request_header_mode": "SEND",
            "response_header_mode": "SKIP",
            "request_body_mode": "NONE",
            "response_body_mode": "NONE",
            "request_trailer_mode": "SKIP",
            "response_trailer_mode": "SKIP",
        },
        message_timeout=PICK_TIMEOUT,
        failure_mode_allow=True,
        metadata_options={
            "forwarding_namespaces": {"untyped": [OWN]},
            "receiving_namespaces": {"untyped": ["envoy.lb"]},
        },
        # Only these headers may be set by the picker.
        mutation_rules={"allow_all_routing": False, "allow_envoy": False},
    )


# ---- Routes ----


def _routes(config: PickConfig) -> Json:
    routes = [
        {
            "match": {"path_separated_prefix": path},
            "direct_response": {"status": 404},
            **_without("picker"),
        }
        for path in PRIVATE
    ]
    off = ["picker", "api_key_auth"] if config.envoy.api_keys else ["picker"]
    routes += [
        {
            "match": {"path": path},
            "route": {"cluster": SITES, "timeout": "5s"},
            **_without(*off),
        }
        for path in OPEN
    ]
    routes += [
        {
            "match": {"path_separated_prefix": path, "headers": [_is_get()]},
            "route": {"cluster": MODELS, "timeout": "5s"},
            **_without("picker"),
        }
        for path in LISTS
    ]
    routes += [
        {
            "match": {"path": path, "headers": [_is_get()]},
            "route": {"cluster": SITES, "timeout": "5s"},
            **_without("picker"),
        }
        for path in PLAIN
    ]
    for cluster, models, _ in home_clusters(config):
        routes += [
            {"match": {"prefix": "/", "dynamic_metadata": [_named(name)]}, **_to(cluster)}
            for name in models
        ]
        routes += [
            {"match": {"prefix": "/", "headers": [_has_header(name)]}, **_to(cluster)}
            for name in models
        ]
    routes.append({"match": {"prefix": "/"}, **_to(HOSTS)})
    host = {
        "name": "all",
        "domains": ["*"],
        # A body is kept whole, to read its model and to send it again to another host. Responses
        # are not: a client that reads slowly slows its host down.
        "request_body_buffer_limit": config.envoy.max_body_bytes,
        "routes": routes,
    }
    return {"name": "routes", "virtual_hosts": [host]}


def _is_get() -> Json:
    return {"name": ":method", "string_match": {"exact": "GET"}}


def _named(model: str) -> Json:
    return {
        "filter": OWN,
        "path": [{"key": "model"}],
        "value": {"string_match": {"exact": model}},
    }


def _has_header(model: str) -> Json:
    return {"name": MODEL_HEADER, "string_match": {"exact": model}}


def _without(*names: str) -> Json:
    """Switch filters off for a route."""
    off = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    settings = {name: dict(off) for name in names}
    return {"typed_per_filter_config": settings}


def _to(cluster: str) -> Json:
    return {
        "route": {
            "cluster": cluster,
            "timeout": "0s",
            "hash_policy": [{"header": {"header_name": MODEL_HEADER}}],
            "retry_policy": _retries(),
        },
        "request_headers_to_remove": [DESTINATION, MODEL_HEADER],
    }


def _retries() -> Json:
    """Try other hosts for what no host has begun to answer.

    Hosts say by a header which refusals another host may serve. Without `previous_priorities`, all
    tries would stay within one priority: with the host that is dead.
    """
    return {
        "retry_on": "connect-failure,refused-stream,reset,retriable-headers",
        "retriable_headers": [{"name": "x-llmux-retry", "string_match": {"exact": "elsewhere"}}],
        "num_retries": 8,
        "retry_back_off": {"base_interval": "0.05s", "max_interval": "1s"},
        "host_selection_retry_max_attempts": 8,
        "retry_host_predicate": [
            _filter("previous_hosts", typed("retry.host.previous_hosts.v3.PreviousHostsPredicate"))
        ],
        "retry_priority": _filter(
            "previous_priorities",
            typed(
                "retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                update_frequency=1,
            ),
        ),
    }
