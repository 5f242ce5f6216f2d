#!/bin/sh
# Prints the process id of the server that wake.sh started on $LLMUX_PORT; fails if it has ended.
set -eu

pid=$(cat "run/llama-cpp-$LLMUX_PORT.pid" 2>/dev/null) || exit 1

# The command line tells it from a later process with the same id; a server that has ended but was not
# reaped has none. (Linux has /proc, other systems have ps.)
if [ -d /proc/self ]; then
    command=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") || exit 1
else
    command=$(ps -o args= -p "$pid") || exit 1
fi
case "$command " in
    *" --port $LLMUX_PORT "*) echo "$pid" ;;
    *) exit 1 ;;
esac
