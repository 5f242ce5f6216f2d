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
# With `needs`, llama.cpp must not fill what is free just now: others count on it. Older versions have no --fit.
[ -z "${LLMUX_NEEDS:-}" ] || export LLAMA_ARG_FIT="${LLAMA_ARG_FIT:-off}"
wake '' sh -c "$1"
