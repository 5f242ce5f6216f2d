# shellcheck shell=sh
# Sourced by the other scripts, with $name set: a model's container, and the HTTP side of the server
# in it.

newline='
'

say() { echo "${0##*/}: $*" >&2; }

now() { date +%s; }

# In llmux's process group (--foreground), so that llmux can end it. Not every system has it.
limit='timeout --foreground -k 5'
$limit 5 true 2>/dev/null || limit=''

# podman SECONDS ARGUMENTS: sets $answer to all that it prints; fails as it does, or after so long.
podman() {
    seconds=$1
    shift
    # shellcheck disable=SC2086 # in words
    answer=$(${limit:+$limit "$seconds"} env ${PODMAN:-podman} "$@" 2>&1) && return
    code=$?
    [ "$code" != 124 ] || answer="no answer within $seconds s"
    return "$code"
}

# Sets $state to what Podman calls it, or absent, and $health to that of its health check, if any.
look() {
    # shellcheck disable=SC2154 # set by those who source this
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

# Whether the container, as `look` found it, holds nothing of the GPU.
is_down() {
    case $state in
        running | restarting | paused | stopping | removing) return 1 ;;
    esac
}

# Whether the container, as `look` found it, has a server that answers. That it answers is enough while
# its own health check still says `starting`: by default, that lasts for 30 s.
serves() {
    [ "$state" = running ] && [ "$health" != unhealthy ] || return 1
    curl --silent --fail --noproxy '*' --max-time 4 --output /dev/null \
        "http://127.0.0.1:$LLMUX_PORT${HEALTH_PATH:-/health}"
}

# stop_container SECONDS: lets it end by itself for so long; fails if it still runs then.
stop_container() {
    [ "$state" != paused ] || podman 20 unpause "$name" || :
    podman $(($1 + 15)) stop -t "$1" "$name" || {
        say "stopping container $name: $answer; killing it"
        podman 15 kill "$name" || say "killing container $name: $answer"
    }
    look
    is_down
}
