"""llmux.openai and llmux.openai.forms: which model a request names, what passes on, llmux's answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.errors import BadRequest, LlmuxError, ModelNotFound, NoModel, QueueFull
from llmux.http.paths import own_path
from llmux.openai import jsonbody, scanning
from llmux.openai import naming as openai
from llmux.openai.answers import error_answer, model_list, model_object
from llmux.openai.fields import read_fields
from llmux.openai.headers import request_headers, response_headers
from llmux.openai.naming import Named

Pairs = list[tuple[bytes, bytes]]

NAMES = {"llama": "llama", "facebook": "x", "facebook/opt-125m": "x", "qwen:7b": "x", "é": "x"}
FORM = b"application/x-www-form-urlencoded"
MULTIPART = b'multipart/form-data; charset=utf-8; boundary="b=="'
TARGET = b"/v1/chat/completions"


def named(body: bytes, content_type: bytes = b"", target: bytes = TARGET) -> str:
    """The model that a request names, or the code of its error."""
    try:
        return find_model(target, [(b"Content-Type", content_type)], body, NAMES).name
    except LlmuxError as error:
        return error.code


def find_model(target: bytes, headers: Pairs, body: bytes, names: Any) -> Named:
    return openai.find_model(target, headers, read_fields(headers, body), names)


def rewrite_model(body: bytes, headers: Pairs, to: str) -> bytes:
    return read_fields(headers, body).replace(body, to, lambda _: True)


def rewritten(body: bytes, content_type: bytes = b"", to: str = "org/new") -> bytes:
    return rewrite_model(body, [(b"content-type", content_type)], to)


def multipart(*parts: bytes) -> bytes:
    return b"".join(b"--b==\r\n" + part + b"\r\n" for part in parts) + b"--b==--\r\n"


def field(value: bytes, disposition: bytes = b'form-data; name="model"') -> bytes:
    return b"Content-Disposition: " + disposition + b"\r\n\r\n" + value


# ---- The order ----


def test_the_first_place_that_names_a_model_counts() -> None:
    headers = [(b"Content-Type", FORM)]
    override = (b"Model-Override", b" by-header ")
    target = b"/upstream/by-path/v1/x?model=by-query"
    body = b'{"model": "by-json"}'

    assert find_model(target, [*headers, override], body, NAMES) == Named("by-header", target)
    by_path = Named("by-path", b"/v1/x?model=by-query")
    assert find_model(target, headers, body, NAMES) == by_path
    target = b"/v1/x?model=by-query"
    assert find_model(target, headers, body, NAMES) == Named("by-json", target)
    assert find_model(target, headers, b"model=by-form", NAMES) == Named("by-form", target)
    assert find_model(target, headers, b"", NAMES) == Named("by-query", target)
    with pytest.raises(NoModel):
        find_model(b"/v1/x", headers, b"", NAMES)


def test_an_empty_name_is_no_name() -> None:
    headers = [(b"model-override", b" "), (b"content-type", FORM)]
    target = b"/upstream//v1?model=&x=1&model=by-query"
    assert find_model(target, headers, b'{"model": ""}', NAMES) == Named("by-query", target)
    assert find_model(target, headers, b"model=", NAMES) == Named("by-query", target)
    assert find_model(target, headers, b"model=by-form", NAMES) == Named("by-form", target)


@pytest.mark.parametrize(
    ("value", "name"),
    [(b"a%20b/c", "a%20b/c"), ("é".encode(), "é"), ("é".encode("latin-1"), "é")],
)
def test_the_override_is_taken_as_it_is(value: bytes, name: str) -> None:
    assert find_model(TARGET, [(b"MODEL-OVERRIDE", value)], b"", NAMES).name == name


@pytest.mark.parametrize(
    ("target", "name", "rest"),
    [
        (b"/upstream/llama", "llama", b"/"),
        (b"/upstream/llama/", "llama", b"/"),
        (b"/upstream/llama?x=1", "llama", b"/?x=1"),
        (b"/upstream/llama//v1/%41//?a=%2F?b", "llama", b"//v1/%41//?a=%2F?b"),
        (b"/upstream/facebook/opt-125m/v1/x", "facebook/opt-125m", b"/v1/x"),
        (b"/upstream/facebook%2Fopt-125m/v1/x", "facebook/opt-125m", b"/v1/x"),
        (b"/upstream/facebook/opt%2D125m", "facebook/opt-125m", b"/"),
        (b"/upstream/facebook/opt/v1/x", "facebook", b"/opt/v1/x"),
        (b"/upstream/qwen:7b/v1/x", "qwen:7b", b"/v1/x"),
        (b"/upstream/qwen%3a7b/v1/x", "qwen:7b", b"/v1/x"),
        (b"/upstream/%C3%A9/x", "é", b"/x"),
        (b"/upstream/%E9/x", "é", b"/x"),
        (b"/upstream/no/such/model", "no", b"/such/model"),
        (b"/upstream/no%2Fsuch/model", "no/such", b"/model"),
        (b"/upstream/llama%", "llama%", b"/"),
    ],
)
def test_a_path_names_the_longest_known_model(target: bytes, name: str, rest: bytes) -> None:
    assert find_model(target, [], b'{"model": "other"}', NAMES) == Named(name, rest)


@pytest.mark.parametrize("target", [b"/upstream", b"/upstream/", b"/upstreams/llama", b"*"])
def test_paths_that_name_no_model(target: bytes) -> None:
    assert named(b'{"model": "a"}', target=target) == "a"
    assert named(b"", target=target) == "no_model"


def test_a_path_where_no_model_is_known() -> None:
    assert find_model(b"/upstream/a/b", [], b"", {}) == Named("a", b"/b")


@pytest.mark.parametrize(
    ("query", "name"),
    [
        (b"model=a", "a"),
        (b"x=1&model=a%2Fb+c&y", "a/b c"),
        (b"m%6Fdel=a", "a"),
        (b"model=%C3%A9", "é"),
        ("model=é".encode(), "é"),
        (b"model=a&model=b", "a"),
        (b"xmodel=a&model2=b&model&model%3D=c", "no_model"),
        (b"x?model=a", "no_model"),
        (b"", "no_model"),
    ],
)
def test_query(query: bytes, name: str) -> None:
    assert named(b"", target=b"/v1/audio?" + query) == name


# ---- JSON ----


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"a"}', "a"),
        (b' \r\n\t{ "x" : 1 , "model" \n:\t"a" } ', "a"),
        (b'{"mod\\u0065l":"a"}', "a"),
        (b'{"\\u006dod\\u0065\\u006C":"\\u0061\\n"}', "a\n"),
        ('{"model":"é"}'.encode(), "é"),
        (b'{"messages":[{"model":"b"}],"model":"a"}', "a"),
        (b'{"model":"a","x":{"model":"b","y":[{"model":"c"}]}}', "a"),
        (b'{"x":"\\"model\\": \\"b\\"","y\\"model":1,"model":"a"}', "a"),
        (b'{"x":"[{\\\\","model":"a","y":{"model":2}}', "a"),
        # The same twice, however it is written.
        (b'{"model":"a","model":"a"}', "a"),
        (b'{"model":"a","mod\\u0065l":"\\u0061"}', "a"),
        # Two that differ.
        (b'{"model":"a","model":"b"}', "bad_request"),
        (b'{"model":"a","m\\u006fdel":"b"}', "bad_request"),
        (b'{"model":"a","x":["model"],"model":"b"}', "bad_request"),
        (b'{"model":"a","model":null}', "bad_request"),
        (b'{"model":["a"],"model":"a"}', "bad_request"),
        (b'{"model":"a","model":{"model":"a"}}', "bad_request"),
        # No string.
        (b'{"model":null}', "no_model"),
        (b'{"model":["a"]}', "no_model"),
        (b'{"model":{"model":"a"}}', "no_model"),
        (b'{"x":{"model":"a"},"y":{"model":"b"}}', "no_model"),
        (b'{"Model":"a"}', "no_model"),
        # No JSON object.
        (b'[{"model":"a"}]', "no_model"),
        (b'"model"', "no_model"),
        (b'{"model":"a"', "bad_request"),
        (b'{"model":"a"} {}', "bad_request"),
        (b'{"model":"a",}', "bad_request"),
        (b"{'model':'a'}", "bad_request"),
        (b'{"model":"a","x":' + b"[" * 100_000, "bad_request"),
        (b'{"model":' * 100_000, "bad_request"),
        # What msgspec refuses, and some servers take: tests/openai/test_lenient_json.py.
        (b'{"model":"a","x":NaN}', "a"),
        (b'{"model":"a","x":"\xff"}', "a"),
        (b'{"model":"\xff"}', "\ufffd"),
        (b'{"model":"a","x":"\\ud800"}', "a"),
        (b'\xef\xbb\xbf{"model":"a"}', "a"),
        ('{"model":"a"}'.encode("utf-16-le"), "a"),
        (b'{"model":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "a"),
    ],
)
def test_json(body: bytes, name: str) -> None:
    assert named(body) == name
    assert named(body, FORM) == name


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (b'{"model":"a"}', b'{"model":"org/new"}'),
        (b'{ "x":1.0,"mod\\u0065l" : "a\\"" }', b'{ "x":1.0,"mod\\u0065l" : "org/new" }'),
        (b'{"model":"a","model":"a"}', b'{"model":"org/new","model":"org/new"}'),
        (b'{"x":[{"model":"a"}],"model":"a"}', b'{"x":[{"model":"a"}],"model":"org/new"}'),
        # Another place has named the model.
        (b'{"model":null}', b'{"model":"org/new"}'),
        (b'{"model":-1.5e3,"model":"a"}', b'{"model":"org/new","model":"org/new"}'),
        (b'{"model":{"model":"a"}}', b'{"model":{"model":"a"}}'),
        (b'{"x":{"model":"a"}}', b'{"x":{"model":"a"}}'),
        (b'{"model":"a"', b'{"model":"a"'),
        (b"model=a", b"model=a"),
        (b"", b""),
    ],
)
def test_rewriting_json(body: bytes, after: bytes) -> None:
    assert rewritten(body) == after


def test_a_name_is_escaped_where_json_or_a_form_wants_it() -> None:
    assert json.loads(rewritten(b'{"model":"a"}', to='é"\\\n')) == {"model": 'é"\\\n'}
    assert rewritten(b"model=a&x=1", FORM, to="é &=+:7b") == b"model=%C3%A9%20%26%3D%2B:7b&x=1"
    assert rewritten(multipart(field(b"a")), MULTIPART, to="é &") == multipart(
        field("é &".encode())
    )


def test_a_json_body_is_no_form() -> None:
    """Plain `curl -d` sends JSON as a form."""
    body = b'{"prompt":"x&model=b&y"}'
    assert named(body, FORM) == "no_model"
    assert rewritten(body, FORM) == body


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":[' + b'{"model":1},' * scanning.MAX_MATCHES + b'1],"model":"a"}',
        b'{"model":"a","x":[' + b'[""],' * 1000 + b'{"model":"b"}]}',
    ],
)
def test_json_that_would_hold_up_everyone_is_refused(
    monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(jsonbody, "MAX_STRINGS", 1000)
    json.loads(body)
    assert named(body) == "bad_request"
    with pytest.raises(BadRequest):
        rewritten(body)


TEXT = st.text(st.sampled_from('model"\\{}[],:aé\n'), max_size=12) | st.just("model")
WHITE = st.text(st.sampled_from(" \t\r\n"), max_size=2)


@st.composite
def string_text(draw: st.DrawFn, value: str) -> str:
    """A JSON string, with any of its characters escaped."""
    pieces = [json.dumps(letter, ensure_ascii=draw(st.booleans()))[1:-1] for letter in value]
    for i, letter in enumerate(value):
        if draw(st.booleans()):
            pieces[i] = f"\\u{ord(letter):04{draw(st.sampled_from('xX'))}}"
    return '"' + "".join(pieces) + '"'


@st.composite
def value_text(draw: st.DrawFn, depth: int = 3) -> str:
    kind = draw(st.sampled_from(["scalar", "string", "array", "object"] if depth else ["string"]))
    if kind == "scalar":
        return draw(st.sampled_from(["1", "-0.5e+3", "true", "false", "null"]))
    if kind == "string":
        return draw(string_text(draw(TEXT)))
    if kind == "array":
        items = draw(st.lists(value_text(depth - 1), max_size=3))
        return (
            "[" + ",".join(draw(WHITE) + item + draw(WHITE) for item in items) + draw(WHITE) + "]"
        )
    return "".join(draw(members(depth - 1)))


@st.composite
def members(draw: st.DrawFn, depth: int, own: tuple[str, ...] = ()) -> list[str]:
    """An object in pieces: of every three the second is a key, the third its value."""
    others = draw(st.lists(st.tuples(TEXT, value_text(depth)), max_size=4))
    if own:
        others = [(key, value) for key, value in others if key != "model"]
    models = [("model", draw(string_text(name))) for name in own]
    pieces: list[str] = []
    for key, value in draw(st.permutations([*others, *models])):
        between = draw(WHITE) + ("," if pieces else "{") + draw(WHITE)
        key_text = draw(string_text(key))
        pieces += [between, key_text + draw(WHITE) + ":" + draw(WHITE), value]
    return [*pieces, (draw(WHITE) if pieces else "{") + "}" + draw(WHITE)]


def is_model(piece: str) -> bool:
    return bool(json.loads(piece.rstrip(" \t\r\n:")) == "model")


@given(st.data(), TEXT.filter(bool), TEXT, st.integers(1, 2))
def test_rewriting_any_json_changes_the_model_only(
    data: st.DataObject, name: str, upstream: str, count: int
) -> None:
    pieces = data.draw(members(2, own=(name,) * count))
    body = "".join(pieces).encode()
    assert named(body) == name

    after = rewrite_model(body, [], upstream)
    quoted = json.dumps(upstream, ensure_ascii=False)
    for i in range(1, len(pieces) - 1, 3):
        if is_model(pieces[i]):
            pieces[i + 1] = quoted
    # Formatting is lost on purpose in one place only: how the new name is escaped.
    assert after == "".join(pieces).encode()
    assert json.loads(after) == {**json.loads(body), "model": upstream}


@given(st.data(), TEXT.filter(bool), TEXT)
def test_two_different_models_in_any_json(data: st.DataObject, one: str, other: str) -> None:
    body = "".join(data.draw(members(2, own=(one, other)))).encode()
    assert named(body) == (one if one == other else "bad_request")


@given(st.data())
def test_any_json_is_read_as_pythons_own_parser_reads_it(data: st.DataObject) -> None:
    body = bytearray("".join(data.draw(members(2))).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + 1] = data.draw(
            st.sampled_from([b"", b'"', b"\\", b"{", b"]", b"\xff"])
        )
    name = named(bytes(body))
    if name not in {"no_model", "bad_request"}:
        assert json.loads(bytes(body).decode())["model"] == name


# ---- Forms ----


@pytest.mark.parametrize(
    ("body", "name", "after"),
    [
        (b"model=a", "a", b"model=org/new"),
        (b"x=1&model=a%2fb+c%&y=2", "a/b c%", b"x=1&model=org/new&y=2"),
        (b"%6dod%65%6C=a", "a", b"%6dod%65%6C=org/new"),
        (b"model=a&model=%61", "a", b"model=org/new&model=org/new"),
        (b"model=&model=a", "a", b"model=org/new&model=org/new"),
        (b"model=a&model=b", "bad_request", b"model=org/new&model=org/new"),
        (b"model=a=b", "a=b", b"model=org/new"),
        (b"model", "no_model", b"model"),
        (b"xmodel=a&models=b&model[]=c", "no_model", b"xmodel=a&models=b&model[]=c"),
        (b"a" * 1000, "no_model", b"a" * 1000),
        (b'{"model":"a&model=b', "b", b'{"model":"a&model=org/new'),
    ],
)
def test_urlencoded(body: bytes, name: str, after: bytes) -> None:
    content_type = b"Application/X-WWW-Form-URLencoded ; charset=utf-8"
    assert named(body, content_type) == name
    assert rewritten(body, content_type) == after
    is_like_json = body.startswith(b"{")
    assert named(body, b"text/plain") == ("bad_request" if is_like_json else "no_model")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (multipart(field(b"a")), "a"),
        (multipart(b"content-DISPOSITION:form-data;NAME=model\r\n\r\na"), "a"),
        (multipart(field(b"a", b'form-data; x="; name=y"; name = "mod\\el"')), "a"),
        (multipart(b"Content-Type: text/plain\r\n" + field(b"a")), "a"),
        (b"preamble\r\n" + multipart(field(b"a")) + b"epilogue", "a"),
        (multipart(b"\r\nno head", b"", field(b"a"), b"no: value"), "a"),
        (multipart(field("é\r\n--b".encode())), "é\r\n--b"),
        (multipart(field(b"x\r\n--b==y\r\n--b== \t")), "x\r\n--b==y"),
        (multipart(field(b"file", b'form-data; name="file"; filename="m"'), field(b"a")), "a"),
        (multipart(field(b"b", b'form-data; name="x; name=model"'), field(b"a")), "a"),
        (multipart(field(b"a"), field(b"a")), "a"),
        (multipart(field(b""), field(b"a")), "a"),
        (multipart(field(b"a"), field(b"b")), "bad_request"),
        (multipart(field(b"a", b'form-data; name="model"; filename="m"')), "no_model"),
        (multipart(field(b"a", b"form-data; name=model; filename*=UTF-8''m")), "no_model"),
        (multipart(field(b"a", b'form-data; name="Model"')), "no_model"),
        (multipart(field(b"a", b"form-data; name=x" + b"x" * 512 + b"; name=model")), "a"),
        (multipart(b'X: form-data; name="model"\r\n\r\na'), "no_model"),
        (multipart(b'Content-Disposition: form-data; name="model"'), "no_model"),
        (multipart() + multipart(field(b"a")), "no_model"),
        (multipart(field(b"a"))[:-9], "bad_request"),
        (multipart(field(b"a")).replace(b"\r\n", b"\n"), "bad_request"),
        (b"x" + multipart(field(b"a")), "no_model"),
        (b"", "no_model"),
    ],
)
def test_multipart(body: bytes, name: str) -> None:
    assert named(body, MULTIPART) == name


def test_rewriting_multipart() -> None:
    file = field(b"\0\r\nmodel\r\n--b=", b'form-data; name="model"; filename="model"')
    body = b"preamble\r\n" + multipart(
        file, field(b"a"), field(b"", b"form-data; name=model"), file
    )
    after = b"preamble\r\n" + multipart(
        file, field(b"org/new"), field(b"org/new", b"form-data; name=model"), file
    )
    assert rewritten(body, MULTIPART) == after


@pytest.mark.parametrize("boundary", [b"", b"; boundary=", b"; boundary=" + b"b" * 71])
def test_multipart_without_a_boundary_that_can_be_one(boundary: bytes) -> None:
    body = b"--" + boundary.removeprefix(b"; boundary=") + b"\r\n" + field(b"a") + b"\r\n--"
    assert named(body, b"multipart/form-data" + boundary) == "bad_request"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [(FORM, b"model=a&" * 10_002), (MULTIPART, multipart(*[field(b"a")] * 10_001))],
)
def test_a_form_of_too_many_fields_is_refused(content_type: bytes, body: bytes) -> None:
    assert named(body, content_type) == "bad_request"


PIECES = st.lists(
    st.sampled_from(
        [
            *(bytes([byte]) for byte in b'{}[]",:\\&=%;-\r\n a1'),
            b'"model"', b'"mod\\u0065l":"a"', b"model", b"\r\n--b==", b"--", b"\xff", b"\\ud800",
            b"Content-Disposition:form-data;name=", b'filename="', b"/upstream/", b"facebook", b"%2f",
        ]
    )
)  # fmt: skip


@given(st.binary() | PIECES.map(b"".join), st.sampled_from([b"", FORM, MULTIPART]))
def test_nothing_that_a_client_sends_is_an_unforeseen_error(noise: bytes, kind: bytes) -> None:
    for target in (noise, b"/upstream/" + noise, TARGET + b"?" + noise):
        named(noise, kind, target)
    named(noise, noise)
    for text in (noise, b"{" + noise + b"}", b"--b==\r\n" + noise + b"\r\n--b==--"):
        for content_type in (kind, noise):
            try:
                rewritten(text, content_type)
            except BadRequest:
                pass
    headers = [(noise, noise), (b"Connection", noise), (b"X-Forwarded-For", noise)]
    request_headers(headers, client="::1", scheme="http", extra={})
    response_headers(headers)


# ---- Own paths, headers, answers ----


@pytest.mark.parametrize(
    ("path", "is_own"),
    [
        (b"/v1/models", True),
        (b"/v1/models/facebook/opt-125m", True),
        (b"/metrics", True),
        (b"/health", True),
        (b"/control/switch", True),
        (b"/ui", True),
        (b"/ui/app.js", True),
        (b"/v1/modelsx", False),
        (b"/v1/chat/completions", False),
        (b"/metrics/x", False),
        (b"/healthz", False),
        (b"/controls", False),
        (b"/uix", False),
        (b"/upstream/a/v1/models", False),
        (b"/", False),
    ],
)
def test_own_paths(path: bytes, is_own: bool) -> None:
    assert (own_path(path) is not None) is is_own


def forwarded(headers: Pairs, **extra: str) -> Pairs:
    return request_headers(headers, client="10.0.0.9", scheme="https", extra=extra)


ADDED: Pairs = [(b"X-Forwarded-For", b"10.0.0.9"), (b"X-Forwarded-Proto", b"https")]


def test_end_to_end_headers_pass_as_they_are() -> None:
    headers = [(b"Accept", b" a"), (b"X-A", b"1"), (b"accept", b"\xff"), (b"x-a", b"")]
    assert forwarded(headers) == [*headers, *ADDED]


@pytest.mark.parametrize(
    "name",
    [
        b"Connection", b"Keep-Alive", b"Proxy-Authenticate", b"Proxy-Authorization",
        b"Proxy-Connection", b"TE", b"Trailer", b"Transfer-Encoding", b"Upgrade",
    ],
)  # fmt: skip
def test_hop_by_hop_headers_do_not_pass(name: bytes) -> None:
    for spelling in (name, name.lower()):
        assert forwarded([(spelling, b"x")]) == ADDED
        assert response_headers([(spelling, b"x")]) == []


def test_headers_that_connection_names_do_not_pass() -> None:
    headers = [
        (b"X-One", b"1"), (b"Connection", b"close, X-One"),
        (b"connection", b",x-TWO "), (b"X-Two", b"2"), (b"X-Three", b"3"),
    ]  # fmt: skip
    assert forwarded(headers) == [(b"X-Three", b"3"), *ADDED]
    assert response_headers(headers) == [(b"X-Three", b"3")]


@pytest.mark.parametrize("name", [b"Content-Length", b"Model-Override", b"Expect"])
def test_request_headers_that_are_llmuxs_business(name: bytes) -> None:
    assert forwarded([(name, b"1")]) == ADDED


def test_where_the_request_came_from() -> None:
    headers = [
        (b"Host", b"llm.example"), (b"X-Forwarded-For", b"1.1.1.1"), (b"A", b"b"),
        (b"x-forwarded-for", b"2.2.2.2, 3.3.3.3"),
    ]  # fmt: skip
    assert forwarded(headers) == [
        (b"A", b"b"),
        (b"X-Forwarded-For", b"1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.9"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"llm.example"),
    ]
    outer = [(b"x-forwarded-proto", b"http"), (b"x-forwarded-host", b"outer")]
    assert forwarded([*outer, (b"host", b"inner")]) == [*outer, ADDED[0]]
    kept = request_headers(headers[1:2], client=None, scheme="https", extra={})
    assert kept == [headers[1], ADDED[1]]


def test_the_configs_headers_replace_all_of_their_names() -> None:
    headers = [(b"authorization", b"a"), (b"AUTHORIZATION", b"b"), (b"x", b"1")]
    assert forwarded(headers, Authorization="k") == [
        (b"x", b"1"), *ADDED, (b"Authorization", b"k")
    ]  # fmt: skip
    ours = {"x-forwarded-FOR": "é", "X-Forwarded-Proto": "p", "X-Forwarded-Host": "h"}
    received = [(b"Host", b"h"), (b"X-Forwarded-For", b"1.1.1.1")]
    assert forwarded(received, **ours) == [(k.encode(), v.encode()) for k, v in ours.items()]


def test_response_headers_pass_as_they_are() -> None:
    headers = [
        (b"Set-Cookie", b"a=1"), (b"Content-Length", b"3"), (b"set-cookie", b"b=2"),
        (b"Content-Encoding", b"gzip"), (b"Date", b"d"), (b"Server", b"s"),
    ]  # fmt: skip
    assert response_headers([*headers, (b"X-LLMUX-Model", b"forged")]) == headers


@pytest.mark.parametrize(
    ("headers", "added"),
    [
        ([(b"Content-Type", b"Text/Event-Stream; charset=utf-8")], [(b"X-Accel-Buffering", b"no")]),
        ([(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"yes")], []),
        ([(b"content-type", b"application/json")], []),
    ],
)
def test_event_streams_ask_not_to_be_buffered(headers: Pairs, added: Pairs) -> None:
    assert response_headers(headers) == headers + added


def test_error_answer() -> None:
    status, headers, body = error_answer(ModelNotFound("é"))
    assert status == 404
    assert dict(headers) == {
        b"content-type": b"application/json",
        b"content-length": b"%d" % len(body),
        b"x-llmux-retry": b"elsewhere",
    }
    assert json.loads(body) == {
        "error": {
            "message": "Model not found: é",
            "type": "llmux_error",
            "param": None,
            "code": "model_not_found",
        }
    }


def test_error_answer_with_a_time_to_come_back() -> None:
    assert (b"retry-after", b"3") in error_answer(QueueFull("full", retry_after_s=2.1))[1]


@given(st.text() | st.text(st.sampled_from('a"\0\x7fé\ud800\udfff')))
def test_any_message_can_be_answered(message: str) -> None:
    _, headers, body = error_answer(LlmuxError(message))
    assert int(dict(headers)[b"content-length"]) == len(body)
    answered: str = json.loads(body)["error"]["message"]
    assert answered == message.encode("utf-8", "replace").decode()


def test_models() -> None:
    def shown(name: str) -> dict[str, Any]:
        facts = {"state": "awake", "in_flight": 1, "queued": 0}
        return {"id": name, "object": "model", "created": 7, "owned_by": "llmux", "llmux": facts}

    models = [(name, 7, shown(name)["llmux"]) for name in ("b", "org/c", "a")]
    assert json.loads(model_object(*models[0])) == shown("b")
    assert json.loads(model_list(models)) == {
        "object": "list",
        "data": [shown("a"), shown("b"), shown("org/c")],
    }
