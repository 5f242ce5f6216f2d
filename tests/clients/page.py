"""The blocks of `docs/clients.md`, made to ask the llmux of a test: `a` is its llama, `b` its mistral."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.clients.site import Site
from tests.documents import ROOT, Block, blocks

BLOCKS = list(blocks(ROOT / "docs" / "clients.md"))

NAMES = {"llama": "a", "mistral": "b"}
"""The page's models, and the stand-ins that have these as aliases."""

ALIASES = {model: {"aliases": [alias]} for alias, model in NAMES.items()}


def written_in(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def config_of(whose: str) -> Block:
    """The YAML of another program."""
    (found,) = (block for block in BLOCKS if block.mark == f"not a config of llmux: {whose}'s")
    return found


def aimed_at(site: Site, code: str) -> str:
    """The code with the address of the site's llmux."""
    return re.sub(r"http://(127\.0\.0\.1|host\.docker\.internal):3000", site.url, code)


def loaded(site: Site, block: Block) -> Any:
    return yaml.safe_load(aimed_at(site, block.code))
