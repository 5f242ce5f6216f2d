"""What to answer to a request: pure functions of the table of hosts and of the request's head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llmux.errors import BadRequest, ModelNotFound, NoHost, NoModel
from llmux.fleet.choice import USELESS_S, HostView, choose
from llmux.http.syntax import Headers
from llmux.openai.fields import Fields, read_fields
from llmux.openai.naming import find_model
from llmux.pick.table import Table

RETRY_AFTER_S = 5


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request, as far as it matters here.

    Attributes:
        target: Its path and query.
        headers: Its headers.
        told: The model, as Envoy found it; empty: it did not.
        body: Its body; None: unknown.
        only: The endpoints to choose among; None: all.
    """

    target: bytes
    headers: Headers = ()
    told: str = ""
    body: bytes | None = None
    only: Collection[str] | None = None


@dataclass(frozen=True)
class Pick:
    """Where a request should go.

    Attributes:
        endpoints: Best first; never empty.
        model: The model that it is for, as it names it; empty: it names none.
    """

    endpoints: Sequence[str]
    model: str


def pick(
    table: Table,
    ask: Ask,
    now: float,
    *,
    refuses_unknown: bool = True,
    most: int | None = None,
) -> Pick:
    """Choose hosts for a request.

    Args:
        table: What is known of the hosts.
        ask: The request.
        now: The time, by the table's clock.
        refuses_unknown: False to let a request for a model that no host has go to any of them.
        most: Most endpoints; None: all that would do.

    Raises:
        ModelNotFound: No host knows the model, and all have been heard.
        NoHost: No host would serve it now.
    """
    views = table.views(ask.only)
    named = model_of(ask, table)
    model = table.names.find(named) if named else None
    if model is None:
        if named and refuses_unknown and table.hosts and table.is_heard_whole(now):
            raise ModelNotFound(named, table.models)
        endpoints = choose(views, named, now=now) if named else []
        endpoints = endpoints or any_host(views, now)
    else:
        # By the name that it was asked by, which may mean another model at each host.
        endpoints = choose(views, named, now=now, tied_by=model)
    if not endpoints:
        raise _no_host(views, named)
    return Pick(endpoints[:most], named)


def model_of(ask: Ask, table: Table) -> str:
    """Return the name of the model that a request is for; empty: it names none.

    The order is that of llmux: the header `model-override`, path, body, query.
    """
    try:
        if ask.body is None:
            fields = Fields(ask.told, str.encode, None)
        else:
            fields = read_fields(ask.headers, ask.body)
        return find_model(ask.target, ask.headers, fields, table.names).name
    except (NoModel, BadRequest):  # a host says what is wrong with it
        return ""


def any_host(views: Sequence[HostView], now: float) -> list[str]:
    """Return the endpoints for a request that names no model, least busy first."""
    return [view.endpoint for view in sorted(views, key=lambda view: _business(view, now))]


def _business(view: HostView, now: float) -> tuple[bool, int, str]:
    outlook = view.outlook
    if outlook is None or now - view.seen_at > USELESS_S:
        return (True, 0, view.endpoint)
    at_work = sum(model.running + model.waiting for model in outlook.models.values())
    return (outlook.state != "ready", at_work + sum(view.sent.values()), view.endpoint)


def _no_host(views: Sequence[HostView], model: str) -> NoHost:
    reasons: set[str] = set()
    for view in views:
        there = view.model(model)
        if view.outlook is not None and view.outlook.state != "ready":
            reasons.add(view.outlook.state)
        elif there is not None and there.refused is not None:
            reasons.add(there.refused)
    return NoHost(model, sorted(reasons), retry_after_s=RETRY_AFTER_S)
