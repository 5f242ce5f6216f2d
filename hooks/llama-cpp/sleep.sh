#!/bin/sh
# Sleep hook: stops the server on $LLMUX_PORT and returns when it is gone and its memory is free.
# Succeeds if none runs.
set -eu
here=$(dirname "$0")

# Waits for the given seconds; fails if the server still runs.
wait_until_gone() {
    deadline=$(($(date +%s) + $1))
    while "$here/pid.sh" >/dev/null; do
        [ "$(date +%s)" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

if pid=$("$here/pid.sh"); then
    kill "$pid" || : # it may have ended just now
    wait_until_gone "${LLAMA_SLEEP_SECS:-30}" || {
        echo "sleep.sh: process $pid ignores SIGTERM; killing it" >&2
        kill -KILL "$pid" || :
        wait_until_gone 10
    }
fi
rm -f "run/llama-cpp-$LLMUX_PORT.pid"
