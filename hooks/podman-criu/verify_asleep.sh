#!/bin/sh
# Verifies that a container does not run, so that nothing of it is on the GPU.
#
#   ./verify_asleep.sh [CONTAINER]    default: $LLMUX_MODEL
set -eu
# shellcheck source-path=SCRIPTDIR source=container.sh
. "$(dirname "$0")/container.sh"

name=${1:-$LLMUX_MODEL}

look
is_down || {
    say "container $name is $state"
    exit 1
}
