"""Serves as `llama-server` does, with llama.cpp's server in xllamacpp: the options that tests use.

The HTTP server, its log and what it does with a model are llama.cpp's; its command line is not.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib import import_module
from typing import Any


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the options; exits as llama-server does if one is unknown."""
    parser = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--alias")
    parser.add_argument("--api-key")
    parser.add_argument("--ctx-size", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--n-gpu-layers", type=int, default=0)
    parser.add_argument("--pooling", choices=["mean"])
    for flag in ("--no-warmup", "--slots", "--embeddings", "--no-mmap"):
        parser.add_argument(flag, action="store_true")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        sys.exit(f"error: invalid argument: {unknown[0]}")
    return options


def parameters(api: Any, options: argparse.Namespace) -> Any:
    """Return the options as xllamacpp has them."""
    found = api.CommonParams()
    found.model.path = options.model
    found.hostnames = [options.host]
    found.port = options.port
    found.n_ctx = options.ctx_size
    found.n_parallel = options.parallel
    found.cpuparams.n_threads = options.threads
    found.warmup = not options.no_warmup
    found.endpoint_slots = True
    found.embedding = options.embeddings
    if options.pooling:
        found.pooling_type = api.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if options.alias:
        found.model_alias = {options.alias}
    if options.api_key:
        found.api_keys = [options.api_key]
    return found


def main() -> None:
    """Serve until SIGTERM."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    api = import_module("xllamacpp")
    try:
        server = api.Server(parameters(api, options))
    except RuntimeError:
        os._exit(1)  # the server's log says why
    while server:
        signal.pause()


if __name__ == "__main__":
    main()
