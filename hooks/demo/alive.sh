#!/bin/sh
# Alive hook: succeeds if the server on $LLMUX_PORT answers and is not asleep.
set -eu

sh "$(dirname "$0")/standin.sh" wait --awake --timeout 0 --port "$LLMUX_PORT"
