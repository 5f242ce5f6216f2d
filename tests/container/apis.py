"""The fields of Gateway API, its Inference Extension and the Prometheus Operator that our manifests use."""

from __future__ import annotations

from typing import Any


def shape(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON Schema for a mapping without other keys."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def several(items: dict[str, Any], at_most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": at_most}


TEXT = {"type": "string", "minLength": 1, "maxLength": 253}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
LABELS = {"type": "object", "additionalProperties": TEXT, "minProperties": 1}
SELECTOR = shape({"matchLabels": LABELS})
NUMBER = shape({"number": PORT})
HOSTNAME = {"type": "string", "pattern": r"^(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*$"}

# The fields in use of the APIs' references, so that no cluster and no copy of a CRD is needed. Against the
# CRDs themselves: LLMUX_CRDS, below.
SPECS = {
    "inference.networking.k8s.io/v1 InferencePool": shape(
        {
            "selector": SELECTOR,
            "targetPorts": several(NUMBER, 8),
            "endpointPickerRef": shape(
                {"name": TEXT, "port": NUMBER}, {"failureMode": {"enum": ["FailOpen", "FailClose"]}}
            ),
        }
    ),
    "gateway.networking.k8s.io/v1 Gateway": shape(
        {
            "gatewayClassName": TEXT,
            "listeners": several(
                shape(
                    {"name": TEXT, "port": PORT, "protocol": {"enum": ["HTTP", "HTTPS", "TLS"]}},
                    {
                        "hostname": HOSTNAME,
                        "tls": shape(
                            {"certificateRefs": several(shape({"name": TEXT}), 64)},
                            {"mode": {"enum": ["Terminate", "Passthrough"]}},
                        ),
                    },
                ),
                64,
            ),
        }
    ),
    "gateway.networking.k8s.io/v1 HTTPRoute": shape(
        {
            "parentRefs": several(shape({"name": TEXT}, {"sectionName": TEXT}), 32),
            "hostnames": several(HOSTNAME, 16),
            "rules": several(
                shape(
                    {
                        "matches": several(
                            shape(
                                {
                                    "path": shape(
                                        {
                                            "type": {"enum": ["Exact", "PathPrefix"]},
                                            "value": {"type": "string", "pattern": "^/"},
                                        }
                                    )
                                }
                            ),
                            64,
                        ),
                        "backendRefs": several(
                            shape({"name": TEXT}, {"group": TEXT, "kind": TEXT, "port": PORT}), 16
                        ),
                    },
                    {
                        "timeouts": shape(
                            {},
                            {
                                "request": {
                                    "type": "string",
                                    "pattern": r"^(\d{1,5}(h|m|s|ms)){1,4}$",
                                }
                            },
                        )
                    },
                ),
                16,
            ),
        }
    ),
    "monitoring.coreos.com/v1 PodMonitor": shape(
        {
            "selector": SELECTOR,
            "podMetricsEndpoints": several(
                shape(
                    {"port": TEXT, "path": {"type": "string", "pattern": "^/"}},
                    {
                        "authorization": shape(
                            {"credentials": shape({"name": TEXT, "key": TEXT})}, {"type": TEXT}
                        )
                    },
                ),
                64,
            ),
        }
    ),
}


def strict(schema: Any) -> Any:
    """A CRD's schema in which a field that it does not know is a mistake."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if (
        isinstance(schema.get("properties"), dict)
        and schema.get("type") == "object"
        and not is_open
    ):
        made["additionalProperties"] = False
    return made
