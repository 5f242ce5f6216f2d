#!/bin/sh
# Alive hook: succeeds if a llama.cpp server on $LLMUX_PORT has loaded its model and answers.
set -eu
# llama-server answers /health with 503 while it loads. llama_cpp.server has no such path, but
# listens only once it has loaded: a 404 means that it is ready.
# shellcheck disable=SC2034 # used by the sourced script
ready_too=404
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

answers || {
    say "no answer to GET $address/health (status $status)"
    exit 1
}
