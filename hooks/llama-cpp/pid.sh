#!/bin/sh
# Prints the process id of the server that wake.sh started on $LLMUX_PORT; fails if it has ended.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

runs
echo "$leader"
