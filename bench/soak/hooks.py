"""The hooks of a run: shell functions that all its models' hooks source."""

from __future__ import annotations

HOOKS = r"""
# Sourced by each hook: its functions take the group, and the words that start a server. Where
# models share memory, these are set: gpu, the file that a server locks; lanes, the files that hooks
# lock; kept, the file of what the model needs asleep; and books, what it needs awake.
slug=$(printf %s "$LLMUX_MODEL" | tr -c 'A-Za-z0-9\n' _)

complain() {
    printf '{"at": %s, "what": "%s"}\n' "$(date +%s.%N)" "$*" >> violations
}

alone() {  # hooks of a group, or of one resource, never overlap
    gpu=${gpu:-gpu-$1}
    fd=9
    for lane in ${lanes:-hooks-$1}; do
        eval "exec $fd> $lane"
        flock -n $fd || complain "two hooks at once on $lane: $LLMUX_HOOK of $LLMUX_MODEL"
        fd=$((fd - 1))
    done
}

keep() {  # what a model needs asleep; there is enough for one of a group
    [ -n "$kept" ] || return 0
    : > "$kept"
    set -- "kept-$1-"*
    [ $# = 1 ] || complain "more is kept asleep than there is: $*"
}

fault() {  # takes the ticket for this hook, if there is one
    kind=
    taken=tickets/taken-$slug-$$
    if mv "tickets/$LLMUX_HOOK-$slug" "$taken" 2> /dev/null; then
        kind=$(cat "$taken")
        rm "$taken"
        printf '{"at": %s, "kind": "%s hook %s", "model": "%s"}\n' \
            "$(date +%s.%N)" "$LLMUX_HOOK" "$kind" "$LLMUX_MODEL" >> faults
    fi
}

end_server() {
    for file in $(grep -ls -e "[-]-id=$LLMUX_SOAK-$slug-" /proc/[0-9]*/cmdline); do
        pid=${file#/proc/}
        kill -9 "${pid%/cmdline}" 2> /dev/null
        ended=1
    done
    [ -z "$ended" ] || flock -s -w 2 "$gpu" true
}

wake_up() {
    alone "$1"
    fault
    case $kind in
        fails) echo "no memory left"; exit 1 ;;
        hangs) sleep 60 ;;
        "ignores SIGTERM") trap '' TERM; sleep 60 ;;
        "prints 10 MB") head -c 10485760 /dev/zero | tr '\0' x ;;
        "is no UTF-8") printf '\377\376\200 \303(\n' ;;
        "fails, no UTF-8") printf '\377\376\200 \303(\033[31m\n'; exit 3 ;;
    esac
    end_server
    flock -s -w 0.5 "$gpu" true || complain "$LLMUX_MODEL is woken while $(cat "$gpu") is awake"
    rm -f "ready-$slug" "lost-$slug" "${kept:-none}"
    $2 "$SOAK_PYTHON" -I -S "$SOAK_SERVER" "--id=$LLMUX_SOAK-$slug-" --model "$LLMUX_MODEL" \
        --slug "$slug" --gpu "$gpu" --books "$books" --port "$LLMUX_PORT" 9>&- 8>&- &
    until [ -s "ready-$slug" ]; do sleep 0.02; done
    case $kind in
        "fails late") echo "found no weights"; exit 1 ;;
        "hangs late") sleep 60 ;;
    esac
    : > "awake-$slug"
}

lose_requests() {  # of a model that says that it preserves them: it does not
    : > "lost-$slug"
    printf '{"at": %s, "kind": "backend killed", "model": "%s"}\n' \
        "$(date +%s.%N)" "$LLMUX_MODEL" >> faults
}

go_to_sleep() {
    alone "$1"
    put_down
    keep "$1"
    end_badly
}

stop_it() {  # a model that is awake or asleep
    alone "$1"
    put_down
    rm -f "${kept:-none}"
    end_badly
}

put_down() {
    rm -f "awake-$slug"
    fault
    [ "$kind" = "does nothing" ] && exit 1
    sleep 0.06  # for the server to look whether a request is inside
    end_server
}

end_badly() {
    case $kind in
        fails) exit 1 ;;
        hangs) sleep 60 ;;
        "ignores SIGTERM") trap '' TERM; sleep 60 ;;
    esac
    true
}

is_alive() {
    curl -sf -m 0.8 "http://127.0.0.1:$LLMUX_PORT/health"
}

is_asleep() {
    fault
    [ -z "$kind" ] && flock -s -n "${gpu:-gpu-$1}" true
}
"""
