#!/bin/sh
# Sleep hook: stops a container, and returns when it has ended. Succeeds if it does not run.
#
#   ./sleep.sh [CONTAINER]    default: $LLMUX_MODEL
set -eu
# shellcheck source-path=SCRIPTDIR source=container.sh
. "$(dirname "$0")/container.sh"

name=${1:-$LLMUX_MODEL}

look
if is_down; then
    exit 0
fi
stop_container "${SLEEP_SECS:-30}" || {
    say "container $name still runs ($state)"
    exit 1
}
