# shellcheck shell=sh
# Sourced by the other scripts, with their arguments: a model's unit, and the HTTP side of its server.

scope=''
if [ "${1:-}" = --user ]; then
    scope=--user
    shift
fi
unit=${1:-$LLMUX_MODEL.service}

say() { echo "${0##*/}: $*" >&2; }

now() { date +%s; }

# systemctl SECONDS ARGUMENTS: sets $answer to its output; fails as it does, or after that time.
# In llmux's process group (--foreground), so that llmux can end it. systemd completes the job anyway.
systemctl() {
    seconds=$1
    shift
    # shellcheck disable=SC2086 # in words
    answer=$(timeout --foreground -k 5 "$seconds" ${SYSTEMCTL:-systemctl} $scope \
        --no-ask-password "$@" 2>&1) && return
    code=$?
    case $code$answer in
        124*) answer="no answer within $seconds s" ;;
        *[Aa]uthentication\ required* | *[Aa]ccess\ denied*)
            answer="$answer (llmux's user may not; README.md has a polkit rule)"
            ;;
        *connect\ to*\ bus*)
            answer="$answer (with --user: does that user have a session, or linger, and llmux its \
XDG_RUNTIME_DIR?)"
            ;;
    esac
    return "$code"
}

# Sets $loaded (loaded, not-found, masked, ...) and $state (active, activating, inactive, failed, ...).
look() {
    systemctl 20 show --property LoadState --property ActiveState "$unit" || {
        say "cannot look at unit $unit: $answer"
        exit 1
    }
    # shellcheck disable=SC2034 # used by the sourcing script
    loaded=$(echo "$answer" | sed -n 's/^LoadState=//p')
    state=$(echo "$answer" | sed -n 's/^ActiveState=//p')
}

# Succeeds if nothing of the unit runs, as `look` found it.
is_down() { [ "$state" = inactive ] || [ "$state" = failed ]; }

# Succeeds if the unit, as `look` found it, has a server that answers.
serves() {
    [ "$state" = active ] || return 1
    curl --silent --fail --noproxy '*' --max-time 4 --output /dev/null \
        "http://127.0.0.1:$LLMUX_PORT${HEALTH_PATH:-/health}"
}
