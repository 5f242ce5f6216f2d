"""The backends: one for each model, and the fallback's."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llmux.base.wildcards import Patterns
from llmux.config import Config, ModelConfig
from llmux.errors import ModelNotFound, NoModel
from llmux.openai.filtering import NO_RULES, Filters, Rules
from llmux.upstream import Backend


class Upstream:
    """The proxy's view of a model, or of the fallback: its address, and what to send along."""

    def __init__(self, backend: Backend, config: ModelConfig | None = None) -> None:
        self.backend = backend
        self.upstream_model = config.name_sent if config else None
        self.extra_headers: Mapping[str, str] = config.headers if config else {}
        idle_s = config.stream_idle_secs if config else None
        self.stream_idle_s = math.inf if idle_s is None else idle_s
        self.has_unversioned_paths = config is None or config.has_unversioned_paths
        self.websocket = config.websocket if config else None
        self.filters = filters_of(config) if config else None


def filters_of(config: ModelConfig) -> Filters | None:
    """Return the request filters of a model; None if it has none."""
    own = Rules(config.set, config.force, config.drop)
    by_name = {config.name: NO_RULES} | dict.fromkeys(config.alias_names, NO_RULES)
    for alias in config.aliases:
        if not isinstance(alias, str):
            by_name[alias.name] = Rules(alias.set, alias.force, alias.drop)
    return Filters(own, by_name) if own or any(by_name.values()) else None


class Upstreams:
    """The upstreams of the config in use, by model.

    Attributes:
        fallback: Gets requests that name no model; None if not configured.
    """

    def __init__(self, config: Config) -> None:
        self._dead_peer_s = config.limits.dead_peer_secs
        self.fallback: Upstream | None = None
        self.apply(config)
        self._by_model = {
            model.name: Upstream(self._backend_at(model.base_url), model)
            for model in config.models.values()
        }

    def __getitem__(self, model: str) -> Upstream:
        return self._by_model[model]

    def get(self, model: str, default: Upstream) -> Upstream:
        return self._by_model.get(model, default)

    def apply(self, config: Config) -> None:
        """Use the fallback of a new config; models come separately, to `use`."""
        self._foreign = Patterns({name: name for name in config.fallback_models})
        before = self.fallback.backend if self.fallback else None
        if before is None or before.base_url != config.fallback:
            if before is not None:
                before.close()  # requests in flight keep their connections
            url = config.fallback
            self.fallback = Upstream(self._backend_at(url)) if url else None

    def fallback_for(self, missing: NoModel | ModelNotFound) -> Upstream:
        """Return the fallback for a request that no model here is for; else raises the error."""
        if self.fallback is None or (
            isinstance(missing, ModelNotFound) and self._foreign.find(missing.name) is None
        ):
            raise missing
        return self.fallback

    def use(self, name: str, model: ModelConfig | None) -> None:
        """Replace a model's config, or remove the model (None)."""
        before = self._by_model.pop(name, None)
        backend = before.backend if before else None
        if backend is not None and (model is None or backend.base_url != model.base_url):
            backend.close()  # requests in flight keep their connections
            backend = None
        if model is not None:
            self._by_model[name] = Upstream(backend or self._backend_at(model.base_url), model)

    def heard_since(self, model: str, since: float) -> bool:
        """Return whether a backend has sent a byte since then (Trio's clock, seconds)."""
        upstream = self._by_model.get(model)  # a reload may just have removed it
        return upstream is not None and upstream.backend.heard_at() >= since

    def forget_idle(self, model: str) -> None:
        """Close the idle connections to a backend that is about to sleep."""
        if (upstream := self._by_model.get(model)) is not None:
            upstream.backend.close_idle()

    def close(self) -> None:
        for upstream in (*self._by_model.values(), self.fallback):
            if upstream is not None:
                upstream.backend.close()

    def _backend_at(self, url: str) -> Backend:
        return Backend(url, dead_peer_s=self._dead_peer_s)
