#!/bin/sh
# Wake hook: starts a systemd unit, if it is not active, and waits until its server answers on
# $LLMUX_PORT.
#
#   ./wake.sh [--user] [UNIT]    default: $LLMUX_MODEL.service
set -eu
# shellcheck source-path=SCRIPTDIR source=unit.sh
. "$(dirname "$0")/unit.sh"

deadline=$(($(now) + ${WAKE_SECS:-580}))

# Stops the unit, since it does not work, and fails.
fail() {
    trap '' TERM INT HUP
    reason=$1
    look
    if ! is_down || [ "$state" = failed ]; then
        systemctl 5 status --no-pager --full --lines 15 "$unit" || : # 3: it is not active
        echo "$answer" >&2
    fi
    if ! is_down; then
        # The stop goes on after 3 s; sleep.sh, which llmux runs next, waits for it.
        systemctl 3 stop "$unit" || :
        reason="$reason; the unit has been told to stop"
    fi
    say "$reason"
    exit 1
}
trap 'fail "was told to end"' TERM INT HUP

command -v curl >/dev/null || {
    say "curl not found; install it"
    exit 1
}

look
case $loaded in
    loaded) ;;
    not-found) fail "there is no unit $unit; make it (see README.md), then systemctl $scope \
daemon-reload" ;;
    *) fail "unit $unit is $loaded; look at it with systemctl $scope status $unit" ;;
esac
case $state in
    active | activating) ;;
    *)
        # A failed unit may have reached its start limit.
        [ "$state" != failed ] || systemctl 20 reset-failed "$unit" || :
        systemctl "${WAKE_SECS:-580}" start "$unit" || fail "cannot start unit $unit: $answer"
        ;;
esac

look
until serves; do
    if is_down; then
        fail "unit $unit ended ($state) before it answered"
    fi
    [ "$(now)" -lt "$deadline" ] || fail "no answer from unit $unit on port $LLMUX_PORT within \
${WAKE_SECS:-580} s ($state; WAKE_SECS, to be kept below the wake time-out in hook_timeouts)"
    sleep 0.1
    look
done
