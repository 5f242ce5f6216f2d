#!/bin/sh
# Wake hook: starts a server, if none runs, or brings the one that is suspended back onto the GPU, and
# waits until it answers on $LLMUX_PORT.
#
#   ./wake.sh COMMAND [ARGUMENTS]
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

deadline=$(($(now) + ${WAKE_SECS:-580}))

# Stops the server, since it does not work, and fails.
fail() {
    trap '' TERM INT HUP
    if left; then
        tail -n 15 "$log_file" >&2 || :
        stop_server 2 || :
        say "$1; the server has been stopped"
    else
        say "$1"
    fi
    exit 1
}
trap 'fail "was told to end"' TERM INT HUP

start() {
    command -v "$1" >/dev/null || fail "$1 not found; give the command that starts the server"
    mkdir -p "$run"
    rm -f "$toggled"
    [ ! -e "$log_file" ] || mv -f "$log_file" "$log_file.1"
    # A session of its own lets it outlive this hook, and lets sleep.sh end it with its workers.
    setsid "$@" >"$log_file" 2>&1 </dev/null &
    leader=$!
    # shellcheck disable=SC2046 # in words
    set -- $(stat_of "$leader")
    echo "$leader ${20:-ended} $(cat /proc/sys/kernel/random/boot_id)" >"$pid_file"
}

command -v curl >/dev/null || fail "curl not found; install it"
[ $# -gt 0 ] || fail "usage: wake.sh COMMAND [ARGUMENTS]"

if ! runs; then
    stop_server 2 # workers that outlived their server would hold the GPU
    if answers; then
        fail "port $LLMUX_PORT is taken by a server that wake.sh did not start; stop it"
    fi
    start "$@"
elif can_ask; then
    resume || fail "cannot resume the server: $answer"
elif [ -e "$toggled" ]; then
    cuda "${COPY_SECS:-60}" --toggle --pid "$leader" || fail "cannot resume the server: $answer"
    rm -f "$toggled"
fi

until answers; do
    [ "$(now)" -lt "$deadline" ] || fail "no answer on port $LLMUX_PORT within ${WAKE_SECS:-580} s \
(WAKE_SECS, to be kept below the wake time-out in hook_timeouts)"
    sleep 0.1
    if ! runs; then
        tail -n 15 "$log_file" >&2 || :
        fail "the server ended by itself; why stands above and in $log_file"
    fi
done
