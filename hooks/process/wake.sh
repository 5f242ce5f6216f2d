#!/bin/sh
# Wake hook: starts a server on $LLMUX_PORT, if none runs, and waits until it answers.
#
#   ./wake.sh COMMAND    one argument, which `sh` runs; $PORT in it is the port
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

[ -n "${1:-}" ] || fail "usage: wake.sh COMMAND"
PORT=$LLMUX_PORT
export PORT
wake '' sh -c "$1"
