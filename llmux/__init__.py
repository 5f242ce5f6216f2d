"""Serve many language models from one GPU, behind one OpenAI-compatible server."""

__version__ = "0.2.0"
