#!/usr/bin/env bash
# Runs tests under every CPython from 3.11 to 3.14 that this machine has: `tests/pythons.sh [PYTEST ARGUMENT]...`
#
# Each version gets a virtual environment of its own, .venv-3.X; the one that .venv was made with uses .venv.
# OTHERS=1 leaves that one out, for a caller that has just run `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."

is_version() { # EXECUTABLE VERSION; a pyenv shim exists for each version, but not each one runs
    [ "$("$1" -c 'import platform, sys; print(platform.python_implementation(), "%d.%d" % sys.version_info[:2])' \
        2> /dev/null)" = "CPython $2" ]
}

interpreter() { # VERSION
    local candidate
    while read -r candidate; do
        if is_version "$candidate" "$1"; then
            echo "$candidate"
            return
        fi
    done < <(
        type -ap "python$1" || true
        printf '%s\n' ~/.pyenv/versions/"$1".*/bin/python | sort --version-sort --reverse
    )
}

environment() { # VERSION EXECUTABLE; prints the Python of an environment that has the test tools
    local folder=.venv-$1
    if [ ! -e "$folder/.installed" ] || [ pyproject.toml -nt "$folder/.installed" ] ||
        [ constraints.txt -nt "$folder/.installed" ]; then
        "$2" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[test]' >&2
        touch "$folder/.installed"
    fi
    echo "$folder/bin/python"
}

passed=() failed=() absent=()
for version in 3.11 3.12 3.13 3.14; do
    if is_version .venv/bin/python "$version"; then
        [ "${OTHERS:-}" = 1 ] && continue
        python=.venv/bin/python
    else
        found=$(interpreter "$version")
        if [ -z "$found" ]; then
            absent+=("$version")
            continue
        fi
        echo "== Python $version ($found)"
        if ! python=$(environment "$version" "$found"); then
            failed+=("$version: not installed")
            continue
        fi
    fi
    echo "== tests under $("$python" --version)"
    if "$python" -m pytest -n 4 --dist=worksteal -m "not slow and not real" "$@"; then
        passed+=("$version")
    else
        failed+=("$version")
    fi
done

echo "== Pythons: passed ${passed[*]:-none}; failed ${failed[*]:-none}; not on this machine ${absent[*]:-none}"
((${#failed[@]} == 0))
