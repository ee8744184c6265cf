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
# this repository. Needs: redis-server, redis-cli, python3 (with venv), tclsh, unshare; see conformance/run.py for more.
set -eu
cd "$(dirname "$0")"
exec python3 -B conformance/run.py "$@"
