#!/bin/sh
# Sleep hook: puts the vLLM server on $LLMUX_PORT to sleep. Succeeds if none runs or it sleeps already.
# A server that cannot be put to sleep is stopped, so that the GPU is free anyway.
#
#   ./sleep.sh [LEVEL]    1: weights go to the machine's memory (default). 2: they are dropped.
#                         stop: the server is stopped: SIGTERM, and SIGKILL 30 s later.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

level=${1:-1}
case $level in
    1 | 2 | stop) ;;
    *)
        say "level must be 1, 2 or stop, not $level"
        exit 1
        ;;
esac

# give_up REASON: fails, so that llmux reports it; the GPU is free if the server was ours.
give_up() {
    if left; then
        tail -n 15 "$log_file" >&2 || :
        stop_server 10 || exit 1
        say "$1; the server has been stopped, the next wake starts it again"
    else
        say "$1; wake.sh did not start it, so it is left alone"
    fi
    exit 1
}

if [ "$level" = stop ]; then
    stop_server 30
    look
    [ "$status" = 000 ] || give_up "a server still answers on port $LLMUX_PORT"
    exit 0
fi

# Part of its memory is back, but it reports that it sleeps, and ignores another /sleep.
if [ -e "$half_awake" ] && left; then
    give_up "a wake was broken off"
fi
look 20
if [ "$status" = 000 ]; then
    # No server, or one that starts, hangs, or has died and left workers.
    if left; then
        say "the server does not answer; stopping it"
    fi
    stop_server 10
    exit
fi
if [ "$sleeping" = yes ]; then
    [ ! -e "$half_awake" ] || give_up "a wake was broken off"
    exit 0
fi
[ "$sleeping" = no ] || give_up "GET /is_sleeping: status $status"

# llmux has drained it. `wait` is for requests that bypassed llmux. Older versions ignore it: a running
# request would kill their engine, although they answer 200.
ask POST "/sleep?level=$level&mode=wait" "${VLLM_SLEEP_SECS:-100}"
case $status in
    200) ;;
    404) give_up "POST /sleep: status 404; was it started with VLLM_SERVER_DEV_MODE=1?" ;;
    000) give_up "POST /sleep: no answer within ${VLLM_SLEEP_SECS:-100} s; do requests come past llmux?" ;;
    *) give_up "POST /sleep: status $status; was it started with --enable-sleep-mode?" ;;
esac
mkdir -p "$run"
echo "$level" >"$level_file"

deadline=$(($(now) + 10))
look
until [ "$sleeping" = yes ]; do
    # The engine itself answers this, so that a dead one does not count as asleep.
    case $status in
        200) [ "$(now)" -lt "$deadline" ] || give_up "still awake 10 s after POST /sleep" ;;
        *) give_up "the engine died when it was put to sleep (a request was running?)" ;;
    esac
    sleep 0.1
    look
done
