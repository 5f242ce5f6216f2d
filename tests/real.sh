#!/usr/bin/env bash
# Runs the tests marked `real` against real model servers.
#
#   tests/real.sh [SERVER...] [-- PYTEST OPTIONS]
#
# SERVER is a name of a script in tests/real: llama-server, ollama, ...; by default, all of them. The script installs
# its server into .venv-real/SERVER, once, and prints the program. To use one that is there already, set LLMUX_SERVER
# (LLMUX_LLAMA_SERVER=/opt/llama.cpp/llama-server, LLMUX_OLLAMA=...). A server that cannot be installed is left out,
# which is a failure if it was named.
#
# Two tiny models, tiny-a.gguf and tiny-b.gguf, are made in .venv-real/models unless LLMUX_MODELS_DIR has them.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "test-real: $*" >&2; }

scripts=(tests/real/*.sh)
all=("${scripts[@]##*/}")
all=("${all[@]%.sh}")

chosen=()
while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
    [ -f "tests/real/$1.sh" ] || {
        say "no server $1; there are: ${all[*]}"
        exit 2
    }
    chosen+=("$1")
    shift
done
[ "${1:-}" != -- ] || shift
named=${#chosen[@]}
[ "$named" -gt 0 ] || chosen=("${all[@]}")

for folder in ../shared/models .venv-real/models; do
    [ -n "${LLMUX_MODELS_DIR:-}" ] || [ ! -f "$folder/tiny-b.gguf" ] || LLMUX_MODELS_DIR=$(cd "$folder" && pwd)
done
if [ -z "${LLMUX_MODELS_DIR:-}" ]; then
    say "making two tiny models in .venv-real/models"
    python3 -m venv .venv-real/gguf
    .venv-real/gguf/bin/pip install --quiet gguf numpy
    mkdir -p .venv-real/models
    .venv-real/gguf/bin/python tests/real/tiny_gguf.py tiny-a .venv-real/models/tiny-a.gguf 1
    .venv-real/gguf/bin/python tests/real/tiny_gguf.py tiny-b .venv-real/models/tiny-b.gguf 2
    LLMUX_MODELS_DIR=$PWD/.venv-real/models
fi
export LLMUX_MODELS_DIR

missing=()
for server in "${all[@]}"; do
    variable=LLMUX_$(tr 'a-z-' 'A-Z_' <<<"$server")
    if [[ " ${chosen[*]} " != *" $server "* ]]; then
        unset "$variable" # tests of a server are skipped without it
    elif [ -z "${!variable:-}" ]; then
        if program=$("tests/real/$server.sh" "$PWD/.venv-real/$server"); then
            export "$variable=$program"
        else
            missing+=("$server")
        fi
    fi
done

[ ${#missing[@]} -eq 0 ] || say "left out, since not installed: ${missing[*]}"
[ ${#missing[@]} -lt ${#chosen[@]} ] || exit 1
result=0
# Installations and loads take long: no tracebacks of all threads meanwhile.
.venv/bin/python -m pytest -m real -o testpaths=tests/real -o faulthandler_timeout=900 "$@" || result=$?
[ "$named" -eq 0 ] || [ ${#missing[@]} -eq 0 ] || result=1
exit "$result"
