#!/bin/sh
# Runs Envoy, and starts another one on SIGHUP, which takes over the sockets (a hot restart): new connections are the
# new one's, and the old one has $DRAIN_S seconds for what is open. If the new one cannot start, the old one stays.
#
#     envoy-parent.sh CONFIG [OPTION OF ENVOY ...]
#
# Copy to /usr/local/lib/llmux. Envoy asks to end with its parent, so this one stays as long as there is an Envoy.
set -u
config=$1
shift
envoy=${ENVOY:-/usr/local/bin/envoy}
drain_s=${DRAIN_S:-3600}
epoch=0
newest=
all=

start() {
    "$envoy" -c "$config" --restart-epoch "$epoch" --drain-time-s "$drain_s" \
        --parent-shutdown-time-s "$((drain_s + 10))" "$@" &
    newest=$!
    all="$all $newest"
}

end() {
    trap '' HUP TERM INT
    # Word splitting is meant: a list of process ids.
    # shellcheck disable=SC2086
    kill -TERM $all 2>/dev/null
    wait
    exit "$1"
}

wants_another=
trap 'wants_another=yes' HUP
trap 'end 0' TERM INT
start "$@"
while true; do
    if [ -n "$wants_another" ]; then
        wants_another=
        before=$newest
        epoch=$((epoch + 1))
        start "$@"
        sleep "${SETTLE_S:-2}"
        if ! kill -0 "$newest" 2>/dev/null; then
            echo "envoy-parent: the new Envoy has not started; the old one stays" >&2
            epoch=$((epoch - 1))
            newest=$before
        fi
    fi
    wait "$newest" # or until a signal
    code=$?
    if ! kill -0 "$newest" 2>/dev/null; then
        echo "envoy-parent: Envoy has ended (exit code $code)" >&2
        end 1
    fi
done
