#!/bin/sh
# Alive hook: succeeds if the vLLM server on $LLMUX_PORT answers and is awake.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

if [ -e "$half_awake" ]; then
    say "half awake: a wake goes on, or was broken off"
    exit 1
fi
serves || {
    say "not awake: $method $path: status $status $body"
    exit 1
}
