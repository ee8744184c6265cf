#!/bin/sh
# Other people's test suites, run twice: directly against redis-server, and through Larder. What passes directly must
# pass through Larder too; what does not is named.
#
#   ./conformance.sh                 all suites
#   ./conformance.sh tcl redis-py    these suites
#   ./conformance.sh --fast          a part of each that takes a few minutes
#   ./conformance.sh --list          what there is
#
# The suites come from the package registries at run time and live under target/conformance; nothing of them is part of
# this repository. Needs: redis-server, redis-cli, python3 (with venv), tclsh, make, ip, unshare (on Debian, what of the
# last four is missing is installed); see conformance/run.py for more.
set -eu
cd "$(dirname "$0")"

# PROGRAM PACKAGE
provide() {
    command -v "$1" >/dev/null 2>&1 && return
    command -v apt-get >/dev/null 2>&1 || { echo "conformance.sh: please install $1" >&2; exit 1; }
    echo "conformance.sh: installing $2" >&2
    if [ "$(id -u)" = 0 ]; then run=; else run=sudo; fi
    $run apt-get update -qq
    $run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >&2
}

provide tclsh tcl
provide make make
provide ip iproute2
provide unshare util-linux
exec python3 -B conformance/run.py "$@"
