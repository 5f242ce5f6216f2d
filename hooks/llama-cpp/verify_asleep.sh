#!/bin/sh
# Verifies that no server runs on $LLMUX_PORT, so that nothing of it is on the GPU.
set -eu
here=$(dirname "$0")

if pid=$("$here/pid.sh"); then
    echo "verify_asleep.sh: the server still runs as process $pid" >&2
    exit 1
fi
if "$here/alive.sh"; then
    echo "verify_asleep.sh: a server that wake.sh did not start answers on port $LLMUX_PORT" >&2
    exit 1
fi
