"""Obtains suites, runs each directly and through Larder, and compares the sets of passed tests.

A suite is a class in a file of its own: how it is obtained, and how it is run in a namespace where its server listens on
6379. Its run yields {name of test: passed or not}. With --fast both ways run at the same time. What passes directly and not
through Larder is run again, by itself; if it fails again and is not among the losses that known-losses.txt names with their
reason, the exit status is 1.

Environment: LARDER (another build of the binary; default: a release build made by cargo), SERVER (another server than
redis-server in the PATH). Results stay in target/conformance/results for each suite and way.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import hiredis
import losses
import python_suite
import redis_crate
import tcl

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / 'target' / 'conformance'
# More tests than this are not run again: something is broken that chance has no part in.
AGAIN_MAX = 300

TCL = tcl.TclSuite()
SUITES = {
    'tcl': TCL,
    'hiredis': hiredis.HiredisSuite(TCL),
    'redis-py': python_suite.redis_py('5.0.8', 2),
    'redis-py-resp3': python_suite.redis_py('5.0.8', 3),
    'redis-py-new': python_suite.redis_py_new(),
    'redis-crate': redis_crate.RedisCrateSuite(2),
    'redis-crate-resp3': redis_crate.RedisCrateSuite(3),
    'huey': python_suite.huey(),
    'django-redis': python_suite.django_redis(),
}


class Stand:
    """Where a suite's commands run: isolated, on a fresh server, with Larder in front of it or not."""

    def __init__(self, suite, way, larder):
        self.way = way
        self.logs = WORK / 'results' / f'{suite}-{way}'
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)
        self.larder = '' if way == 'direct' else larder

    def run(self, command, cwd, log, seconds_max, env=None):
        """Runs a command; returns its output, with a last line TIMEOUT if it was ended by the time limit."""
        # What an operator would deny is for these suites to call.
        env = {'LARDER_FLAGS': '--set deny=[]', **os.environ, 'LOGS': str(self.logs), 'LARDER': str(self.larder),
               **(env or {})}
        process = subprocess.Popen([HERE / 'isolated.sh', *map(str, command)], cwd=cwd, env=env, text=True,
                                   errors='replace', stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = process.communicate(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            # --kill-child takes the whole namespace along.
            process.kill()
            output, _ = process.communicate()
            output += '\nTIMEOUT\n'
        with open(self.logs / log, 'a', encoding='utf-8') as file:
            file.write(output)
        return output


def larder_binary():
    if 'LARDER' in os.environ:
        return pathlib.Path(os.environ['LARDER']).resolve()
    subprocess.run(['cargo', 'build', '--release', '--bin', 'larder'], cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get('CARGO_TARGET_DIR', ROOT / 'target'))
    return target.resolve() / 'release' / 'larder'


def run_ways(name, suite, larder, ways, fast):
    """Runs a suite in all ways, if it is to be fast at once; {way: results}."""
    results, failures = {}, []

    def run(way):
        began = time.monotonic()
        stand = Stand(name, way, larder)
        try:
            found = suite.run(stand, fast)
        except Exception as failure:  # pylint: disable=broad-exception-caught
            failures.append(f'{way}: {failure}')
            return
        results[way] = found
        print(f'{name}: {way}: {len(passed(found))} passed of {len(found)} in {time.monotonic() - began:.0f} s', flush=True)
        with open(stand.logs / 'results.json', 'w', encoding='utf-8') as file:
            json.dump(found, file, indent=0, sort_keys=True)

    threads = [threading.Thread(target=run, args=(way,)) for way in ways]
    for thread in threads:
        thread.start()
        if not fast:
            thread.join()
    for thread in threads:
        thread.join()
    if failures:
        raise OSError('; '.join(failures))
    return results


def lost_again(name, suite, larder, lost, fast):
    """Those of the lost tests that fail through Larder once more, when they are run by themselves."""
    if not lost or len(lost) > AGAIN_MAX:
        return lost
    print(f'{name}: {len(lost)} once more', flush=True)
    found = suite.run(Stand(name, 'again', larder), fast, lost)
    for test in lost:
        if found.get(test):
            print(f'{name}: passes when it is run again: {test}')
    return [test for test in lost if not found.get(test)]


def passed(results):
    return {test for test, ok in results.items() if ok}


def table(rows):
    head = ('suite', 'direct', 'through', 'known losses', 'lost')
    widths = [max(len(str(row[n])) for row in [head, *rows]) for n in range(len(head))]
    for row in [head, *rows]:
        print('  '.join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())


def main():
    parser = argparse.ArgumentParser(prog='conformance.sh', description=__doc__.splitlines()[0])
    parser.add_argument('suites', nargs='*', metavar='suite', help=', '.join(SUITES))
    parser.add_argument('--fast', action='store_true', help='a part of each suite that takes a few minutes')
    parser.add_argument('--direct-only', action='store_true', help='without Larder, to check the suites themselves')
    parser.add_argument('--list', action='store_true', help='list the suites')
    options = parser.parse_args()
    if options.list:
        print('\n'.join(SUITES))
        return 0
    unknown = set(options.suites) - set(SUITES)
    if unknown:
        parser.error(f'no such suite: {", ".join(sorted(unknown))}')
    larder = None if options.direct_only else larder_binary()
    rows, unexplained = [], 0
    for name in options.suites or SUITES:
        row, unknown_losses = examine(name, larder, options)
        rows.append(row)
        unexplained += unknown_losses
    table(rows)
    return 1 if unexplained else 0


def examine(name, larder, options):
    """Runs one suite; its row of the table, and how many losses nothing explains."""
    suite = SUITES[name]
    ways = ['direct'] if options.direct_only else ['direct', 'through']
    try:
        suite.obtain(WORK)
        results = run_ways(name, suite, larder, ways, options.fast)
    except (subprocess.CalledProcessError, OSError, ValueError) as failure:
        print(f'{name}: cannot be run: {failure}')
        return (name, '-', '-', '-', '-'), 1
    direct, through = passed(results['direct']), passed(results.get('through', {}))
    if not direct:
        print(f'{name}: nothing passes directly: see {WORK}/results/{name}-direct')
        return (name, 0, '-', '-', '-'), 1
    if options.direct_only:
        return (name, len(direct), '-', '-', '-'), 0
    reasons = losses.known(name)
    lost = sorted(direct - through)
    unknown = lost_again(name, suite, larder, [test for test in lost if test not in reasons], options.fast)
    for test in sorted(test for test in reasons.keys() & through if not reasons[test][1]):
        print(f'{name}: passes, though named in known-losses.txt: {test}')
    for test in unknown:
        print(f'{name}: LOST: {test}: see {WORK}/results/{name}-again and {name}-through')
    known = [test for test in lost if test in reasons]
    return (name, len(direct), len(direct) - len(known) - len(unknown), len(known), len(unknown)), len(unknown)


if __name__ == '__main__':
    sys.exit(main())
