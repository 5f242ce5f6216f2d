#!/bin/sh
# Verifies that the Ollama server on $LLMUX_PORT has the model unloaded, or does not run.
#
#   ./verify_asleep.sh [MODEL]    as `ollama list` calls it; default: $LLMUX_MODEL
set -eu
# shellcheck source-path=SCRIPTDIR source=ollama.sh
. "$(dirname "$0")/ollama.sh"

look "${1:-$LLMUX_MODEL}" 20
case $status$loaded in
    000* | *no) ;;
    *)
        say "still loaded: GET /api/ps: $(reason)"
        exit 1
        ;;
esac
