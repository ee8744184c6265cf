#!/bin/bash
# server.sh [FLAG ...]
#
# Stands in for redis-server in suites that start servers of their own: starts the server on another port, and Larder
# where the suite expects it. What needs no plain port (-v, TLS, Unix sockets) goes to the server itself.
#
#   LARDER         the binary to put between; empty: the server itself
#   SERVER         the server's binary (redis-server)
#   LARDER_FLAGS   more flags for Larder
set -eu
server=${SERVER:-redis-server}
port=0
previous=
for word in "$@"; do
  [ "$previous" != --port ] || port=$word
  previous=$word
done
if [ -z "${LARDER:-}" ] || [ "$port" = 0 ]; then
  exec "$server" "$@"
fi
# In a network namespace of its own a suite's ports lie far apart from these.
behind=$((port > 32767 ? port - 20000 : port + 20000))
# Whoever ends this process, by whatever signal, ends the server too.
setpriv --pdeathsig KILL "$server" "$@" --port "$behind" &
for _ in $(seq 200); do
  redis-cli -p "$behind" ping >/dev/null 2>&1 && break
  sleep 0.05
done
# shellcheck disable=SC2086 # the flags are several words
exec "$LARDER" --listen "127.0.0.1:$port" --upstream "redis://127.0.0.1:$behind" ${LARDER_FLAGS:-}
