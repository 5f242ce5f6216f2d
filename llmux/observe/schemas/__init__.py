"""The JSON objects that llmux's own paths send and receive, one module per subject.

Points in time (`at`, `since`, `started`, ...) are Unix times in seconds, durations end in `_secs`.
Docstrings become descriptions in the OpenAPI document; see `llmux.api.openapi`.
"""

from llmux.observe.schemas.base import Message, ModelState, ModeName, Order, Shape
from llmux.observe.schemas.failures import Error, ErrorDetail, OllamaError
from llmux.observe.schemas.listings import (
    ModelFacts,
    ModelList,
    ModelObject,
    OllamaDetails,
    OllamaModel,
    OllamaProcesses,
    OllamaRunning,
    OllamaTag,
    OllamaTags,
    OllamaVersion,
    RunningModel,
    RunningModels,
    Unloaded,
)
from llmux.observe.schemas.operators import ModeChange, Pin, PinChange, Reloaded
from llmux.observe.schemas.orders import ModelOrder, ModeOrder, PinOrder, UnpinOrder
from llmux.observe.schemas.requests import (
    Counts,
    RequestChanges,
    RequestInfo,
    RequestList,
    RequestPhase,
    TokenRates,
)
from llmux.observe.schemas.status import (
    Alive,
    Gpu,
    GroupState,
    GroupStatus,
    Health,
    History,
    Journal,
    ModelStatus,
    Run,
    Status,
)
from llmux.observe.schemas.switches import (
    AliveChange,
    AliveTrouble,
    FailingChange,
    HookRun,
    PhaseChange,
    SwitchRecord,
    SwitchResult,
)

__all__ = [
    "Alive",
    "AliveChange",
    "AliveTrouble",
    "Counts",
    "Error",
    "ErrorDetail",
    "FailingChange",
    "Gpu",
    "GroupState",
    "GroupStatus",
    "Health",
    "History",
    "HookRun",
    "Journal",
    "Message",
    "ModeChange",
    "ModeName",
    "ModeOrder",
    "ModelFacts",
    "ModelList",
    "ModelObject",
    "ModelOrder",
    "ModelState",
    "ModelStatus",
    "OllamaDetails",
    "OllamaError",
    "OllamaModel",
    "OllamaProcesses",
    "OllamaRunning",
    "OllamaTag",
    "OllamaTags",
    "OllamaVersion",
    "Order",
    "PhaseChange",
    "Pin",
    "PinChange",
    "PinOrder",
    "Reloaded",
    "RequestChanges",
    "RequestInfo",
    "RequestList",
    "RequestPhase",
    "Run",
    "RunningModel",
    "RunningModels",
    "Shape",
    "Status",
    "SwitchRecord",
    "SwitchResult",
    "TokenRates",
    "Unloaded",
    "UnpinOrder",
]
