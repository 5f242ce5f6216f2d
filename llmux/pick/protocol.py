"""Names of the endpoint-picker protocol, and of `envoy-config`; apart, since they need no extra."""

from __future__ import annotations

DESTINATION = "x-gateway-destination-endpoint"
"""Header, and key of the metadata, that carry the pick (endpoint-picker protocol)."""

LB, SUBSET_HINT, OWN = "envoy.lb", "envoy.lb.subset_hint", "llmux"
"""Namespaces of metadata: for the load balancer, of the gateway's filters, of `envoy-config`."""

SUBSET = "x-gateway-destination-endpoint-subset"
