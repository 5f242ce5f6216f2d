#!/bin/sh
# Verifies that nothing of a systemd unit runs, so that nothing of it is on the GPU.
#
#   ./verify_asleep.sh [--user] [UNIT]    default: $LLMUX_MODEL.service
set -eu
# shellcheck source-path=SCRIPTDIR source=unit.sh
. "$(dirname "$0")/unit.sh"

look
is_down || {
    say "unit $unit is $state"
    exit 1
}
