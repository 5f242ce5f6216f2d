"""Sizes of memory, as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from llmux.config import parse_config
from llmux.config.sizes import size_bytes, size_text
from tests.config.test_config import mistakes, one_model

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * GIB), ("512MiB", 512 << 20), ("4GB", 4_000_000_000), ("1.5 GiB", 3 * GIB // 2),
        (" 1kB ", 1000), ("1KiB", 1024), ("2TiB", 2 << 40), ("2TB", 2 * 10**12), ("7B", 7), ("0GiB", 0),
        ("80gib", 80 * GIB), ("0.1GB", 100_000_000), ("0.3KiB", 307),
    ],
)  # fmt: skip
def test_units(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "80", "GiB", "80 gigs", "-1GiB", "1,5GiB", "1iB", "1e3GB", "9" * 16 + "B"])  # fmt: skip
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="a size such as 80GiB, 512MiB or 4GB, or a number of"):
        size_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (80, "80B"), (1536, "1.5KiB"), (80 * GIB, "80GiB"), (2 << 50, "2048TiB"), (GIB // 3, "341.3MiB")],
)  # fmt: skip
def test_sizes_as_text(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("value", [5, "5B", "${env:X:-5}", "${env:X:-5B}"])
def test_sizes_in_a_config(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("X", raising=False)
    data = one_model(needs={"gpu": value}, needs_asleep={"gpu": value}) | {
        "resources": {"gpu": value}
    }
    config = parse_config(data)
    llama = config.models["llama"]
    assert config.resources == llama.needs == llama.needs_asleep == {"gpu": 5}


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (one_model() | {"resources": {"gpu": 0}}, "resources.gpu: expected int >= 1"),
        (one_model() | {"resources": {"gpu": "0GiB"}}, "resources.gpu: expected int >= 1"),
        (one_model() | {"resources": {"gpu": -1}}, "resources.gpu: expected int >= 1"),
        (one_model() | {"resources": {"gpu": "80"}}, "resources.gpu: expected a size such as 80GiB"),
        (one_model() | {"resources": {"gpu": 1.5}}, "resources.gpu: expected int, got float"),
        (one_model() | {"resources": {"gpu": 1 << 70}}, "resources.gpu: expected int <= "),
        (one_model() | {"resources": {"#gpu": 1}}, 'resources["#gpu"]: must not begin with \'#\''),
        (one_model(needs={"gpu": -1}), "models.llama.needs.gpu: expected int >= 0"),
        (one_model(needs="60GiB"), "models.llama.needs: expected object or 'auto', got str"),
        (one_model() | {"memory_margin": 1.1}, "memory_margin: expected float <= 1.0"),
        (one_model() | {"memory_margin": "5m"}, "memory_margin: expected float, got str"),
        (one_model() | {"busy": 0}, "busy: expected int >= 1"),
        (one_model() | {"sets": [["llama"], "llama"]}, "sets[1]: expected array, got str"),
    ],
)  # fmt: skip
def test_mistakes_in_sizes(data: object, line: str) -> None:
    assert mistakes(data)[0].startswith(line)
