#!/usr/bin/env bash
# Runs the tests marked `real` against real llama.cpp servers.
#
# They need two things, both taken from the environment if they are there:
#   LLMUX_MODELS_DIR   a folder with tiny-a.gguf and tiny-b.gguf
#   LLMUX_REAL_PYTHON  a Python that has llama-cpp-python[server]; else it is compiled into .venv-real
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${LLMUX_MODELS_DIR:-}" ]; then
    for folder in ../shared/models shared/models models; do
        [ -f "$folder/tiny-a.gguf" ] && LLMUX_MODELS_DIR=$(cd "$folder" && pwd) && break
    done
fi
if [ -z "${LLMUX_MODELS_DIR:-}" ]; then
    echo "test-real: set LLMUX_MODELS_DIR to a folder with tiny-a.gguf and tiny-b.gguf" >&2
    exit 1
fi

if [ -z "${LLMUX_REAL_PYTHON:-}" ]; then
    LLMUX_REAL_PYTHON=$PWD/.venv-real/bin/python
    if ! "$LLMUX_REAL_PYTHON" -c 'import llama_cpp.server' 2>/dev/null; then
        echo "== compiling llama.cpp into .venv-real (several minutes, once)"
        python3 -m venv .venv-real
        .venv-real/bin/pip install --quiet 'llama-cpp-python[server]'
    fi
fi

export LLMUX_MODELS_DIR LLMUX_REAL_PYTHON
exec .venv/bin/python -m pytest -m real "$@"
