# shellcheck shell=sh
# Sourced by the other scripts: queries to the Ollama server on $LLMUX_PORT.

method='' path='' status=000 body=''
newline='
'

say() { echo "${0##*/}: $*" >&2; }

now() { date +%s; }

# ask METHOD PATH SECONDS [JSON]: sets $status (000: no answer) and $body.
ask() {
    method=$1 path=$2 seconds=$3
    shift 3
    answer=$(curl --silent --noproxy '*' --max-time "$seconds" --request "$method" \
        --write-out "$newline%{http_code}" ${1:+--data "$1"} \
        "http://${OLLAMA_ADDRESS:-127.0.0.1}:$LLMUX_PORT$path") || :
    status=${answer##*"$newline"}
    body=${answer%"$newline"*}
}

# about MODEL REST: prints the JSON of a request about a model.
about() { printf '{"model": "%s", %s}' "$(printf %s "$1" | sed 's/[\\"]/\\&/g')" "$2"; }

# look MODEL [SECONDS]: sets $loaded to yes, no, or unknown if the server does not answer. Ollama lists
# models with their tag, which is `latest` unless given.
look() {
    loaded=unknown
    ask GET /api/ps "${2:-4}"
    [ "$status" = 200 ] || return 0
    full_name=$1
    case ${1##*/} in
        *:*) ;;
        *) full_name=$1:latest ;;
    esac
    loaded=no
    if printf %s "$body" | tr -d ' \n' | grep -qiF "\"name\":\"$full_name\""; then
        # shellcheck disable=SC2034 # used by the sourcing script
        loaded=yes
    fi
}

# Prints an error response in one line.
reason() { echo "status $status $(printf %s "$body" | head -c 300)"; }
