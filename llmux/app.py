"""The public face: `hypercorn llmux.app:app` serves llmux, `build_app` makes it from a config."""

from llmux.server.composition import ServedApp, build_app

__all__ = ["app", "build_app"]

app = ServedApp()
