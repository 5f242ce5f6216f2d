"""Model lists, in OpenAI's form and in Ollama's."""

from __future__ import annotations

from typing import Literal

import msgspec

from llmux.observe.schemas.base import ModelState, Shape


class ModelFacts(Shape, frozen=True):
    """Facts about a model that llmux adds to OpenAI's list.

    Attributes:
        state: The model's state.
        in_flight: Number of requests in flight.
        queued: Number of requests that wait.
        failing: True if the model's wake keeps failing; only present then.
        alias_of: The model that an alias stands for; only present for aliases.
    """

    state: ModelState
    in_flight: int
    queued: int
    failing: bool | msgspec.UnsetType = msgspec.UNSET
    alias_of: str | msgspec.UnsetType = msgspec.UNSET


class ModelObject(Shape, frozen=True):
    """A model, as OpenAI's API shows it.

    Attributes:
        id: The model's name.
        object: Always `model`.
        created: When llmux was started.
        owned_by: Always `llmux`.
        llmux: Its state and requests.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["llmux"]
    llmux: ModelFacts


class ModelList(Shape, frozen=True):
    """All models.

    Attributes:
        object: Always `list`.
        data: The models and aliases, sorted by name.
    """

    object: Literal["list"]
    data: list[ModelObject]


class RunningModel(Shape, frozen=True):
    """A model that is not asleep, in llama-swap's form.

    Attributes:
        model: The model's name.
        state: `starting`: it is being woken. `ready`: awake. `stopping`: it drains, or is put to
            sleep.
        cmd: Empty; see /control/config.
        proxy: Empty; see /control/config.
        ttl: The model's idle_sleep_secs; 0 for never.
        name: Empty.
        description: Empty.
    """

    model: str
    state: Literal["starting", "ready", "stopping"]
    cmd: str
    proxy: str
    ttl: int
    name: str
    description: str


class RunningModels(Shape, frozen=True):
    """The models that are not asleep, in llama-swap's form.

    Attributes:
        running: The models, sorted by name.
    """

    running: list[RunningModel]


class Unloaded(Shape, frozen=True):
    """All models are asleep, in llama-swap's words.

    Attributes:
        msg: Always `ok`.
    """

    msg: Literal["ok"]


class OllamaDetails(Shape, frozen=True):
    """Facts about a model's file in Ollama's form; llmux knows none of them.

    Attributes:
        parent_model: Empty.
        format: Empty.
        family: Empty.
        families: Empty.
        parameter_size: Empty.
        quantization_level: Empty.
    """

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(Shape, frozen=True):
    """The fields that both of Ollama's lists have in common.

    The docstrings of the subclasses repeat them, since each becomes a description in the OpenAPI
    document.
    """

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaTag(OllamaModel, frozen=True):
    """A model in Ollama's list.

    Attributes:
        name: The model's name.
        model: The model's name, too.
        size: Always 0, since llmux does not know it.
        digest: A hash of the name.
        details: Empty fields.
        modified_at: When llmux was started.
    """

    modified_at: str


class OllamaTags(Shape, frozen=True):
    """All models, in Ollama's form.

    Attributes:
        models: The models and aliases, sorted by name.
    """

    models: list[OllamaTag]


class OllamaRunning(OllamaModel, frozen=True):
    """A model that is awake, in Ollama's form.

    Attributes:
        name: The model's name.
        model: The model's name, too.
        size: Always 0, since llmux does not know it.
        digest: A hash of the name.
        details: Empty fields.
        expires_at: A hundred years from now, since llmux decides when the model sleeps.
        size_vram: Always 0, since llmux does not know it.
        context_length: Always 0, since llmux does not know it.
    """

    expires_at: str
    size_vram: int
    context_length: int


class OllamaProcesses(Shape, frozen=True):
    """The models that are awake, in Ollama's form.

    Attributes:
        models: The models, sorted by name.
    """

    models: list[OllamaRunning]


class OllamaVersion(Shape, frozen=True):
    """The version, in Ollama's form.

    Attributes:
        version: The version of Ollama whose answers llmux copies; clients refuse older ones.
    """

    version: str
