#!/usr/bin/env bash
# Builds Ollama into a folder, unless it is there; prints its path.
#
#   ollama.sh FOLDER
#
# From the Go module proxy, with Ollama's own engine for a CPU (cgo): needs Go and a C++ compiler. LLMUX_BUILD_JOBS:
# compilers at a time (default: cores).
set -euo pipefail
folder=$1
version=v0.17.4
program=$folder/$version/ollama

if [ ! -x "$program" ]; then
    echo "== building Ollama $version in $folder (many minutes, once)" >&2
    for tool in go c++; do
        command -v "$tool" >/dev/null || {
            echo "ollama.sh: needs $tool" >&2
            exit 1
        }
    done
    mkdir -p "$folder/$version"
    GOFLAGS="-mod=mod -buildvcs=false" GOBIN=$folder/$version CGO_CFLAGS=-O1 CGO_CXXFLAGS=-O1 \
        go install -p "${LLMUX_BUILD_JOBS:-$(nproc)}" \
        -ldflags "-X github.com/ollama/ollama/version.Version=${version#v}" \
        "github.com/ollama/ollama@$version" >&2
fi
echo "$program"
