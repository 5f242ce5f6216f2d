# shellcheck shell=sh
# Sourced by the other scripts: the process and the HTTP side of the SGLang server on $LLMUX_PORT.

run=${LLMUX_STATE_DIR:-.}/run # runtime files; by hand, below the current folder
files=$run/sglang-$LLMUX_PORT
pid_file=$files.pid         # process id, start time and boot of the server that wake.sh started
# shellcheck disable=SC2034 # used by the sourcing script
log_file=$files.log         # output of that server
state_file=$files.state     # asleep; or between: it falls asleep or wakes, or was interrupted

method='' path='' status=000 body='' left=''

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
    # shellcheck disable=SC2034 # used by the sourcing script
    body=${answer%"$newline"*}
}

# Sets $state to asleep, between, or awake (also while it starts). Only these hooks know the state:
# SGLang does not report it, and crashes when told to release its memory twice.
look() {
    state=awake
    [ ! -r "$state_file" ] || read -r state <"$state_file"
}

enter() {
    mkdir -p "$run"
    echo "$1" >"$state_file"
}

# Succeeds if requests may come. SGLang answers /health by generating a token, which would crash a
# server whose memory is released: so only an awake one is asked. The answer takes a second.
serves() {
    look
    [ "$state" = awake ] || return 1
    ask GET /health 8
    [ "$status" = 200 ]
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
    [ ! -e "$pid_file" ] || rm -f "$pid_file" "$state_file"
}
