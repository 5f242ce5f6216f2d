#!/bin/sh
# Verifies that the SGLang server on $LLMUX_PORT holds no model: it has released its memory, or nothing
# of it runs.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

look
if ! left || { [ "$state" = asleep ] && runs; }; then
    exit 0
fi
say "process ${left}runs, and is $state"
exit 1
