#!/bin/sh
# Alive hook: succeeds if the server that wake.sh started runs and answers its health check.
#
#   ./alive.sh [COMMAND]    fails, too, if it was started with another command
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

if ! runs; then
    say "no server of wake.sh's runs"
    exit 1
fi
if [ -n "${1:-}" ] && is_other sh -c "$1"; then
    say "the server runs with another command than the config's"
    exit 1
fi
answers || {
    say "no answer to GET $address${HEALTH_PATH:-/health} (status $status)"
    exit 1
}
