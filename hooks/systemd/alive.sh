#!/bin/sh
# Alive hook: succeeds if a systemd unit is active and its server answers.
#
#   ./alive.sh [--user] [UNIT]    default: $LLMUX_MODEL.service
set -eu
# shellcheck source-path=SCRIPTDIR source=unit.sh
. "$(dirname "$0")/unit.sh"

look
serves || {
    say "unit $unit is $state, or does not answer on port $LLMUX_PORT"
    exit 1
}
