# shellcheck shell=sh
# Sourced by the other scripts: the process and the HTTP side of the vLLM server on $LLMUX_PORT.

run=${LLMUX_STATE_DIR:-.}/run # runtime files; by hand, below the current folder
files=$run/vllm-$LLMUX_PORT
pid_file=$files.pid         # process id, start time and boot of the server that wake.sh started
# shellcheck disable=SC2034 # used by the sourcing script
log_file=$files.log         # output of that server
level_file=$files.level     # the level of the last sleep
# shellcheck disable=SC2034
model_file=$files.model     # the model that it serves
# shellcheck disable=SC2034
options_file=$files.options # the model and the options that it was started with
half_awake=$files.half-awake # there while a wake goes on, and after one that was broken off

method='' path='' status=000 body='' sleeping=unknown left=''

newline='
'

say() { echo "${0##*/}: $*" >&2; }

now() { date +%s; }

# ---- HTTP ----

# ask METHOD PATH SECONDS [OPTIONS OF CURL]: sets $status (000: no answer) and $body.
ask() {
    method=$1 path=$2 seconds=$3
    shift 3
    answer=$(curl --silent --noproxy '*' --max-time "$seconds" --request "$method" \
        --write-out "$newline%{http_code}" "$@" "http://127.0.0.1:$LLMUX_PORT$path") || :
    status=${answer##*"$newline"}
    body=${answer%"$newline"*}
}

# look [SECONDS]: sets $sleeping to yes, no or unknown. Only vLLM's development mode has this path.
look() {
    ask GET /is_sleeping "${1:-4}"
    case $status$body in
        200*true*) sleeping=yes ;;
        200*false*) sleeping=no ;;
        *) sleeping=unknown ;;
    esac
}

# Succeeds if requests may come. /health alone is 200 while asleep, too. A server of ours without that path
# was started to be stopped, and never sleeps.
serves() {
    [ ! -e "$half_awake" ] || return 1
    ask GET /health 4
    [ "$status" = 200 ] || return 1
    look
    [ "$sleeping" = no ] || { [ "$status" = 404 ] && runs; }
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
    [ ! -e "$pid_file" ] || rm -f "$pid_file" "$level_file" "$model_file" "$options_file" "$half_awake"
}
