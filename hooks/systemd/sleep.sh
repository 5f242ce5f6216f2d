#!/bin/sh
# Sleep hook: stops a systemd unit, and returns when nothing of it runs. Succeeds if it is not
# active.
#
#   ./sleep.sh [--user] [UNIT]    default: $LLMUX_MODEL.service
set -eu
# shellcheck source-path=SCRIPTDIR source=unit.sh
. "$(dirname "$0")/unit.sh"

look
if is_down; then
    exit 0
fi
systemctl "${SLEEP_SECS:-90}" stop "$unit" || {
    why=$answer
    look
    if ! is_down; then
        say "cannot stop unit $unit: $why; killing it"
        systemctl 10 kill --signal KILL "$unit" || {
            say "cannot kill unit $unit: $answer"
            exit 1
        }
    fi
}
deadline=$(($(now) + 5))
look
until is_down; do
    [ "$(now)" -lt "$deadline" ] || {
        say "unit $unit is still $state"
        exit 1
    }
    sleep 0.1
    look
done
