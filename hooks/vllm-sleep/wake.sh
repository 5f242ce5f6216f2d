#!/bin/sh
# Wake hook: starts a vLLM server for $LLMUX_MODEL on $LLMUX_PORT, if none runs, or wakes the one that
# sleeps, and waits until it answers.
#
#   ./wake.sh MODEL [OPTIONS OF vllm serve]
#   VLLM_LEVEL=stop ./wake.sh ...           without sleep mode, for `./sleep.sh stop`
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

deadline=$(($(now) + ${VLLM_WAKE_SECS:-580}))
level=${VLLM_LEVEL:-1}

# Stops the server, since it does not work, and fails.
fail() {
    trap '' TERM INT HUP
    if left; then
        tail -n 15 "$log_file" >&2 || :
        stop_server 2 || :
        say "$1; the server has been stopped"
    else
        say "$1"
    fi
    exit 1
}
trap 'fail "was told to end"' TERM INT HUP

# Sets $seconds to the remaining time, at least 1: for curl, 0 means no limit.
remaining() {
    seconds=$((deadline - $(now)))
    [ "$seconds" -gt 0 ] || seconds=1
}

# must METHOD PATH [OPTIONS OF CURL]: a step that must succeed, or the server is unusable.
must() {
    method=$1 path=$2
    shift 2
    remaining
    ask "$method" "$path" "$seconds" "$@"
    [ "$status" = 200 ] || fail "$method $path: status $status $(printf %s "$body" | head -c 300)"
}

# Prints the part of a GPU that suits the model's `needs`, as nvidia-smi tells the GPU's size, or else the config;
# the largest of several. Nothing without `needs`. 0.95 at most: the driver and CUDA keep a little.
gpu_share() {
    {
        timeout 10 nvidia-smi --query-gpu=index,memory.total --format=csv,noheader,nounits 2>/dev/null || :
        printf '%s\n' "${LLMUX_NEEDS:-}"
    } | LC_ALL=C awk -F '[ ,]+' '
        /^[0-9]+, [0-9]+$/ { size["gpu" $1] = $2 * 1048576 }
        /^gpu[0-9]+ / {
            share = $2 / (($1 in size) ? size[$1] : $3)
            if (share > most) most = share
        }
        END { if (most) printf "%.4f", (most > 0.95 ? 0.95 : int(most * 10000) / 10000) }'
}

# wanted MODEL [OPTIONS]: prints what the server is started with, to be compared later.
wanted() {
    [ "$level" != stop ] || set -- "$@" "(without sleep mode)"
    [ -z "${LLMUX_NEEDS:-}" ] || set -- "$@" "(needs: $LLMUX_NEEDS)"
    echo "$*"
}

start() {
    command -v "${VLLM:-vllm}" >/dev/null ||
        fail "${VLLM:-vllm} not found; install vLLM, or set VLLM to the path of the program"
    mkdir -p "$run"
    [ ! -e "$log_file" ] || mv -f "$log_file" "$log_file.1"
    say "starting ${VLLM:-vllm} serve $1; what it prints is in $log_file"
    echo "$LLMUX_MODEL" >"$model_file"
    printf '%s\n' "$(wanted "$@")" >"$options_file"
    case " $*" in
        *' --gpu-memory-utilization'* | *' --gpu_memory_utilization'* | *' --kv-cache-memory'* | \
            *' --kv_cache_memory'*) ;; # the user knows better
        *)
            share=$(gpu_share)
            [ -z "$share" ] || set -- "$@" --gpu-memory-utilization "$share"
            ;;
    esac
    # The paths used here exist only in development mode, which is why it must listen on loopback.
    dev_mode=0
    if [ "$level" != stop ]; then
        dev_mode=1
        set -- "$@" --enable-sleep-mode
    fi
    # A session of its own lets it outlive this hook, and lets sleep.sh end it with its workers.
    VLLM_SERVER_DEV_MODE=$dev_mode setsid "${VLLM:-vllm}" serve "$@" \
        --host 127.0.0.1 --port "$LLMUX_PORT" --served-model-name "$LLMUX_MODEL" \
        >"$log_file" 2>&1 </dev/null &
    leader=$!
    # shellcheck disable=SC2046 # in words
    set -- $(stat_of "$leader")
    echo "$leader ${20:-ended} $(cat /proc/sys/kernel/random/boot_id)" >"$pid_file"
}

# Level 1 keeps the weights. Level 2 drops them: they must be read from disk before the KV cache is
# allocated, or the model answers garbage. An unknown level is treated as 2, which is right for both.
wake_up() {
    mkdir -p "$run"
    : >"$half_awake"
    if [ "$(cat "$level_file" 2>/dev/null)" = 1 ]; then
        must POST /wake_up
    else
        must POST '/wake_up?tags=weights'
        must POST /collective_rpc --header 'Content-Type: application/json' \
            --data '{"method": "reload_weights"}'
        must POST '/wake_up?tags=kv_cache'
    fi
    must POST /reset_prefix_cache
    rm -f "$half_awake"
}

command -v curl >/dev/null || fail "curl not found; install it"
[ $# -gt 0 ] || fail "usage: wake.sh MODEL [OPTIONS OF vllm serve]"

if runs; then
    owner=$(cat "$model_file" 2>/dev/null) || owner=$LLMUX_MODEL
    if [ "$owner" != "$LLMUX_MODEL" ]; then
        say "on port $LLMUX_PORT runs the server of $owner (process $leader), which is left alone; \
give each model a port of its own, or end it if it was renamed"
        exit 1
    fi
    if [ -e "$options_file" ] && [ "$(cat "$options_file")" != "$(wanted "$@")" ]; then
        say "the server was started with other options; starting it again"
        stop_server 10
        start "$@"
    else
        [ -e "$half_awake" ] || ask GET /health 4
        # Half awake: it can no longer be put to sleep or woken. 503: its engine has died.
        if [ -e "$half_awake" ] || [ "$status" = 503 ]; then
            say "the server that was left is of no use (half awake, or its engine died); starting it again"
            stop_server 10
            start "$@"
        fi
    fi
else
    ask GET /is_sleeping 4
    case $status-$level in
        000-*)
            stop_server 2 # workers that outlived their server would hold the GPU
            start "$@"
            ;;
        *-stop) fail "port $LLMUX_PORT is taken by a server that wake.sh did not start, so that sleep.sh would not \
stop it; stop it, or give the model another port" ;;
        200-*)
            # Started by somebody else, with the settings that sleep needs: use it.
            look
            if [ -e "$half_awake" ]; then
                [ "$sleeping" = no ] || fail "an earlier wake was broken off; restart the server"
                rm -f "$half_awake"
            fi
            ;;
        *) fail "port $LLMUX_PORT is taken by a server that these hooks cannot use (GET /is_sleeping: \
status $status); stop it, or start it with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode" ;;
    esac
fi

until serves; do
    if [ "$sleeping" = yes ] && [ ! -e "$half_awake" ]; then
        wake_up
        continue
    fi
    [ "$(now)" -lt "$deadline" ] || fail "no answer within ${VLLM_WAKE_SECS:-580} s \
(VLLM_WAKE_SECS, to be kept below the wake time-out in hook_timeouts)"
    sleep 0.1
    if known && ! runs; then
        tail -n 15 "$log_file" >&2 || :
        ! grep -q 'Sleep mode is not supported' "$log_file" ||
            fail "vLLM has no sleep mode on this platform (on a CPU, for example): give the recipe \`level: stop\`, \
which ends the server and starts it again, or VLLM_LEVEL=stop to wake.sh and \`stop\` to sleep.sh"
        fail "the server ended by itself; why stands above and in $log_file"
    fi
done
