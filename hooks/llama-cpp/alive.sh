#!/bin/sh
# Alive hook: succeeds if a llama.cpp server on $LLMUX_PORT has loaded its model and answers.
set -eu

# llama-server answers /health with 503 while it loads. llama_cpp.server has no such path, but
# listens only once it has loaded: a 404 means that it is ready.
exec "${LLAMA_PYTHON:-python3}" -c '
import http.client, sys
server = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=5)
try:
    server.request("GET", "/health")
    sys.exit(server.getresponse().status not in (200, 404))
except (OSError, http.client.HTTPException):
    sys.exit(1)
' "$LLMUX_PORT"
