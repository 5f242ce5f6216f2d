#!/bin/sh
# Wake hook: starts a container, if it does not run, and waits until the server in it answers on
# $LLMUX_PORT.
#
#   ./wake.sh [CONTAINER]    default: $LLMUX_MODEL
set -eu
# shellcheck source-path=SCRIPTDIR source=container.sh
. "$(dirname "$0")/container.sh"

name=${1:-$LLMUX_MODEL}
deadline=$(($(now) + ${WAKE_SECS:-580}))

# Stops the container, since it does not work, and fails.
fail() {
    trap '' TERM INT HUP
    reason=$1
    look
    if ! is_down; then
        if podman 5 logs --tail 15 "$name"; then
            echo "$answer" >&2
        fi
        if stop_container 2; then
            reason="$reason; the container has been stopped"
        fi
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
case $state in
    running | restarting) ;;
    absent) fail "there is no container $name; make it once, with podman create (see README.md)" ;;
    paused) podman 30 unpause "$name" || fail "podman unpause $name: $answer" ;;
    *) podman "${WAKE_SECS:-580}" start "$name" || fail "podman start $name: $answer" ;;
esac

look
until serves; do
    if is_down; then
        if podman 5 logs --tail 15 "$name"; then
            echo "$answer" >&2
        fi
        fail "container $name ended ($state) before it answered; why may stand above"
    fi
    [ "$(now)" -lt "$deadline" ] || fail "no answer from container $name on port $LLMUX_PORT within \
${WAKE_SECS:-580} s (state: $state${health:+, $health}; WAKE_SECS, to be kept below the wake time-out \
in hook_timeouts)"
    sleep 0.1
    look
done
