#!/bin/sh
# Histories through a network that loses packets: the tests of faults, in a network namespace of their own. Packets to and
# from the upstream are dropped, all or every third, the interface goes down, connections are cut, servers are killed;
# a relay delays what passes. Needs root (or a user who may make namespaces), unshare, ip and nft.
#
#   tests/coherence/netns.sh             60 s for each of the four tests
#   tests/coherence/netns.sh 600         so many seconds
#   LARDER_TEST_SEED=7 tests/coherence/netns.sh
set -eu
cd "$(dirname "$0")/../.."
seconds=${1:-60}
for tool in unshare ip nft; do
    command -v "$tool" >/dev/null || { echo "netns.sh: needs $tool" >&2; exit 2; }
done
# Outside of the namespace: what cargo may still have to fetch is not there within.
./test.sh --prepare
cargo test --locked --test coherence --no-run
exec unshare --net --pid --fork --kill-child --mount-proc sh -c '
    ip link set lo up
    LARDER_TEST_NETNS=1 LARDER_TEST_SECONDS=$1 exec cargo test --locked --offline --test coherence -- \
        --nocapture --test-threads 1 faults' netns "$seconds"
