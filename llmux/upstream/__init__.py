"""The client side of the proxy: one request to a model server, its answer streamed back."""

from llmux.upstream.answers import Answer
from llmux.upstream.exchange import Backend

__all__ = ["Answer", "Backend"]
