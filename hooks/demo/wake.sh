#!/bin/sh
# Wake hook: starts a server for $LLMUX_MODEL on $LLMUX_PORT, if none runs, and waits until it
# answers. Arguments go to the server: ./wake.sh --rate 20
set -eu
standin() { sh "$(dirname "$0")/standin.sh" "$@"; }

# A server in the background outlives this script; llmux does not end it.
if ! standin wait --timeout 0 --port "$LLMUX_PORT" >/dev/null 2>&1; then
    sh "$(dirname "$0")/standin.sh" serve --model "$LLMUX_MODEL" --port "$LLMUX_PORT" \
        --pidfile "${RUN_DIR:-run}/standin-$LLMUX_PORT.pid" "$@" &
fi
standin wait --port "$LLMUX_PORT"
