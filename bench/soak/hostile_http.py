"""Hostile acts over HTTP/1.1: names, bodies, heads, smuggling, floods, and unread answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

import trio

from bench.soak.hostile import Act, Foe
from bench.soak.run import BROKEN
from bench.soak.settings import CONNECTIONS

BODY = 6 << 20
"""Largest body of an act: below body_bytes, so that it is read."""


def post(target: str, headers: str, body: bytes) -> bytes:
    """A request that is framed as it should be."""
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


# ---- Names ----


def short_name(foe: Foe) -> str:
    """A name as long as fits in a head."""
    unit = foe.rng.choice(("a", "%61", "%00", "%01", "%C3%A9", "\xe9"))
    return unit * (foe.rng.choice((300, 3000, 24_000)) // len(unit))


async def huge_name(foe: Foe) -> None:
    """A name of a model that is far too long, in a body."""
    rng = foe.rng
    unit = rng.choice((b"a", b"%61", b"%00", b"\x01", b"%C3%A9", b"\\u0001", b"\xc3\xa9"))
    long = unit * (foe.size(BODY) // len(unit))
    form = "Content-Type: application/x-www-form-urlencoded\r\n"
    multipart = "Content-Type: multipart/form-data; boundary=b\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--b--\r\n'
    path, headers, body = rng.choice((
        ("/v1/completions", "", b'{"model": "%b"}'), ("/v1/completions", form, b"model=%b"),
        ("/v1/completions", form, b"%b=a"), ("/v1/completions", multipart, part),
        ("/control/switch", "", b'{"model": "%b"}'), ("/control/pin", "", b'{"model": "%b"}'),
    ))  # fmt: skip
    await foe.throw(post(path, foe.key + headers, body % long), reads=rng.random() < 0.5)


async def long_name(foe: Foe) -> None:
    """The same in a head."""
    name = short_name(foe)
    requests = [
        post(f"/v1/completions?model={name}", foe.key, b""),
        post(f"/upstream/{name}/x", foe.key, b""),
        post(f"/v1/models/{name}", foe.key, b""),
        post("/v1/completions", f"{foe.key}model-override: {name}\r\n", b"{}"),
        f"DELETE /control/requests/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        f"GET /control/alive?model={name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    ]
    await foe.throw(
        foe.rng.choice(requests) * foe.rng.choice((1, 20)), reads=foe.rng.random() < 0.5
    )


async def two_names(foe: Foe) -> None:
    """Two readers may take two different names from it; one of them is the backend."""
    one, other = foe.model, foe.model
    plain, both = json.dumps({"model": other}), json.dumps({"model": one, "Model": other})
    requests = [
        post("/v1/completions", f"{foe.key}model-override: {one}\r\n", plain.encode()),
        post(f"/upstream/{one}/v1/completions", foe.key, plain.encode()),
        post("/v1/completions", foe.key, both.encode()),
        post("/v1/completions", foe.key, json.dumps({"model": one, "MODEL": other}).encode()),
        post(f"/upstream/{one}/v1?model={other}", foe.key, b"{}"),
    ]
    await foe.throw(foe.rng.choice(requests))


# ---- Bodies ----


async def worst_body(foe: Foe) -> None:
    """A body that costs a parser more than it costs to send."""
    size = foe.size(BODY)
    multipart = "Content-Type: multipart/form-data; boundary=-\r\n"
    twice = b'"model":"x",' * (size // 12)
    bodies = [
        (multipart, b"-" * size),
        (multipart, b"--" + b"\r\n--" * (size // 4)),
        (multipart, b"---\r\n" * (size // 5)),
        ("", b'{"a":1,' + b'"a":1,' * (size // 6) + b'"model":"nobody"}'),
        ("", b"{" + twice + b'"model":"nobody"}'),
        ("", b"[" * size),
        ("", b'{"model":' * (size // 9)),
        ("", b'{"model":"nobody","x":"' + b"\\u0000" * (size // 6) + b'"}'),
        ("Content-Type: application/x-www-form-urlencoded\r\n", b"&" * size),
        ("Content-Type: application/x-www-form-urlencoded\r\n", b"model=&" * (size // 7)),
    ]
    headers, body = foe.rng.choice(bodies)
    await foe.throw(post("/v1/completions", foe.key + headers, body))


async def worst_chunks(foe: Foe) -> None:
    """Chunks that cost a reader more than they cost to send; or that have no end."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{foe.key}".encode()
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    size = foe.size(BODY)
    crlf = b"\r\n\r\n" * 4000
    pieces = [
        b"3e80\r\n" + crlf + b"\r\n",
        b"1\r\na\r\n" * 3000,
        b"1;" + b"x" * 16_000 + b"\r\na\r\n",
        b"1;a=b;c=d;" * 100 + b"\r\na\r\n",
    ]
    piece = foe.rng.choice(pieces)
    trailers = b"0\r\n" + b"X-Trailer: " + b"y" * 8000 + b"\r\n"
    body = [piece] * (size // len(piece))
    if foe.rng.random() < 0.4:
        body = [trailers, *([trailers[3:]] * (size // 8000))]
    await foe.throw(head, *body)


# ---- Heads ----


async def many_fields(foe: Foe) -> None:
    """Thousands of header fields, for a model that may have to be waited for."""
    count = foe.rng.choice((100, 2000, 9000))
    fields = "".join(f"a{number % 100}:\r\n" for number in range(count))
    target = foe.rng.choice(("/health", "/v1/models", f"/upstream/{foe.model}/x"))
    await foe.throw(post(target, foe.key + fields, b""))


async def drip(foe: Foe) -> None:
    """A head, or a body, that comes byte by byte."""
    request = post("/v1/completions", foe.key, json.dumps({"model": foe.model}).encode() * 100)
    head = foe.rng.choice((b"", request[: request.find(b"\r\n\r\n") + 4]))
    rest = request[len(head) :]
    await foe.throw(head, *(bytes([byte]) for byte in rest), pause_s=0.3)


async def odd_target(foe: Foe) -> None:
    """Methods and targets that nobody should send, or that mean something else further on."""
    model = foe.model
    lines = [
        "CONNECT localhost:80 HTTP/1.1", f"CONNECT /upstream/{model}/x HTTP/1.1",
        f"TRACE /upstream/{model}/x HTTP/1.1", "OPTIONS * HTTP/1.1",
        f"GET http://localhost/upstream/{model}/x HTTP/1.1", "GET http://[::1/x HTTP/1.1",
        f"GET /upstream/{model}/../../x HTTP/1.1", f"GET /upstream/{model}/..%2f..%2fx HTTP/1.1",
        f"GET //upstream//{model}//x HTTP/1.1", f"GET /%2e%2e/upstream/{model}/x HTTP/1.1",
        f"POST v1/p?model={model} HTTP/1.1", f"POST 80?model={model} HTTP/1.1",
        f"POST @evil/x?model={model} HTTP/1.1", f"POST -secret/x?model={model} HTTP/1.1",
        f"GET /upstream/{model}/x\x00y HTTP/1.1", f"GET /upstream/{model}/x y HTTP/1.1",
        f"GET /../x?model={model} HTTP/1.1", f"GET /x/../../y?model={model} HTTP/1.1",
        f"GET /upstream/{model}/x HTTP/2.0", f"GET /upstream/{model}/x HTTP/0.9", "GET /",
        f"G{'E' * 5000}T /upstream/{model}/x HTTP/1.1", f"HEAD /upstream/{model}/x HTTP/1.1",
    ]  # fmt: skip
    request = f"{foe.rng.choice(lines)}\r\nHost: localhost\r\n{foe.key}\r\n".encode()
    before = foe.rng.choice((b"", HEALTH))
    await foe.throw(before + request)


# ---- Smuggling ----

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def hidden(foe: Foe) -> Iterator[bytes]:
    """Requests with another one in what some reader takes for their body."""
    start = f"POST /upstream/{foe.model}/x HTTP/1.1\r\nHost: localhost\r\n{foe.key}".encode()

    def chunked(how: str, before: bytes, after: bytes = b"", start: bytes = start) -> bytes:
        body = b"0\r\n\r\n" + foe.marked(how)
        return start + before + b"Content-Length: %d\r\n" % len(body) + after + b"\r\n" + body

    for number, te in enumerate((
        b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding:\r\n chunked\r\n",
        b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n", b"X: y\nTransfer-Encoding: chunked\r\n",
        b"X: y\rTransfer-Encoding: chunked\r\n", b"Transfer-Encoding:\x0bchunked\r\n",
        b"transfer-encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer_Encoding: chunked\r\n", b"X: y\x00\r\nTransfer-Encoding: \x00chunked\r\n",
    )):  # fmt: skip
        yield chunked(f"te-{number}", te)
        yield chunked(f"te-{number}-last", b"", te)
    old = start.replace(b"HTTP/1.1", b"HTTP/1.0")
    yield chunked("te-in-1.0", b"", b"Transfer-Encoding: chunked\r\n", old)
    for number, lengths in enumerate(((b"0", b"%d"), (b"%d", b"0"), (b"+0", b"%d"), (b"%d, 0",))):
        marked = foe.marked(f"cl-{number}")
        fields = b"".join(b"Content-Length: %b\r\n" % value for value in lengths)
        yield start + fields % len(marked) + b"\r\n" + marked
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"
    for how, head in {
        "continue": start + b"Expect: 100-continue\r\n",
        "h2c": start + upgrade,
        "get": start.replace(b"POST", b"GET", 1),
        "head": start.replace(b"POST", b"HEAD", 1),
    }.items():
        marked = foe.marked(how)
        yield head + b"Content-Length: %d\r\n\r\n" % len(marked) + marked


def malformed(foe: Foe) -> Iterator[bytes]:
    """Requests that a strict reader refuses, so that what follows them is not served."""
    start = f"POST /upstream/{foe.model}/x HTTP/1.1\r\nHost: localhost\r\n{foe.key}".encode()
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    for number, body in enumerate((
        b"1;\x00=x\r\na\r\n0\r\n\r\n", b"1;a\nb\r\na\r\n0\r\n\r\n", b"1\na\n0\n\n",
        b"0x1\r\na\r\n0\r\n\r\n", b"-1\r\na\r\n0\r\n\r\n", b"1_0\r\na\r\n0\r\n\r\n",
        b"10000000000000001\r\na\r\n0\r\n\r\n", b"1\r\nab\r\n0\r\n\r\n", b"1\r\na0\r\n\r\n",
    )):  # fmt: skip
        yield chunked + body + foe.marked(f"chunk-{number}")
    for number, field in enumerate((
        b"X : y", b" X: y", b"X\x00: y", b"no colon", b": y", b"X: y\r\n z",
    )):  # fmt: skip
        yield start + b"Content-Length: 0\r\n" + field + b"\r\n\r\n" + foe.marked(f"field-{number}")
    bare = start.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n"
    yield bare + foe.marked("bare-lf")
    for number, length in enumerate((b"+0", b"-0", b"0x0", b"0 0", b"0,", b"", b"000000000000x")):
        length_field = b"Content-Length: %b\r\n\r\n" % length
        yield start + length_field + foe.marked(f"length-{number}")


async def smuggle(foe: Foe) -> None:
    """Hide a request in another, on a new connection or after a request to an own path."""
    requests = list(hidden(foe))
    # Hypercorn's own reader comes first on its lanes: it takes some that are malformed, whole.
    if foe.run.llmux.lane == "serve":
        requests += malformed(foe)
    before = foe.rng.choice((b"", HEALTH))
    await foe.throw(before, foe.rng.choice(requests), pause_s=foe.rng.choice((0, 0.05)))


# ---- Floods ----


async def pipelined_404s(foe: Foe) -> None:
    """Thousands of small requests at once."""
    body = b'{"model":"nobody"}'
    request = foe.rng.choice((
        post("/v1/completions", "", body), b"GET /nobody HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEALTH, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ))  # fmt: skip
    await foe.throw(request * 2000, reads=foe.rng.random() < 0.7)


async def connection_flood(foe: Foe) -> None:
    """As many connections as llmux takes, and some more; one hostile client at a time."""
    if foe.flooding.locked() or foe.rng.random() < 0.5:
        return
    most = 450 if foe.run.llmux.lane == "serve" else 250
    first = foe.rng.choice((b"", b"G", HEALTH, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
    async with foe.flooding:
        with foe.run.record.window("flood", after_s=2):
            await hold_connections(foe, most, first)
            # What has come with them is still served, one by one.
            with suppress(OSError):
                while foe.run.llmux.descriptors > CONNECTIONS // 2:  # noqa: ASYNC110
                    await trio.sleep(0.1)


async def hold_connections(foe: Foe, most: int, first: bytes) -> None:
    """Open so many, send something on each, and close them after a while."""
    async with trio.open_nursery() as nursery:

        async def hold() -> None:
            with suppress(*BROKEN):
                async with foe.connection() as stream:
                    await stream.send_all(first)
                    await trio.sleep(0.7)

        for _ in range(most):
            nursery.start_soon(hold)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()


async def leave_at_once(foe: Foe) -> None:
    """Connections that are reset as soon as something was sent on them."""
    for _ in range(20):
        async with foe.connection() as stream:
            await stream.send_all(foe.rng.choice((b"", HEALTH, post("/v1/x", "", b"{}"))))
            if foe.rng.random() < 0.5:
                await trio.sleep(foe.rng.random() * 0.02)


# ---- Answers that nobody reads ----


async def unread(foe: Foe) -> None:
    """Ask for large answers, again and again, and read none."""
    soak = {"id": "unread", "size": 4_000_000, "chunks": 0, "gap_s": 0.0, "work_s": 0.0, "lie": ""}
    key = foe.key
    path = foe.rng.choice((
        "/metrics", "/control/history", "/control/events", "/control/config", "/ui",
        f"/upstream/{foe.model}/x",
    ))  # fmt: skip
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{key}x-soak: {json.dumps(soak)}\r\n\r\n"
    await foe.throw(head.encode() * foe.rng.choice((1, 30)), reads=False)


HTTP_ACTS: dict[str, Act] = {
    "huge names": huge_name,
    "long names": long_name,
    "two names": two_names,
    "worst bodies": worst_body,
    "worst chunks": worst_chunks,
    "many fields": many_fields,
    "dripping": drip,
    "odd targets": odd_target,
    "smuggling": smuggle,
    "pipelined floods": pipelined_404s,
    "connection floods": connection_flood,
    "leaving at once": leave_at_once,
    "unread answers": unread,
}
