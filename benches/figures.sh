#!/bin/sh
# Measures Larder beside its peers and puts what came out into docs/: the table into performance.md, the plots beside it. Ten
# minutes or so on a machine that has nothing else to do. Arguments go to the benchmark (default: three rounds).
#
#   benches/figures.sh                        three rounds
#   benches/figures.sh --rounds 1 --quick     a look
set -eu
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || set -- --rounds 3
cargo bench --locked --bench peers -- "$@" --plots docs/plots

page=docs/performance.md
awk -v table=target/peers/table.md '
    /<!-- end of what benches\/figures.sh writes -->/ { skips = 0 }
    !skips { print }
    /<!-- benches\/figures.sh writes what follows -->/ {
        print ""
        while ((getline line < table) > 0) print line
        print ""
        skips = 1
    }' "$page" > target/peers/page.md
cp target/peers/page.md "$page"
printf 'figures.sh: written: %s, docs/plots/*.svg\n' "$page" >&2
