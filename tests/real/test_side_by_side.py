"""Two real llama.cpp servers awake side by side, and a third that evicts the cheaper one."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.real.site import PATIENCE_S, Site, ask, gguf, program, status_of, until

SERVER = program("LLMUX_LLAMA_SERVER") or program("LLMUX_XLLAMACPP")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(SERVER is None, reason="not set: LLMUX_LLAMA_SERVER, LLMUX_XLLAMACPP"),
]

OPTIONS = "--ctx-size 512 --parallel 2 --threads 1 --no-warmup"
BY_HAND = 40 << 20
MODELS = ("chat", "code", "docs")


@pytest.fixture(params=["auto", BY_HAND], ids=["auto", "by hand"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Three servers, for which there is plenty of memory."""
    models = {}
    for name, source in zip(MODELS, ("tiny-a", "tiny-b", "tiny-a"), strict=True):
        file = tmp_path / f"{name}.gguf"
        shutil.copyfile(gguf(source), file)
        command = f"{shlex.quote(str(SERVER))} -m {file} --port ${{PORT}} {OPTIONS}"
        needs = request.param if request.param == "auto" else {"ram": request.param}
        models[name] = {"recipe": "process", "with": {"command": command}, "needs": needs}
    site = Site(tmp_path, models, resources={"ram": 1 << 40})
    yield site
    site.end_servers()


def awake(site: Site) -> set[str]:
    """The models whose servers run."""
    return {name for name in MODELS for command in site.leaders().values() if name in command}


def seen(site: Site) -> dict[str, int]:
    """What `needs: auto` has measured, in bytes."""
    path = site.folder / "state" / "needs.json"
    found = json.loads(path.read_text())["models"] if path.exists() else {}
    return {name: entry["amounts"]["ram"] for name, entry in found.items()}


async def test_the_cheaper_one_makes_room_for_a_third(site: Site) -> None:
    models: dict[str, Any] = json.loads(site.config.read_text())["models"]
    is_auto = models["chat"]["needs"] == "auto"
    async with site.running() as (_, client):
        for model in ("docs", "code", "chat"):
            await ask(client, model)
            if is_auto:
                await until(lambda model=model: _is_measured(site, model))
        most = max(seen(site).values()) if is_auto else BY_HAND
        # With the margin of 10 % for what is measured, room for two and not for three.
        await reload_with(site, client, models, ram=int(2.5 * most))
        await until(lambda: _is_asleep(client, "docs"))  # it was used least recently
        for model in ("code", "chat"):
            await ask(client, model)
        assert awake(site) == {"chat", "code"}
        for _ in range(15):
            await ask(client, "chat")
        await ask(client, "code")  # the last one to be used, and yet the cheaper one
        await ask(client, "docs")
        assert awake(site) == {"chat", "docs"}
        assert (await ask(client, "chat")).headers["x-llmux-wait-ms"] == "0"


async def reload_with(
    site: Site, client: httpx.AsyncClient, models: dict[str, Any], *, ram: int
) -> None:
    site.settings["resources"] = {"ram": ram}
    site.write(models)
    answer = await client.post("/control/reload")
    assert answer.status_code == 200, answer.text


async def _is_measured(site: Site, model: str) -> bool:
    return model in seen(site)


async def _is_asleep(client: httpx.AsyncClient, model: str) -> bool:
    found: str = (await status_of(client, model))["state"]
    return found == "asleep"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
async def test_what_is_measured_is_what_the_kernel_says(site: Site) -> None:
    if json.loads(site.config.read_text())["models"]["chat"]["needs"] != "auto":
        pytest.skip("nothing is measured")
    async with site.running() as (_, client):
        await ask(client, "chat")
        with trio.fail_after(PATIENCE_S):
            await until(lambda: _is_measured(site, "chat"))
        ((leader, _),) = site.leaders().items()
        found = sum(_pss(pid) for pid in session_of(leader))
        assert seen(site)["chat"] == pytest.approx(found, rel=0.25)


def session_of(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            found.append(int(file.parent.name))
    return found


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return 1024 * int(kilobytes)
