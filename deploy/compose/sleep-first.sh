#!/bin/sh
# Runs a model server with vLLM's sleep mode, and puts it to sleep once it answers: so several can start
# one after the other, and none holds the GPU when llmux starts.
#
#   sleep-first.sh vllm serve MODEL --port 8000 --enable-sleep-mode ...
#
# $PORT is the server's, 8000 unless given. The health check looks for /tmp/has-slept.
set -eu
server=http://127.0.0.1:${PORT:-8000}
has_slept=${TMPDIR:-/tmp}/has-slept

rm -f "$has_slept"
"$@" &
id=$!
trap 'kill -TERM "$id" 2>/dev/null || :' TERM INT

while kill -0 "$id" 2>/dev/null; do
    if curl --silent --fail --noproxy '*' --output /dev/null "$server/health"; then
        if curl --silent --show-error --fail --noproxy '*' -X POST "$server/sleep?level=1"; then
            : >"$has_slept"
        else
            kill -TERM "$id" 2>/dev/null || :
        fi
        break
    fi
    sleep 0.2
done

# A signal breaks off `wait`, not the server.
while :; do
    wait "$id" && code=0 || code=$?
    kill -0 "$id" 2>/dev/null || exit "$code"
done
