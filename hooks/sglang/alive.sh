#!/bin/sh
# Alive hook: succeeds if the SGLang server on $LLMUX_PORT answers and is awake.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

if ! runs; then
    say "no server of wake.sh's runs on port $LLMUX_PORT"
    exit 1
fi
serves || {
    say "not awake: $state; GET /health: status $status"
    exit 1
}
