#!/bin/sh
# Sleep hook: stops the server on $LLMUX_PORT and returns when it is gone. Succeeds if none runs.
set -eu

sh "$(dirname "$0")/standin.sh" stop --pidfile "${RUN_DIR:-run}/standin-$LLMUX_PORT.pid"
