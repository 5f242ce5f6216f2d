#!/bin/sh
# Sleep hook: makes the Ollama server on $LLMUX_PORT unload a model, and waits until it has. Succeeds if
# it is not loaded, or no server answers.
#
#   ./sleep.sh [MODEL]    as `ollama list` calls it; default: $LLMUX_MODEL
set -eu
# shellcheck source-path=SCRIPTDIR source=ollama.sh
. "$(dirname "$0")/ollama.sh"

model=${1:-$LLMUX_MODEL}
deadline=$(($(now) + ${OLLAMA_SLEEP_SECS:-100}))

look "$model" 20
case $status$loaded in
    000*) exit 0 ;; # no server: Ollama ends its runners with itself
    *unknown)
        say "cannot tell what is loaded: $method $path: $(reason)"
        exit 1
        ;;
esac

# Also if it is not listed: it may still be loading for an interrupted wake.
ask POST /api/generate 20 "$(about "$model" '"keep_alive": 0')"
case $status in
    200 | 404) ;; # 404: there is no such model (any more)
    *)
        say "Ollama does not unload $model: $(reason)"
        exit 1
        ;;
esac
# Ollama answers at once, before it has unloaded the model.
look "$model"
while [ "$loaded" = yes ]; do
    [ "$(now)" -lt "$deadline" ] || {
        say "$model is still loaded after ${OLLAMA_SLEEP_SECS:-100} s; do requests come past llmux?"
        exit 1
    }
    sleep 0.1
    look "$model"
done
