"""How the page at `/ui` is served; what it does is tested in a browser (tests/ui)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

import llmux
from tests.lanes import LANES, Site, running_lane

FOLDER = Path(llmux.__file__).parent / "ui"
CONTROL = "ck-5teering"


async def get(site: Site, path: str, *headers: bytes) -> tuple[int, httpx.Headers, bytes]:
    """Status, headers and body of a GET by a browser of this machine."""
    lines = [b"GET %b HTTP/1.1" % path.encode(), b"Host: localhost", b"Connection: close", *headers]
    head, _, body = (await site.exchange(b"\r\n".join([*lines, b"", b""]))).partition(b"\r\n\r\n")
    first, *rest = head.split(b"\r\n")
    fields = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in rest)]
    return int(first.split()[1]), httpx.Headers(fields), body


@pytest.mark.parametrize("lane", LANES)
async def test_the_page_and_its_headers(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        status, headers, _ = await get(site, "/ui")
        assert (status, headers["location"]) == (308, "ui/")
        status, headers, body = await get(site, "/ui/")
        assert (status, body) == (200, (FOLDER / "index.html").read_bytes())
        assert headers["content-type"] == "text/html; charset=utf-8"
        policy = headers["content-security-policy"].split("; ")
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"
        tag = headers["etag"]
        status, headers, body = await get(site, "/ui/", b"If-None-Match: " + tag.encode())
        assert (status, headers["etag"], body) == (304, tag, b"")


async def test_only_what_belongs_to_the_page_is_served(tmp_path: Path) -> None:
    async with running_lane(LANES[0], tmp_path) as site:
        for path, expected in {
            "/ui/app.js": 200,
            "/ui/vendor/uplot/uPlot.esm.js": 200,
            "/ui/vendor/uplot/README.md": 404,
            "/ui/none.js": 404,
            "/ui/vendor": 404,
            "/ui/../app.py": 404,
            "/ui/%2e%2e/app.py": 404,
        }.items():
            assert (await get(site, path))[0] == expected, path


async def test_without_control_keys_it_is_for_this_machine(tmp_path: Path) -> None:
    async with running_lane(LANES[0], tmp_path) as site:
        for header in (b"X-Forwarded-For: 203.0.113.7", b"Origin: https://ui.example"):
            assert (await get(site, "/ui/app.js", header))[0] == 403


async def test_with_control_keys_the_files_are_open(tmp_path: Path) -> None:
    async with running_lane(LANES[0], tmp_path, control_keys=[CONTROL]) as site:
        status, _, body = await get(site, "/ui/", b"X-Forwarded-For: 203.0.113.7")
        assert status == 200
        assert CONTROL.encode() not in body
        assert (await get(site, "/control/status"))[0] == 401


def test_nothing_is_inline_or_from_elsewhere() -> None:
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://", page)
    own = [path for path in FOLDER.glob("*.*") if path.suffix in (".js", ".css")]
    assert own
    for path in own:
        assert not re.search(
            r"innerHTML|outerHTML =|insertAdjacentHTML|https?://|\beval\(", path.read_text()
        ), path


def test_every_file_that_is_named_is_there() -> None:
    page = (FOLDER / "index.html").read_text()
    named = [FOLDER / name for name in re.findall(r'(?:src|href)="([^#"]+)"', page)]
    for path in FOLDER.glob("*.js"):
        text = path.read_text()
        named += [path.parent / name for name in re.findall(r'(?:from|import) "(\./[^"]+)"', text)]
        ids = set(re.findall(r'byId\("([^"]+)"\)', text))
        assert ids <= set(re.findall(r'\bid="([^"]+)"', page)), path
    assert [path for path in named if not path.is_file()] == []


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to check the scripts' syntax")
def test_the_scripts_are_javascript() -> None:
    for path in FOLDER.glob("*.js"):
        subprocess.run(["node", "--check", path], check=True)
