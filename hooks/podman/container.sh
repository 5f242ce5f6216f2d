# shellcheck shell=sh
# Sourced by the other scripts, with $name set: a model's container, and the HTTP side of the server
# in it.

newline='
'

say() { echo "${0##*/}: $*" >&2; }

now() { date +%s; }

# `timeout` stays in llmux's process group (--foreground), so that llmux can end it. Not every system has it.
limit='timeout --foreground -k 5'
$limit 5 true 2>/dev/null || limit=''

# podman SECONDS ARGUMENTS: sets $answer to its output; fails as it does, or after that time.
podman() {
    seconds=$1
    shift
    # shellcheck disable=SC2086 # in words
    answer=$(${limit:+$limit "$seconds"} env ${PODMAN:-podman} "$@" 2>&1) && return
    code=$?
    [ "$code" != 124 ] || answer="no answer within $seconds s"
    return "$code"
}

# Sets $state to Podman's status or `absent`, and $health to the health check's status, if any.
look() {
    # shellcheck disable=SC2154 # set by the sourcing script
    if podman 20 container inspect --format \
        '{{.State.Status}}/{{with .State.Health}}{{.Status}}{{end}}' "$name"; then
        answer=${answer##*"$newline"} # below warnings
        state=${answer%%/*} health=${answer#*/}
        return
    fi
    case $answer in
        *[Nn]'o such container'* | *[Nn]'o such object'*) state=absent health='' ;;
        *)
            say "cannot look at container $name: $answer"
            exit 1
            ;;
    esac
}

# Succeeds if the container, as `look` found it, holds nothing on the GPU.
is_down() {
    case $state in
        running | restarting | paused | stopping | removing) return 1 ;;
    esac
}

# Succeeds if the container, as `look` found it, has a server that answers. A health check that still
# says `starting` (for 30 s by default) does not count.
serves() {
    [ "$state" = running ] && [ "$health" != unhealthy ] || return 1
    curl --silent --fail --noproxy '*' --max-time 4 --output /dev/null \
        "http://127.0.0.1:$LLMUX_PORT${HEALTH_PATH:-/health}"
}

# stop_container SECONDS: stops it, and kills it after that time; fails if it still runs then.
stop_container() {
    [ "$state" != paused ] || podman 20 unpause "$name" || :
    podman $(($1 + 15)) stop -t "$1" "$name" || {
        say "stopping container $name: $answer; killing it"
        podman 15 kill "$name" || say "killing container $name: $answer"
    }
    look
    is_down
}
