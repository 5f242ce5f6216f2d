"""The messages of ext_proc, as Envoy and gateways send them."""

from __future__ import annotations

import json
from typing import Any

from llmux.errors import ModelNotFound, NoHost
from llmux.pick.exchange import Exchange
from llmux.pick.messages import FULL_DUPLEX_STREAMED, ProcessingRequest, ProcessingResponse
from llmux.pick.picking import Ask, Pick
from llmux.pick.protocol import DESTINATION


def head(
    path: str = "/v1/chat/completions", metadata: dict[str, Any] | None = None, **more: Any
) -> Any:
    headers = [{"key": ":path", "raw_value": path.encode()}]
    headers += [
        {"key": name.replace("_", "-"), "raw_value": value.encode()}
        for name, value in more.pop("headers", {}).items()
    ]
    is_last = more.pop("end_of_stream", False)
    return ProcessingRequest(
        request_headers={"headers": {"headers": headers}, "end_of_stream": is_last},
        metadata_context={"filter_metadata": metadata or {}},
        **more,
    )


def texts(**fields: str) -> dict[str, Any]:
    return {"fields": {name: {"string_value": text} for name, text in fields.items()}}


class Rig:
    """An exchange whose choice is told, and records what it is asked."""

    def __init__(self, outcome: Pick | Exception | None = None) -> None:
        self.outcome = outcome or Pick(["10.0.0.1:3000", "10.0.0.2:3000"], "a")
        self.asked: list[Ask] = []
        self.noted: list[object] = []
        self.exchange = Exchange(self.choose, ("x-llmux-model", "x-other"), self.noted.append)

    def choose(self, ask: Ask) -> Pick:
        self.asked.append(ask)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def say(self, message: Any) -> list[Any]:
        sent = ProcessingRequest.FromString(message.SerializeToString())
        answers = list(self.exchange.answers(sent))
        return [ProcessingResponse.FromString(each.SerializeToString()) for each in answers]


def destination_of(answer: Any) -> str:
    """The pick, which must be the same in the header and in the metadata."""
    option = answer.request_headers.response.header_mutation.set_headers[0]
    assert option.header.key == DESTINATION
    in_metadata = answer.dynamic_metadata.fields["envoy.lb"].struct_value.fields[DESTINATION]
    assert option.header.raw_value.decode() == in_metadata.string_value
    return str(in_metadata.string_value)


def test_the_pick_is_in_a_header_and_in_metadata() -> None:
    rig = Rig()
    [answer] = rig.say(head(metadata={"llmux": texts(model="a")}, end_of_stream=True))
    assert destination_of(answer) == "10.0.0.1:3000,10.0.0.2:3000"
    assert rig.asked[0].told == "a"
    assert rig.noted == [rig.outcome]


def test_the_model_may_be_in_a_header() -> None:
    rig = Rig()
    rig.say(head(headers={"x_other": "b"}))
    rig.say(head(headers={"x_other": "b", "x_llmux_model": "c"}))
    assert [ask.told for ask in rig.asked] == ["b", "c"]


def test_the_subset_is_a_text_or_a_list() -> None:
    rig = Rig()
    name = "x-gateway-destination-endpoint-subset"
    values = [{"string_value": "10.0.0.1:3000"}, {"string_value": "10.0.0.2:3000"}]
    for value in (
        {"string_value": "10.0.0.1:3000, 10.0.0.2:3000"},
        {"list_value": {"values": values}},
    ):
        rig.say(head(metadata={"envoy.lb.subset_hint": {"fields": {name: value}}}))
    rig.say(head())
    both = {"10.0.0.1:3000", "10.0.0.2:3000"}
    assert [ask.only for ask in rig.asked] == [both, both, None]


def test_errors_come_in_the_words_of_the_api() -> None:
    error = NoHost("a", ["cordoned"], retry_after_s=5)
    [answer] = Rig(error).say(head())
    refusal = answer.immediate_response
    assert refusal.status.code == 503
    assert json.loads(refusal.body)["error"]["code"] == "no_host"
    headers = {each.header.key: each.header.raw_value for each in refusal.headers.set_headers}
    assert headers == {"content-type": b"application/json", "retry-after": b"5"}
    [answer] = Rig(ModelNotFound("a")).say(head("/v1/messages"))
    assert json.loads(answer.immediate_response.body)["type"] == "error"  # Anthropic's


def test_later_messages_of_a_stream_pass() -> None:
    rig = Rig()
    rig.say(head())
    [answer] = rig.say(ProcessingRequest(request_body={"body": b"x", "end_of_stream": True}))
    assert answer.HasField("request_body")
    [answer] = rig.say(ProcessingRequest(request_trailers={}))
    assert answer.HasField("request_trailers")
    [answer] = rig.say(ProcessingRequest(response_headers={}))
    assert answer.HasField("response_headers")
    [answer] = rig.say(ProcessingRequest(response_body={"body": b"x"}))
    assert answer.HasField("response_body")
    [answer] = rig.say(ProcessingRequest(response_trailers={}))
    assert answer.HasField("response_trailers")


DUPLEX: dict[str, Any] = {"protocol_config": {"request_body_mode": FULL_DUPLEX_STREAMED}}


def body(data: bytes, *, is_last: bool = False) -> Any:
    return ProcessingRequest(request_body={"body": data, "end_of_stream": is_last})


def echoed(answers: list[Any], kind: str = "request_body") -> list[tuple[bytes, bool]]:
    pieces = [getattr(each, kind).response.body_mutation.streamed_response for each in answers]
    return [(piece.body, piece.end_of_stream) for piece in pieces]


def test_a_gateway_that_sends_the_body_has_its_model_read() -> None:
    """As gateways of the Gateway API's inference extension do: FULL_DUPLEX_STREAMED."""
    rig = Rig()
    assert not rig.say(head(**DUPLEX))
    text = b'{"model": "a", "user": "%s"}' % (b"x" * 100_000)
    assert not rig.say(body(text[:50_000]))
    first, *pieces = rig.say(body(text[50_000:], is_last=True))
    assert destination_of(first) == "10.0.0.1:3000,10.0.0.2:3000"
    assert rig.asked[0].body == text
    assert b"".join(data for data, _ in echoed(pieces)) == text
    assert [is_last for _, is_last in echoed(pieces)] == [False, True]


def test_a_body_with_trailers_ends_with_them() -> None:
    rig = Rig()
    rig.say(head(**DUPLEX))
    rig.say(body(b"{}"))
    first, piece, last = rig.say(ProcessingRequest(request_trailers={}))
    assert destination_of(first)
    assert echoed([piece]) == [(b"{}", False)]
    assert last.HasField("request_trailers")


def test_bodies_pass_at_once_where_the_model_is_known() -> None:
    rig = Rig()
    assert len(rig.say(head(headers={"x_other": "b"}, **DUPLEX))) == 1
    assert echoed(rig.say(body(b"abc"))) == [(b"abc", False)]
    assert echoed(rig.say(body(b"", is_last=True))) == [(b"", True)]
    answers = rig.say(ProcessingRequest(response_body={"body": b"d", "end_of_stream": True}))
    assert echoed(answers, "response_body") == [(b"d", True)]


def test_a_request_whose_head_is_all_waits_for_no_body() -> None:
    assert len(Rig().say(head(end_of_stream=True, **DUPLEX))) == 1
