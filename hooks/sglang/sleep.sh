#!/bin/sh
# Sleep hook: makes the SGLang server on $LLMUX_PORT release its memory. Succeeds if none runs, or it
# sleeps already. A server that cannot be put to sleep is stopped, so that the GPU is free anyway.
#
#   ./sleep.sh [stop]    stop: the server is stopped: SIGTERM, and SIGKILL 30 s later.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

# give_up REASON: fails, so that llmux reports it; the GPU is free.
give_up() {
    tail -n 15 "$log_file" >&2 || :
    stop_server 10 || exit 1
    say "$1; the server has been stopped, the next wake starts it again"
    exit 1
}

case ${1:-} in
    '') ;;
    stop)
        stop_server 30
        exit
        ;;
    *)
        say "what to do must be stop, not $1"
        exit 1
        ;;
esac

look
if ! left; then
    stop_server 0
    exit 0
fi
case $state in
    between) give_up "falling asleep or waking was broken off" ;;
    asleep) runs && exit ;;
esac
ask GET /get_model_info 20
if [ "$status" != 200 ]; then
    say "the server starts, hangs or has ended (GET /get_model_info: status $status); stopping it"
    stop_server 10
    exit
fi

enter between
# llmux has drained it; a running request would make this crash it.
ask POST /release_memory_occupation "${SGLANG_SLEEP_SECS:-100}" \
    --header 'Content-Type: application/json' --data '{}'
case $status in
    200) enter asleep ;;
    000) give_up "no answer to POST /release_memory_occupation (did requests come past llmux?)" ;;
    *) give_up "POST /release_memory_occupation: status $status $(printf %s "$body" | head -c 300)" ;;
esac
runs || give_up "the server ended when it was put to sleep"
