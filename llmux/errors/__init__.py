"""Errors, each with its own HTTP response.

An error raised anywhere below the proxy ends as one JSON response, written in one place
(`llmux.openai.answers.error_answer`), from the attributes that the error carries.
"""

from llmux.errors.backend import (
    BackendBroke,
    BackendError,
    BackendRefused,
    BackendSaid,
    BackendSilent,
    NoStream,
)
from llmux.errors.base import (
    InternalError,
    LlmuxError,
)
from llmux.errors.config import (
    ConfigError,
    ConfigMistakes,
)
from llmux.errors.hook import (
    HookError,
    NotAlive,
)
from llmux.errors.request import (
    BadRequest,
    BodyTooLarge,
    Forbidden,
    GroupNotFound,
    HeadTooLarge,
    IdNotFound,
    InvalidKey,
    LoopDetected,
    ModelNotFound,
    NoModel,
    NotHere,
    NotJson,
    PathNotFound,
    RequestNotFound,
    RequestTooSlow,
    TooManyFields,
    UnsupportedCoding,
)
from llmux.errors.switching import (
    ManualMode,
    ModelAsleep,
    ModelFailing,
    NoRoom,
    NotReady,
    PinLost,
    Pinned,
    QueueFull,
    RequestCancelled,
    ShuttingDown,
    StreamCut,
    SwitcherDied,
    SwitchTimeout,
    TooManyConnections,
    WouldSwitch,
)

__all__ = [
    "BackendBroke",
    "BackendError",
    "BackendRefused",
    "BackendSaid",
    "BackendSilent",
    "BadRequest",
    "BodyTooLarge",
    "ConfigError",
    "ConfigMistakes",
    "Forbidden",
    "GroupNotFound",
    "HeadTooLarge",
    "HookError",
    "IdNotFound",
    "InternalError",
    "InvalidKey",
    "LlmuxError",
    "LoopDetected",
    "ManualMode",
    "ModelAsleep",
    "ModelFailing",
    "ModelNotFound",
    "NoModel",
    "NoRoom",
    "NoStream",
    "NotAlive",
    "NotHere",
    "NotJson",
    "NotReady",
    "PathNotFound",
    "PinLost",
    "Pinned",
    "QueueFull",
    "RequestCancelled",
    "RequestNotFound",
    "RequestTooSlow",
    "ShuttingDown",
    "StreamCut",
    "SwitchTimeout",
    "SwitcherDied",
    "TooManyConnections",
    "TooManyFields",
    "UnsupportedCoding",
    "WouldSwitch",
]
