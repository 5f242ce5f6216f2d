#!/bin/sh
# Wake hook: starts an SGLang server for $LLMUX_MODEL on $LLMUX_PORT, if none runs, or gives the one
# that sleeps its memory and weights back, and waits until it answers.
#
#   ./wake.sh MODEL [OPTIONS OF sglang.launch_server]
set -eu
# shellcheck source-path=SCRIPTDIR source=server.sh
. "$(dirname "$0")/server.sh"

deadline=$(($(now) + ${SGLANG_WAKE_SECS:-580}))

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

# must PATH JSON: a step that must succeed, or the server is unusable.
must() {
    seconds=$((deadline - $(now)))
    [ "$seconds" -gt 0 ] || seconds=1 # to curl, 0 means for ever
    ask POST "$1" "$seconds" --header 'Content-Type: application/json' --data "$2"
    [ "$status" = 200 ] || fail "POST $1: status $status $(printf %s "$body" | head -c 300)"
}

# Prints the part of what is free on the GPUs now that SGLang shall use for weights and KV cache: 0.85 of the model's
# `needs`, for activations and CUDA graphs come on top. Nothing without `needs`. 0.9 at most.
static_part() {
    {
        timeout 10 nvidia-smi --query-gpu=index,memory.free --format=csv,noheader,nounits 2>/dev/null || :
        printf '%s\n' "${LLMUX_NEEDS:-}"
    } | LC_ALL=C awk -F '[ ,]+' '
        /^[0-9]+, [0-9]+$/ { left["gpu" $1] = $2 * 1048576 }
        /^gpu[0-9]+ / {
            room = ($1 in left) ? left[$1] : $3
            if (!need || $2 < need) need = $2
            if (!free || room < free) free = room
        }
        END {
            if (!need || !free) exit
            part = 0.85 * need / free
            printf "%.4f", (part > 0.9 ? 0.9 : int(part * 10000) / 10000)
        }'
}

# wanted MODEL [OPTIONS]: prints what the server is started with, to be compared later.
wanted() {
    [ -z "${LLMUX_NEEDS:-}" ] || set -- "$@" "(needs: $LLMUX_NEEDS)"
    echo "$*"
}

start() {
    command -v "${SGLANG_PYTHON:-python3}" >/dev/null ||
        fail "${SGLANG_PYTHON:-python3} not found; set SGLANG_PYTHON to a Python that has sglang"
    mkdir -p "$run"
    rm -f "$state_file"
    [ ! -e "$log_file" ] || mv -f "$log_file" "$log_file.1"
    printf '%s\n' "$(wanted "$@")" >"$options_file"
    case " $*" in
        *' --mem-fraction-static'*) ;; # the user knows better
        *)
            part=$(static_part)
            [ -z "$part" ] || set -- "$@" --mem-fraction-static "$part"
            ;;
    esac
    # A session of its own lets it outlive this hook, and lets sleep.sh end it with its workers.
    setsid "${SGLANG_PYTHON:-python3}" -m sglang.launch_server --model-path "$@" \
        --enable-memory-saver --host 127.0.0.1 --port "$LLMUX_PORT" \
        --served-model-name "$LLMUX_MODEL" >"$log_file" 2>&1 </dev/null &
    leader=$!
    # shellcheck disable=SC2046 # in words
    set -- $(stat_of "$leader")
    echo "$leader ${20:-ended} $(cat /proc/sys/kernel/random/boot_id)" >"$pid_file"
}

# The memory comes back empty: without reloaded weights the model would answer garbage.
wake_up() {
    enter between
    must /resume_memory_occupation '{}'
    case " $* " in
        *' --enable-weights-cpu-backup '*) ;; # then SGLang has kept them itself
        *)
            model=$(printf %s "$1" | sed 's/[\\"]/\\&/g')
            must /update_weights_from_disk "{\"model_path\": \"$model\", \"flush_cache\": true}"
            ;;
    esac
    rm -f "$state_file"
}

command -v curl >/dev/null || fail "curl not found; install it"
[ $# -gt 0 ] || fail "usage: wake.sh MODEL [OPTIONS OF sglang.launch_server]"

look
if ! runs; then
    stop_server 2 # workers that outlived their server would hold the GPU
    ask GET /get_model_info 4
    [ "$status" = 000 ] || fail "port $LLMUX_PORT is taken by a server that wake.sh did not start \
(GET /get_model_info: status $status); stop it"
    start "$@"
elif [ -e "$options_file" ] && [ "$(cat "$options_file")" != "$(wanted "$@")" ]; then
    say "the server was started with other options; starting it again"
    stop_server 10
    start "$@"
elif [ "$state" = between ]; then
    say "falling asleep or waking was broken off; starting the server again"
    stop_server 10
    start "$@"
elif [ "$state" = asleep ]; then
    wake_up "$@"
fi

until serves; do
    [ "$(now)" -lt "$deadline" ] || fail "no answer within ${SGLANG_WAKE_SECS:-580} s \
(SGLANG_WAKE_SECS, to be kept below the wake time-out in hook_timeouts)"
    sleep 0.1
    if ! runs; then
        tail -n 15 "$log_file" >&2 || :
        fail "the server ended by itself; why stands above and in $log_file"
    fi
done
