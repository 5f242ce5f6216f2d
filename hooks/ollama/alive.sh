#!/bin/sh
# Alive hook: succeeds if the Ollama server on $LLMUX_PORT answers and has the model loaded.
#
#   ./alive.sh [MODEL]    as `ollama list` calls it; default: $LLMUX_MODEL
set -eu
# shellcheck source-path=SCRIPTDIR source=ollama.sh
. "$(dirname "$0")/ollama.sh"

look "${1:-$LLMUX_MODEL}" 8
[ "$loaded" = yes ] || {
    say "not loaded: GET /api/ps: $(reason)"
    exit 1
}
