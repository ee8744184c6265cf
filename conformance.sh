#!/bin/sh
# Other people's test suites, run twice: directly against redis-server, and through Larder. What passes directly must
# pass through Larder too; what does not is named, and fails the run unless conformance/known-losses.txt says why.
#
#   ./conformance.sh                 all suites
#   ./conformance.sh tcl redis-py    these suites
#   ./conformance.sh --fast          a part of each that takes a few minutes
#   ./conformance.sh --list          what there is
#
# The suites come from the package registries at run time (Debian's sources, PyPI, crates.io) and live under
# target/conformance; nothing of them is part of this repository. Needs root or unprivileged user namespaces, and
# installs what else is missing on Debian; see conformance/run.py for more.
set -eu
cd "$(dirname "$0")"

say() { printf 'conformance.sh: %s\n' "$*" >&2; }

# PACKAGE CHECK ...: installs a package if the check fails.
provide() {
    package=$1; shift
    "$@" >/dev/null 2>&1 && return
    command -v apt-get >/dev/null 2>&1 || { say "please install $package"; exit 1; }
    say "installing $package"
    if [ "$(id -u)" = 0 ]; then run=; else run=sudo; fi
    [ -n "${lists_are_fresh:-}" ] || $run apt-get update -qq
    lists_are_fresh=yes
    $run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >&2
}

provide tcl command -v tclsh
provide make command -v make
provide gcc command -v cc
provide libc6-dev test -e /usr/include/stdio.h
provide iproute2 command -v ip
provide util-linux command -v unshare
provide python3 command -v python3
provide python3-venv python3 -c 'import ensurepip'
if [ -z "${SERVER:-}" ] && ! command -v redis-server >/dev/null 2>&1; then
    ./test.sh --prepare
    export SERVER="$PWD/target/test-servers/redis-server"
fi
provide redis-tools command -v redis-cli
exec python3 -B conformance/run.py "$@"
