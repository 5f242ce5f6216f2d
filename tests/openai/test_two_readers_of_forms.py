"""Multipart forms in which Go's parser, or one of Python's, finds a model that others do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmux.errors import BadRequest
from llmux.openai.fields import read_fields
from llmux.openai.scanning import SLICE_BYTES
from tests.downstream.test_lanes import status
from tests.http.test_two_readers import MULTIPART, agreed
from tests.lanes import LANES, running_lane

NAME = b'Content-Disposition: form-data; name="model"'


def form(head: bytes, value: bytes = b"b") -> bytes:
    return b"--b\r\n%b\r\n\r\n%b\r\n--b--\r\n" % (head, value)


FAR = b"z" * (SLICE_BYTES - 2)
LONG = b"x" * 71

# Go's net/http finds the model "b" in most of these; the others are for parsers that take the
# first of two names, or the last of two headers.
ODD_FORMS = {
    "head-without-cr": form(NAME).replace(NAME + b"\r\n\r\n", NAME + b"\n\n"),
    "line-of-head-without-cr": form(b"X: y\n" + NAME),
    "empty-filename": form(NAME + b'; filename=""'),
    "unreadable-filename": form(NAME + b"; filename*=x"),
    "empty-encoded-filename": form(NAME + b"; filename=x; filename*=utf-8''"),
    "two-dispositions": form(b"Content-Disposition: form-data; name=x\r\n" + NAME),
    "two-names": form(NAME + b"; name=x"),
    "quoted-printable": form(NAME + b"\r\nContent-Transfer-Encoding: quoted-printable", b"=62"),
    "last-boundary-that-goes-on": b"--b--x\r\n" + form(NAME),
    "boundary-without-cr-at-the-end-of-a-slice": FAR
    + b"\n--b"
    + b" " * 50
    + form(NAME)[3:].replace(b"\r\n", b"\n"),
}


@pytest.mark.parametrize("body", ODD_FORMS.values(), ids=ODD_FORMS)
def test_a_model_that_only_some_parsers_find_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        agreed(body, MULTIPART)


@pytest.mark.parametrize(
    ("parameter", "boundary"),
    [
        (b"boundary=" + LONG, LONG),
        (b"boundary*=utf-8''b", b"b"),
        (b"boundary*0=b", b"b"),
        (b"boundary=b; boundary=c", b"b"),
        (b"boundary=x; boundary*=utf-8''b", b"b"),
    ],
)
def test_a_boundary_that_only_some_parsers_see_is_refused(
    parameter: bytes, boundary: bytes
) -> None:
    body = form(NAME).replace(b"--b", b"--" + boundary)
    with pytest.raises(BadRequest, match="boundary"):
        agreed(body, b"Content-Type: multipart/form-data; " + parameter)


@pytest.mark.parametrize(
    "body",
    [
        form(NAME + b'; filename="x.gguf"'),
        form(NAME + b"; filename*=UTF-8''%C3%A4.gguf"),
        form(NAME + b"\r\nContent-Transfer-Encoding: 8bit", b"own"),
        form(b"Content-Disposition: form-data; name=x; name=x"),
        b"--b\r\n\r\nno head\r\n--b--",
        b"--b\r\n%b\r\n\r\n--b--\r\n" % NAME,  # no body, and one line break less
        form(NAME.replace(b"model", b"file") + b"\r\nContent-Transfer-Encoding: base64"),
    ],
)
def test_what_all_parsers_read_alike_is_left_as_it_is(body: bytes) -> None:
    assert agreed(body, MULTIPART) == body


@pytest.mark.parametrize("lane", LANES)
async def test_an_odd_form_gets_400_and_goes_nowhere(lane: str, tmp_path: Path) -> None:
    body = ODD_FORMS["empty-filename"]
    head = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nModel-Override: a\r\nConnection: close\r\n%b\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    async with running_lane(lane, tmp_path, models=("a", "b")) as site:
        answer = await site.exchange(head % (MULTIPART, len(body)) + body)
        assert status(answer) == 400
        assert b"file name" in answer
        assert site.backend.received == []


def test_white_space_behind_a_boundary_is_looked_through_in_slices() -> None:
    """One search through 64 MiB of it would hold up everything else for 0.1 s."""
    slices = 64
    body = form(NAME).replace(b"--b\r\n", b"--b" + b" " * slices * SLICE_BYTES + b"\r\n")
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1

    headers = [(b"content-type", MULTIPART.partition(b": ")[2])]
    assert read_fields(headers, body, pause).name == "b"
    # Once for a line that ends without CR, for white space, and for the next boundary.
    assert pauses >= 3 * slices
