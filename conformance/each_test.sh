#!/bin/bash
# each_test.sh BINARY ...
#
# Runs each test of Rust test binaries in a process of its own: what one leaves behind is not the next one's. Prints a
# line "passed BINARY TEST" or "failed BINARY TEST" behind each one's output.
#
#   ONLY   lines "BINARY TEST": no others are run
set -u
for binary in "$@"; do
  short=$(basename "$binary")
  for test in $("$binary" --list --format terse | sed -n 's/: test$//p'); do
    [ -z "${ONLY:-}" ] || grep -qxF "${short%-*} $test" <<<"$ONLY" || continue
    if timeout 60 "$binary" --exact "$test" 2>&1; then verdict=passed; else verdict=failed; fi
    echo "$verdict ${short%-*} $test"
  done
done
