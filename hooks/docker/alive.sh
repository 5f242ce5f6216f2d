#!/bin/sh
# Alive hook: succeeds if a container runs, is not unhealthy, and the server in it answers.
#
#   ./alive.sh [CONTAINER]    default: $LLMUX_MODEL
set -eu
# shellcheck source-path=SCRIPTDIR source=container.sh
. "$(dirname "$0")/container.sh"

name=${1:-$LLMUX_MODEL}

look
serves || {
    say "container $name is ${state}${health:+, $health}, or does not answer on port $LLMUX_PORT"
    exit 1
}
