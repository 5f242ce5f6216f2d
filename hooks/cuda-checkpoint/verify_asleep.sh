#!/bin/sh
# Verifies that nothing of the server on $LLMUX_PORT is on the GPU: it is suspended, or does not run.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

if ! left; then
    exit 0
fi
if can_ask; then
    look
    if [ -n "$checkpointed" ] && [ -z "$running$locked$broken" ]; then
        exit 0
    fi
    say "not suspended: running:$running, locked:$locked, failed:$broken, suspended:$checkpointed"
elif [ -e "$toggled" ]; then
    exit 0
else
    say "not suspended: process $leader"
fi
exit 1
