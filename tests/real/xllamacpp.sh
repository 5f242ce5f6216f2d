#!/usr/bin/env bash
# Installs llama.cpp's HTTP server from a wheel, unless it is there; prints a program that starts it.
#
#   xllamacpp.sh FOLDER
#
# xllamacpp has the server's C++ code as a Python module. It needs a minute, where llama-server.sh compiles for many.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
version=2026.10.11549
program=$folder/llama-server

if [ ! -x "$program" ]; then
    echo "== installing xllamacpp $version in $folder" >&2
    python3 -m venv "$folder" >&2
    "$folder/bin/pip" install --quiet --only-binary :all: "xllamacpp==$version" >&2
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$folder/bin/python" "$here/xllamacpp_server.py" >"$program"
    chmod +x "$program"
fi
echo "$program"
