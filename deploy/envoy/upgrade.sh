#!/bin/sh
# Upgrades llmux on one host after the other, while the others serve: no request is lost.
#
#     upgrade.sh VERSION HOST ...
#
# Logs in with ssh as a user that may do it (root@10.0.0.11). Variables:
#     $LLMUX     the command there (llmux -c /etc/llmux/llmux.yaml)
#     $UNIT      the unit there (llmux)
#     $DRAIN_S   how long requests that are there may take (600)
# shellcheck disable=SC2029 # variables are this shell's
set -eu
version=$1
shift
llmux=${LLMUX:-llmux -c /etc/llmux/llmux.yaml}
for host; do
    echo "== $host"
    ssh "$host" "$llmux cordon"
    ssh "$host" "timeout ${DRAIN_S:-600} sh -c 'until $llmux requests --json | grep -q \"\\\"total\\\":0[,}]\"; do sleep 1; done'" ||
        echo "requests are left; they have shutdown_grace_secs"
    ssh "$host" "/opt/llmux/bin/pip install --upgrade llmux-proxy==$version"
    ssh "$host" "systemctl restart ${UNIT:-llmux}" # returns once it listens
    sleep "${SETTLE_S:-10}"                        # Envoy and the pickers hear it before the next one goes
done
