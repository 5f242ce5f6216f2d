#!/usr/bin/env bash
# Installs llama-cpp-python's server into a virtual environment, unless it is there; prints the Python that has it.
#
#   llama-cpp-python.sh FOLDER
set -euo pipefail
folder=$1
program=${LLMUX_REAL_PYTHON:-$folder/bin/python}

if ! "$program" -c 'import llama_cpp.server' 2>/dev/null; then
    echo "== compiling llama-cpp-python in $folder (many minutes, once)" >&2
    {
        python3 -m venv "$folder"
        "$folder/bin/pip" install --quiet 'llama-cpp-python[server]'
    } >&2
    program=$folder/bin/python
fi
echo "$program"
