"""The client side of the proxy: one request to a model server, its answer streamed back."""

from llmux.backend.answers import Answer
from llmux.backend.exchange import Backend

__all__ = ["Answer", "Backend"]
