#!/bin/sh
# Sleep hook: stops the server on $LLMUX_PORT with all that it has started, and returns when it is gone.
# Succeeds if none runs.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

stop_server "${LLAMA_SLEEP_SECS:-30}"
