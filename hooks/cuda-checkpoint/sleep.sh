#!/bin/sh
# Sleep hook: suspends the server on $LLMUX_PORT, with the requests inside it: what it has on the GPU
# moves to the machine's memory. Succeeds if none runs, or it is suspended already.
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

if ! runs; then
    stop_server 2
    exit 0
fi

if ! can_ask; then
    [ ! -e "$toggled" ] || exit 0
    cuda "${COPY_SECS:-60}" --toggle --pid "$leader" || {
        say "cannot suspend process $leader: $answer"
        exit 1
    }
    : >"$toggled"
    exit 0
fi

look
if [ -z "$running$locked$checkpointed$broken" ]; then
    if answers; then
        say "cuda-checkpoint finds nothing of CUDA in process $left($answer); is it the server itself that \
wake.sh starts, and may llmux's user suspend it?"
        exit 1
    fi
    say "the server was still starting; stopping it"
    stop_server 10
    exit 0
fi

# Lock all before the first is copied: they may wait for each other.
# shellcheck disable=SC2086 # one id a word
if [ -z "$broken" ] && each lock $running && each checkpoint $running $locked; then
    exit 0
fi
why=${broken:+CUDA has failed in process$broken}
why=${why:-process $pid, $action: $answer}

# Resume it or stop it: cuda-checkpoint may leave a process that it could not suspend unusable.
if resume; then
    say "cannot suspend the server ($why); it goes on, and the GPU is still taken"
else
    tail -n 15 "$log_file" >&2 || :
    stop_server 10
    say "cannot suspend the server ($why), nor resume it ($answer); it has been stopped, and its requests \
are lost"
fi
exit 1
