"""The routing phase: find the model, and the backend, that a request is for."""

from __future__ import annotations

from llmux.config import Config
from llmux.errors import IdNotFound, ModelNotFound, NoModel, PathNotFound
from llmux.http.clients import ClientLines
from llmux.http.paths import UPSTREAM, PassivePaths, merged, own_path, tidy
from llmux.openai.endpoints import wrong_path
from llmux.openai.headers import header
from llmux.openai.naming import Named, find_model
from llmux.openai.ollama import name_to_show
from llmux.proxy.journey import Journey
from llmux.proxy.makers import Makers
from llmux.proxy.stored import id_of, makes_stored
from llmux.proxy.upstreams import Upstreams
from llmux.switching.hints import NEVER_SWITCH, NO_HINTS, PASSIVE, Hints, read_hints
from llmux.switching.switchboard import Switchboard


class Router:
    """Finds the model of each request.

    Args:
        config: The first config.
        board: The models.
        upstreams: Their backends.
        lines: Places in line, by client.
        pseudonym: Name of this llmux in the `Via` of requests that it has forwarded.
    """

    def __init__(
        self,
        config: Config,
        board: Switchboard,
        upstreams: Upstreams,
        lines: ClientLines,
        pseudonym: bytes,
    ) -> None:
        self._board = board
        self._upstreams = upstreams
        self._lines = lines
        self._pseudonym = pseudonym
        self.makers = Makers(config.limits.remembered_ids)
        self.apply(config)

    def apply(self, config: Config) -> None:
        self._names, self._listed = config.names, config.listed
        self._default_model = config.default_model
        self._passive = {name: PassivePaths(config.passive_of(name)) for name in config.models}
        self._takes_hints = config.policy.client_hints
        self.makers.limit(config.limits.remembered_ids)

    def route(self, journey: Journey) -> None:
        """Set the request's model, its stay there, its upstream and the target to forward.

        Raises:
            ModelNotFound, NoModel, IdNotFound: No model is found, and the fallback does not
                get the request.
            PathNotFound: No server has this path.
            LoopDetected: This llmux has forwarded the request before.
            BadRequest: Which model the request is for is ambiguous, or not readable.
        """
        lane, fields = journey.lane, journey.fields
        try:
            named, model = self._find(journey)
        except (NoModel, ModelNotFound) as missing:
            if isinstance(missing, NoModel) and self._upstreams.fallback is None:
                _check_path(lane.target, may_be_unversioned=True)
            fallback = self._upstreams.fallback_for(missing)
            is_named = isinstance(missing, ModelNotFound)
            fields.check_foreign(
                lambda name: self._names.find(name) is not None, names_model=is_named
            )
            journey.upstream, journey.target = fallback, tidy(lane.target)
        else:
            upstream = self._upstreams[model]
            is_raw = named.target is not lane.target or upstream.has_unversioned_paths
            _check_path(named.target, may_be_unversioned=is_raw)
            journey.model, journey.asked = model, named.name
            journey.upstream, journey.target = upstream, tidy(named.target)
            if named.target is not lane.target and _lacks_slash(named.target, lane.target):
                # Without the slash, relative links would lose the last segment, the model's name.
                # An upgrade returns no page.
                journey.redirects = not lane.upgrade
            journey.serving = self._board.serving(
                model,
                lane.cut_scope,
                self._hints(journey, named.target),
                request=journey.id,
                place=self._lines.place(journey.client),
            )
            if journey.trace is not None:
                journey.trace.named(named.name, model, journey.serving)
        if not journey.redirects and makes_stored(
            lane.method, journey.target, stores=fields.stores
        ):
            self.makers.watch(journey)

    def _find(self, journey: Journey) -> tuple[Named, str]:
        """Return the name and target as the request has them, and the model; see `find_model`."""
        lane = journey.lane
        try:
            named = find_model(
                lane.target, lane.headers, journey.fields, self._names, self._pseudonym
            )
        except NoModel:
            if name := name_to_show(lane.target, lane.body.data):
                return self._known(Named(name, lane.target))
            model = self._model_of_unnamed(journey)
            return Named(model, lane.target), model
        return self._known(named)

    def _known(self, named: Named) -> tuple[Named, str]:
        """Return a name and its model; raises ModelNotFound."""
        model = self._names.find(named.name)
        if model is None:
            raise ModelNotFound(named.name, self._listed)
        return named, model

    def _model_of_unnamed(self, journey: Journey) -> str:
        """Return the maker of a stored object that the request refers to, else the default model.

        Raises:
            NoModel: There is no default model, or the fallback made the object.
            IdNotFound: No model here is known to have made the object.
            BadRequest: The body may name a model, but cannot be read.
        """
        lane, fields, fallback = journey.lane, journey.fields, self._upstreams.fallback
        path = lane.target.partition(b"?")[0]
        if path == b"*" or own_path(path) is not None or merged(path).startswith(UPSTREAM):
            raise NoModel
        in_path = id_of(lane.target)
        ids = [in_path, *fields.mentions] if in_path else fields.mentions
        for each in ids:
            maker = self.makers.find(each)
            if maker is not None and maker in self._names:
                return self._names[maker]
            if maker == "" and fallback is not None:
                raise NoModel
        if ids:
            if in_path and not lane.body.data and fallback is not None:
                raise NoModel  # safe to ask the fallback: without a body only the id leaves llmux
            raise IdNotFound(ids[0])
        if self._default_model is None:
            raise NoModel
        fields.check_read(names_model=False)
        return self._names[self._default_model]

    def _hints(self, journey: Journey, target: bytes) -> Hints:
        lane = journey.lane
        passive = self._passive.get(journey.model)
        if passive is not None and not lane.upgrade and passive.has(target):
            return PASSIVE
        if self._takes_hints:
            return read_hints(lane.headers)
        # Needs no permission: a client that wants no switch takes nothing from others.
        stays_put = header(lane.headers, b"x-llmux-switch").lower() == b"never"
        return NEVER_SWITCH if stays_put else NO_HINTS


def _check_path(target: bytes, *, may_be_unversioned: bool) -> None:
    """Raise PathNotFound if no model server has this path.

    Args:
        target: To be forwarded.
        may_be_unversioned: True if this server may have OpenAI's paths without their version.
    """
    wrong = wrong_path(target)
    if wrong is not None and (wrong.is_sure or not may_be_unversioned):
        asked, right = target.partition(b"?")[0].decode("latin-1"), wrong.right.decode("latin-1")
        raise PathNotFound(asked, right, is_sure=wrong.is_sure)


def _lacks_slash(target: bytes, asked: bytes) -> bool:
    """Return whether a path names a backend's root without the slash, as `/upstream/NAME` does."""
    root, path = target.partition(b"?")[0], asked.partition(b"?")[0]
    return root == b"/" and not path.endswith(b"/")
