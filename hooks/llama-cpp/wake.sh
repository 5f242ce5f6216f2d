#!/bin/sh
# Wake hook: starts a llama.cpp server for $LLMUX_MODEL on $LLMUX_PORT, if none runs, and waits until
# it answers.
#
#   ./wake.sh MODEL.gguf [OPTIONS OF THE SERVER]
#
# The server is $LLAMA_SERVER or $LLAMA_PYTHON -m llama_cpp.server, whichever is set; if neither is,
# llama-server if it is on the PATH, else python3 -m llama_cpp.server.
set -eu
here=$(dirname "$0")
file=$1
shift

# Ends the server that wake.sh started, since it does not work, and fails.
fail() {
    "$here/sleep.sh" || :
    echo "wake.sh: $1" >&2
    exit 1
}

if "$here/pid.sh" >/dev/null; then
    : # it runs already, or still starts
elif "$here/alive.sh"; then
    fail "another server answers on port $LLMUX_PORT"
else
    mkdir -p run
    set -- --model "$file" --host 127.0.0.1 --port "$LLMUX_PORT" "$@"
    if [ -z "${LLAMA_SERVER:-}${LLAMA_PYTHON:-}" ] && command -v llama-server >/dev/null; then
        LLAMA_SERVER=llama-server
    fi
    python=${LLAMA_PYTHON:-python3}
    # Python's own message would name only the missing module.
    if [ -z "${LLAMA_SERVER:-}" ] && ! "$python" -c 'import importlib.util, sys
sys.exit(not importlib.util.find_spec("llama_cpp"))'; then
        fail "no server: llama-server is not on the PATH, and $python has no llama_cpp; \
set LLAMA_SERVER or LLAMA_PYTHON (README.md)"
    fi
    if [ -n "${LLAMA_SERVER:-}" ]; then
        "$LLAMA_SERVER" "$@" --alias "$LLMUX_MODEL" &
    else
        "$python" -m llama_cpp.server "$@" --model_alias "$LLMUX_MODEL" &
    fi
    echo $! >"run/llama-cpp-$LLMUX_PORT.pid"
fi

deadline=$(($(date +%s) + ${LLAMA_WAKE_SECS:-300}))
until "$here/alive.sh"; do
    sleep 0.2
    "$here/pid.sh" >/dev/null || fail "the server ended; what it said stands above"
    [ "$(date +%s)" -lt "$deadline" ] || fail "no answer within ${LLAMA_WAKE_SECS:-300} s"
done
