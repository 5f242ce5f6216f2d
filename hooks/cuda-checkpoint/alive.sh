#!/bin/sh
# Alive hook: succeeds if the server on $LLMUX_PORT runs, is not suspended, and answers.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

if ! runs; then
    say "no server of wake.sh's runs on port $LLMUX_PORT"
    exit 1
fi
if can_ask; then
    look
    suspended=$locked$checkpointed$broken
else
    suspended=$(cat "$toggled" 2>/dev/null && echo " $leader" || :)
fi
if [ -n "$suspended" ]; then
    say "suspended: process$suspended"
    exit 1
fi
answers || {
    say "no answer on port $LLMUX_PORT"
    exit 1
}
