#!/bin/bash
# isolated.sh COMMAND [ARGUMENT ...]
#
# Runs COMMAND in network and process namespaces of its own, where something that speaks the protocol listens on
# 127.0.0.1:6379, and leaves with its exit status. Suites that insist on that port can so run anywhere, side by side,
# always on a fresh server; and whatever they leave running ends with them.
#
#   LARDER         the binary to put between; empty: the server itself listens on 6379
#   SERVER         the server's binary (redis-server)
#   SERVER_FLAGS   more flags for it
#   LARDER_FLAGS   more flags for Larder
#   LOGS           a directory for the logs of both
set -eu
: "${LOGS:?a directory}"
if [ -z "${ISOLATED:-}" ]; then
  owner=()
  [ "$(id -u)" = 0 ] || owner=(--user --map-root-user)
  ISOLATED=1 exec unshare "${owner[@]}" --net --pid --fork --mount-proc --kill-child -- "$0" "$@"
fi

answers() {  # PORT: waits until something there answers PING
  for _ in $(seq 200); do
    redis-cli -p "$1" ping >"$LOGS/ping" 2>&1 && return
    sleep 0.05
  done
  echo "nothing answers on port $1:" >&2
  tail -n 20 "$LOGS"/*.log >&2
  exit 70
}

ip link set lo up
port=6379
[ -z "${LARDER:-}" ] || port=16379
data=$(mktemp -d)
# shellcheck disable=SC2086 # the flags are several words
"${SERVER:-redis-server}" --port "$port" --save "" --appendonly no --dir "$data" --enable-debug-command yes \
  --enable-protected-configs yes --enable-module-command yes --unixsocket "$data/redis.sock" \
  ${SERVER_FLAGS:-} >"$LOGS/server.log" 2>&1 &
answers "$port"
if [ -n "${LARDER:-}" ]; then
  # shellcheck disable=SC2086
  "$LARDER" --listen 127.0.0.1:6379 --upstream "redis://127.0.0.1:$port" ${LARDER_FLAGS:-} >"$LOGS/larder.log" 2>&1 &
  answers 6379
fi
status=0
"$@" || status=$?
rm -rf "$data"
exit "$status"
