#!/bin/sh
# Verifies that no process of the server on $LLMUX_PORT runs, and that nothing listens on its port.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

if find_left; then
    say "the server still runs as process $left"
    exit 1
fi
if is_taken; then
    say "a server that wake.sh did not start answers on $here"
    exit 1
fi
