#!/bin/sh
# Runs llmux's stand-in server: with the virtual environment beside the config, if there is one.
# (Hooks run in the config's folder. $PYTHON names another Python.)
set -eu

if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
exec "$PYTHON" -m llmux.standin "$@"
