#!/bin/sh
# Wake hook: makes the Ollama server on $LLMUX_PORT load a model, and keep it loaded.
#
#   ./wake.sh [MODEL]    as `ollama list` calls it; default: $LLMUX_MODEL
set -eu
# shellcheck source-path=SCRIPTDIR source=ollama.sh
. "$(dirname "$0")/ollama.sh"

model=${1:-$LLMUX_MODEL}

# Unloads a partly loaded model, and fails.
fail() {
    trap '' TERM INT HUP
    ask POST /api/generate 2 "$(about "$model" '"keep_alive": 0')"
    say "$1"
    exit 1
}
trap 'fail "was told to end"' TERM INT HUP

command -v curl >/dev/null || {
    say "curl not found; install it"
    exit 1
}

load() {
    ask POST /api/generate "${OLLAMA_WAKE_SECS:-580}" \
        "$(about "$model" '"keep_alive": -1, "stream": false')"
    case $status$body in
        400*'does not support generate'*) # a model for embeddings
            ask POST /api/embed "${OLLAMA_WAKE_SECS:-580}" \
                "$(about "$model" '"input": "", "keep_alive": -1')"
            ;;
    esac
    case $status in
        200) ;;
        000)
            look "$model"
            [ "$loaded" != unknown ] || fail "no Ollama server answers on port $LLMUX_PORT; start \
it: ollama serve, or systemctl start ollama"
            fail "$model was not loaded within ${OLLAMA_WAKE_SECS:-580} s (OLLAMA_WAKE_SECS, to be \
kept below the wake time-out in hook_timeouts)"
            ;;
        404) fail "Ollama has no model $model; get it: ollama pull $model ($(reason))" ;;
        *) fail "Ollama did not load $model: $(reason)" ;;
    esac
    look "$model"
}

# Also if it is loaded already: it may have been loaded for five minutes only.
load
# An unload that was under way may have removed it again.
[ "$loaded" = yes ] || load
[ "$loaded" = yes ] || fail "Ollama said that it has loaded $model, but /api/ps does not list it: \
$(reason)"
