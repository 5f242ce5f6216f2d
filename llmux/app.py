"""The public face: `hypercorn llmux.app:app` serves llmux, `build_app` makes it from a config."""

from llmux.server.composition import build_app
from llmux.server.served import ServedApp

__all__ = ["app", "build_app"]

app = ServedApp()
