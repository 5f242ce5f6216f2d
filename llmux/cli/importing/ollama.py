"""The models of an Ollama as those of llmux."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from llmux.cli.importing.draft import Draft, ModelDraft
from llmux.cli.terminal.dialling import LOOPBACK
from llmux.cli.terminal.failures import NoAnswer

DEFAULT_URL = "http://127.0.0.1:11434"

ANSWER_S = 10.0

MOST_BYTES = 1e18
"""A model's size is below this; Python cannot divide every integer of JSON by a float."""


def full_url(text: str) -> str:
    """Return the URL that a user means: `$OLLAMA_HOST` needs neither scheme nor port."""
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname or "", parts.hostname)  # noqa: S104 - nothing is bound
    host = f"[{host}]" if ":" in (host or "") else host
    port = parts.port or (443 if parts.scheme == "https" else 80 if "://" in text else 11434)
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


def read_ollama(url: str) -> Draft:
    """Ask an Ollama for its models.

    Args:
        url: See `full_url`.

    Raises:
        NoAnswer: It does not answer, or not as Ollama does.
    """
    draft = Draft(f"llmux import ollama {url}")
    parts = urlsplit(url)
    is_here = parts.scheme == "http" and parts.hostname == "127.0.0.1" and not parts.path
    where = {"port": parts.port} if is_here else {"url": url}
    for model in _models_of(url):
        details = model.get("details")
        facts = details if isinstance(details, dict) else {}
        shown = [facts.get("parameter_size"), facts.get("quantization_level"), _size(model)]
        notes = [", ".join(str(fact) for fact in shown if fact)]
        draft.models[model["name"]] = ModelDraft({"recipe": "ollama", **where}, notes)
    if not draft.models:
        raise NoAnswer(f"the Ollama at {url} has no models: `ollama pull` one first")
    return draft


def _models_of(url: str) -> list[Mapping[str, Any]]:
    is_here = urlsplit(url).hostname in LOOPBACK  # to which no proxy of the environment leads
    try:
        with httpx.Client(timeout=ANSWER_S, trust_env=not is_here) as client:
            answer = client.get(f"{url}/api/tags")
        if answer.status_code != 200:
            told = f"{url}/api/tags answers HTTP {answer.status_code}: is this an Ollama?"
            raise NoAnswer(told)
        found = answer.json()["models"]
        return [model for model in found if isinstance(model["name"], str)]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        raise NoAnswer(f"cannot reach an Ollama at {url}: {why}") from None
    except (ValueError, KeyError, TypeError):
        raise NoAnswer(f"{url}/api/tags does not answer as Ollama does") from None


def _size(model: Mapping[str, Any]) -> str:
    size = model.get("size")
    if not isinstance(size, int | float) or size >= MOST_BYTES:
        return ""
    return f"{size / 1e9:.1f} GB"
