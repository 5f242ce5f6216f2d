# shellcheck shell=sh
# Sourced by the other scripts: the server on $LLMUX_PORT, a process in a session of its own.

address=${LLMUX_URL:-http://127.0.0.1:$LLMUX_PORT}
here="port ${LLMUX_PORT-}"
if [ -n "${LLMUX_SOCKET:-}" ]; then
    address=http://localhost
    here="socket $LLMUX_SOCKET"
fi

run=${LLMUX_STATE_DIR:-.}/run # runtime files; by hand, below the current folder
place=${LLMUX_SOCKET:-${address#*://}}
key=$(printf %s "$place" | LC_ALL=C tr -c 'A-Za-z0-9.-' _)
files=$run/process-$key-$(printf %s "$place" | cksum | cut -d ' ' -f 1)
pid_file=$files.pid         # process id, and start time, of the server that wake.sh started
command_file=$files.command # its command

py=${LLMUX_PYTHON:-python3} # for what the shell cannot do
command -v curl >/dev/null && has_curl=yes || has_curl=no

leader='' birth='' left='' status=000 is_ours=no

say() { echo "${0##*/}: $*" >&2; }

now() { date +%s; }

# ---- HTTP ----

# ask PATH: sets $status to that of the server's answer; 000: no answer; refused: nothing listens.
ask() {
    if [ "$has_curl" = yes ]; then
        status=$(curl --silent --noproxy '*' --max-time 4 --output /dev/null \
            --write-out '%{http_code}' ${LLMUX_SOCKET:+--unix-socket "$LLMUX_SOCKET"} \
            "$address$1") || [ $? != 7 ] || status=refused # 7: cannot connect
    else
        status=$("$py" -I -c '
import http.client, socket, sys, urllib.parse
url, path = urllib.parse.urlsplit(sys.argv[1]), sys.argv[2]
kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
server = kind(url.hostname, url.port, timeout=4)
try:
    if path:
        server.sock = socket.socket(socket.AF_UNIX)
        server.sock.settimeout(4)
        server.sock.connect(path)
    server.request("GET", url.path or "/")
    print(server.getresponse().status)
except (ConnectionRefusedError, FileNotFoundError):
    print("refused")
except (OSError, http.client.HTTPException):
    print("000")
' "$address$1" "${LLMUX_SOCKET:-}") || status=000
    fi
}

# Says in words what the last `ask` has found.
last_answer() {
    case $status in
        refused) echo "nothing listens there" ;;
        000) echo "what listens there does not answer" ;;
        *) echo "status $status" ;;
    esac
}

# Succeeds if the $status is that of a server that can serve: any success, or what the sourcing script
# has put into $ready_too.
is_ready() {
    case $status in
        2?? | "${ready_too:-200}") ;;
        *) return 1 ;;
    esac
}

# Succeeds if the server answers its health check. `none` for the path: it accepts a connection.
answers() {
    if [ "${HEALTH_PATH:-/health}" = none ]; then
        ask /
        [ "$status" != refused ] && [ "$status" != 000 ]
    else
        ask "${HEALTH_PATH:-/health}"
        is_ready
    fi
}

# Succeeds if something on this machine listens on the server's address.
is_taken() {
    case $address in
        http://127.* | http://localhost* | http://\[::1\]*) ask / ;;
        *) return 1 ;;
    esac
    [ "$status" != refused ]
}

# ---- The process ----

if [ -r /proc/self/stat ]; then
    # Prints what tells a process from another with the same id: its start time (proc(5)), and the boot.
    birth_of() {
        # shellcheck disable=SC2046 # in words
        set -- $(sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null)
        echo "${20:-none} $(cat /proc/sys/kernel/random/boot_id)"
    }
    # Succeeds unless the process has ended; one that nobody has waited for (a zombie) has.
    is_running() {
        # shellcheck disable=SC2046
        set -- $(sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null)
        [ $# -gt 0 ] && [ "$1" != Z ] && [ "$1" != X ]
    }
    # Prints the ids of the running processes of a session.
    members_of() {
        sed -n "s/^\([0-9]*\) (.*) [^ZX] [0-9]* [0-9]* $1 .*/\1/p" \
            /proc/[0-9]*/stat 2>/dev/null | tr '\n' ' '
    }
else # macOS; its `ps` shows no sessions
    birth_of() {
        # shellcheck disable=SC2046
        set -- $(LC_ALL=C TZ=UTC ps -o lstart= -p "$1")
        echo "${*:-none}"
    }
    is_running() {
        case $(ps -o stat= -p "$1") in
            '' | Z*) return 1 ;;
        esac
    }
    members_of() {
        ps -A -o pid= -o pgid= -o stat= |
            awk -v group="$1" '$2 == group && $3 !~ /^Z/ { printf "%s ", $1 }'
    }
fi

# Sets $leader and $birth of the server that wake.sh started; it may have ended.
known() {
    leader='' birth=''
    [ -r "$pid_file" ] && read -r leader birth <"$pid_file"
    case $leader in
        '' | 0* | *[!0-9]*) return 1 ;; # a broken file; `kill 0` would end this hook
    esac
}

# Succeeds if the server's first process runs.
runs() { known && is_running "$leader" && [ "$(birth_of "$leader")" = "$birth" ]; }

# Sets $left to the server's running processes: the first one, or others that outlived it. No other
# process gets the id of a session or group that has members.
find_left() {
    left=''
    known || return 1
    ! is_running "$leader" || runs || return 1
    left=$(members_of "$leader")
    [ -n "$left" ]
}

# is_other COMMAND ARGUMENTS: succeeds if the server was started with another command. `$(...)` takes
# the newlines off the end, which YAML's `|` adds.
is_other() { [ "$(cat "$command_file" 2>/dev/null || :)" != "$(printf '%s\n' "$*")" ]; }

# start COMMAND ARGUMENTS: starts it in a session of its own, so that it outlives this hook and can be
# ended with all that it starts. What it prints goes where this hook's output goes: the model's log.
start() {
    mkdir -p "$run"
    if command -v setsid >/dev/null; then
        setsid "$@" </dev/null &
    else
        "$py" -I -c 'import os, sys
os.setsid()
os.execvp(sys.argv[1], sys.argv[1:])' "$@" </dev/null &
    fi
    leader=$! is_ours=yes
    echo "$leader $(birth_of "$leader")" >"$pid_file"
    printf '%s\n' "$*" >"$command_file"
}

# wait_gone SECONDS
wait_gone() {
    until=$(($(now) + $1))
    while find_left; do
        [ "$(now)" -lt "$until" ] || return 1
        sleep 0.1
    done
}

# signal NAME: to all of the server's processes, also to those started since `find_left`.
signal() {
    kill -s "$1" -- "-$leader" 2>/dev/null || :
    # shellcheck disable=SC2086 # one id a word
    kill -s "$1" -- $left 2>/dev/null || :
}

# stop_server SECONDS: sends SIGTERM, then SIGKILL to what still runs. Does not touch a server that
# wake.sh did not start.
stop_server() {
    if find_left; then
        signal TERM
        if ! wait_gone "$1"; then
            say "process $left ignores SIGTERM; killing it"
            signal KILL
            if ! wait_gone 10; then
                say "cannot end process $left"
                return 1
            fi
        fi
    fi
    rm -f "$pid_file" "$command_file"
}

# ---- Waking ----

# Stops the server, since it does not work, and fails.
fail() {
    trap '' TERM INT HUP
    if find_left; then
        stop_server 2 || :
        say "$1; the server has been stopped"
    else
        say "$1"
    fi
    exit 1
}

# wake SECONDS COMMAND ARGUMENTS: starts the server unless it runs, and waits until it answers: as long,
# or without a number until llmux ends this hook (hook_timeouts.wake).
wake() {
    trap 'fail "no answer from $address until this hook was ended ($(last_answer))"' TERM INT HUP
    seconds=$1
    give_up_at=$(($(now) + ${seconds:-0}))
    shift
    if runs && is_other "$@"; then
        say "the server runs with another command; starting it again"
        stop_server 30
    fi
    if ! runs; then
        stop_server 2 # what has outlived its first process may hold the GPU
        if is_taken; then
            fail "$here is taken by a server that wake.sh did not start; stop it, or give the model \
another ${here%% *}"
        fi
        # A server that has ended may leave its socket, to which no other can bind.
        [ ! -S "${LLMUX_SOCKET:-}" ] || rm -f "$LLMUX_SOCKET"
        start "$@"
    fi
    until answers; do
        sleep 0.1
        runs || break
        [ -z "$seconds" ] || [ "$(now)" -lt "$give_up_at" ] || fail "no answer within $seconds s"
    done
    runs || fail_ended
}

fail_ended() {
    how=''
    if [ "$is_ours" = yes ]; then # only a process that this shell has started has an exit code for it
        code=0
        wait "$leader" || code=$?
        how=" with exit code $code"
        [ "$code" != 0 ] || how="$how (the command must stay in the foreground)"
    fi
    fail "the server ended$how; what it said stands above"
}
