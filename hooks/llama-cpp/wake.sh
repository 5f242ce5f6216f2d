#!/bin/sh
# Wake hook: starts a llama.cpp server for $LLMUX_MODEL on $LLMUX_PORT, if none runs, and waits until
# it answers.
#
#   ./wake.sh MODEL.gguf [OPTIONS OF THE SERVER]
#
# The server is $LLAMA_SERVER or $LLAMA_PYTHON -m llama_cpp.server, whichever is set; if neither is,
# llama-server if it is on the PATH, else python3 -m llama_cpp.server.
set -eu
ready_too=404 # see alive.sh
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

[ $# -gt 0 ] || fail "usage: wake.sh MODEL.gguf [OPTIONS OF THE SERVER]"
file=$1
shift
if [ -n "${LLMUX_SOCKET:-}" ]; then
    set -- --model "$file" --host "$LLMUX_SOCKET" "$@"
else
    set -- --model "$file" --host 127.0.0.1 --port "$LLMUX_PORT" "$@"
fi
if [ -z "${LLAMA_SERVER:-}${LLAMA_PYTHON:-}" ] && command -v llama-server >/dev/null; then
    LLAMA_SERVER=llama-server
fi
python=${LLAMA_PYTHON:-python3}
if [ -n "${LLAMA_SERVER:-}" ]; then
    case ${LLMUX_SOCKET:-.sock} in
        *.sock) ;;
        *) fail "llama-server takes $LLMUX_SOCKET for the name of a host; let the socket's name end in .sock" ;;
    esac
    set -- "$LLAMA_SERVER" "$@" --alias "$LLMUX_MODEL"
else
    [ -z "${LLMUX_SOCKET:-}" ] || fail "llama_cpp.server cannot listen on a Unix socket; give the \
model a port, or use llama-server"
    # Python's own message would name only the missing module.
    if ! runs && ! "$python" -c 'import importlib.util, sys
sys.exit(not importlib.util.find_spec("llama_cpp"))'; then
        fail "no server: llama-server is not on the PATH, and $python has no llama_cpp; \
set LLAMA_SERVER or LLAMA_PYTHON (README.md)"
    fi
    set -- "$python" -m llama_cpp.server "$@" --model_alias "$LLMUX_MODEL"
fi
# With `needs`, llama.cpp must not fill what is free just now: others count on it. Older versions have no --fit.
[ -z "${LLMUX_NEEDS:-}" ] || export LLAMA_ARG_FIT="${LLAMA_ARG_FIT:-off}"
wake "${LLAMA_WAKE_SECS:-300}" "$@"
