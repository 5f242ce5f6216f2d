#!/bin/sh
# Verifies that the vLLM server on $LLMUX_PORT holds no model: it sleeps, or nothing of it runs.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

if [ -e "$half_awake" ] && left; then
    say "half awake: a wake was broken off"
    exit 1
fi
look 20
if [ "$status" = 000 ]; then
    if ! left; then
        exit 0
    fi
    say "the server does not answer, but runs as process $left"
elif [ -e "$half_awake" ]; then
    say "half awake: a wake was broken off"
elif [ "$sleeping" = yes ]; then
    exit 0
else
    say "not asleep: GET /is_sleeping: status $status $body"
fi
exit 1
