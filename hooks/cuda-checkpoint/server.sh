# shellcheck shell=sh
# Sourced by the other scripts: the server on $LLMUX_PORT, and its GPU state.

run=${LLMUX_STATE_DIR:-.}/run # runtime files; by hand, below the current folder
files=$run/cuda-$LLMUX_PORT
pid_file=$files.pid # process id, start time and boot of the server that wake.sh started
# shellcheck disable=SC2034 # used by the sourcing script
log_file=$files.log # output of that server
toggled=$files.off  # exists while an old cuda-checkpoint, which reports no state, has suspended it

answer='' left=''

say() { echo "${0##*/}: $*" >&2; }

now() { date +%s; }

# Succeeds if the server answers. It may while suspended: answering needs no GPU.
answers() {
    curl --silent --fail --noproxy '*' --max-time 4 --output /dev/null \
        "http://127.0.0.1:$LLMUX_PORT${HEALTH_PATH:-/health}"
}

# ---- CUDA ----

# cuda SECONDS ARGUMENTS: sets $answer to the output of cuda-checkpoint; fails as it does, or after
# that time. In llmux's process group (--foreground), so that llmux can end it.
cuda() {
    seconds=$1
    shift
    # shellcheck disable=SC2086 # in words
    answer=$(timeout --foreground -k 5 "$seconds" ${CUDA_CHECKPOINT:-cuda-checkpoint} "$@" 2>&1) &&
        return
    code=$?
    [ "$code" != 124 ] || answer="no answer within $seconds s"
    return "$code"
}

# Succeeds if cuda-checkpoint reports a process's state and suspends in steps (driver 570).
can_ask() {
    cuda 10 --help || :
    case $answer in
        *--get-state*) ;;
        *--toggle*) return 1 ;;
        *)
            say "cannot run ${CUDA_CHECKPOINT:-cuda-checkpoint} ($answer); get it from \
github.com/NVIDIA/cuda-checkpoint, or set CUDA_CHECKPOINT to its path"
            exit 1
            ;;
    esac
}

# Sets $running, $locked and $checkpointed to the server's processes in that state, and $broken to
# those that CUDA has given up. Other processes do not use CUDA.
look() {
    running='' locked='' checkpointed='' broken=''
    left || return 0
    for pid in $left; do
        cuda 10 --get-state --pid "$pid" || continue
        case $answer in
            *running*) running="$running $pid" ;;
            *locked*) locked="$locked $pid" ;;
            *checkpointed*) checkpointed="$checkpointed $pid" ;;
            *failed*) broken="$broken $pid" ;;
        esac
    done
}

# each ACTION PROCESSES: applies the action to each, with a time limit; stops at the first failure.
each() {
    action=$1
    shift
    for pid in "$@"; do
        case $action in
            lock)
                cuda $((${LOCK_MS:-30000} / 1000 + 5)) --action lock --pid "$pid" \
                    --timeout "${LOCK_MS:-30000}"
                ;;
            *) cuda "${COPY_SECS:-60}" --action "$action" --pid "$pid" ;;
        esac || return 1
    done
}

# Resumes every process that is wholly or partly suspended. On failure, $answer has the reason.
resume() {
    look
    # shellcheck disable=SC2086 # one id a word
    each restore $checkpointed || return 1
    # shellcheck disable=SC2086
    each unlock $checkpointed $locked || return 1
    [ -z "$broken" ] || answer="CUDA has failed in process$broken"
    [ -z "$broken" ]
}

# ---- The process ----

# Sets $leader to the server that wake.sh started since the last boot; it may have ended.
known() {
    leader='' started='' boot=''
    [ -r "$pid_file" ] && read -r leader started boot <"$pid_file"
    [ -n "$boot" ] && [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ]
}

# Prints fields of /proc/PID/stat: the 1st is the state, the 20th the start time (proc(5)).
stat_of() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null; }

# Succeeds if the server's first process runs; its start time tells it from one that reuses its id.
runs() {
    known || return 1
    # shellcheck disable=SC2046 # in words
    set -- $(stat_of "$leader")
    [ "${20:-}" = "$started" ] && [ "$1" != Z ] && [ "$1" != X ]
}

# Sets $left to the server's running processes: the first one, or workers that outlived it.
left() {
    left=''
    known || return 1
    # shellcheck disable=SC2046 # in words
    set -- $(stat_of "$leader")
    [ -z "${20:-}" ] || [ "${20}" = "$started" ] || return 1
    left=$(sed -n "s/^\([0-9]*\) (.*) [^ZX] [0-9]* [0-9]* $leader .*/\1/p" \
        /proc/[0-9]*/stat 2>/dev/null | tr '\n' ' ')
    [ -n "$left" ]
}

# wait_gone SECONDS
wait_gone() {
    until=$(($(now) + $1))
    while left; do
        [ "$(now)" -lt "$until" ] || return 1
        sleep 0.1
    done
}

# stop_server SECONDS: sends SIGTERM, then SIGKILL to what still runs. Does not touch a server that
# wake.sh did not start.
stop_server() {
    if left; then
        # shellcheck disable=SC2086 # one id a word
        kill -TERM $left 2>/dev/null || :
        if ! wait_gone "$1"; then
            # shellcheck disable=SC2086
            kill -KILL $left 2>/dev/null || :
            if ! wait_gone 5; then
                say "cannot end process $left"
                return 1
            fi
        fi
    fi
    [ ! -e "$pid_file" ] || rm -f "$pid_file" "$toggled"
}
