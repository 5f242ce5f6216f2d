#!/bin/sh
# Sleep hook: checkpoints a container to disk, with its GPU memory, which ends it. Succeeds if it does
# not run. A container that cannot be checkpointed is stopped, so that the GPU is free anyway.
#
#   ./sleep.sh [CONTAINER]    default: $LLMUX_MODEL
set -eu
# shellcheck source-path=SCRIPTDIR source=container.sh
. "$(dirname "$0")/container.sh"

name=${1:-$LLMUX_MODEL}

look
if is_down; then
    exit 0
fi
[ "$state" != paused ] || podman 20 unpause "$name" || :
# llmux's idle connections count as established. --keep keeps CRIU's dump.log and statistics.
if podman "${CHECKPOINT_SECS:-80}" container checkpoint --keep --tcp-established "$name"; then
    look
    if is_down; then
        exit 0
    fi
    answer="it still runs ($state)"
fi
why=$answer
stop_container "${SLEEP_SECS:-10}" || {
    say "container $name cannot be checkpointed ($why), and still runs ($state)"
    exit 1
}
say "container $name could not be checkpointed: $why"
say "it has been stopped instead, and its next wake is a cold start; does podman run as root, with CRIU?"
exit 1
