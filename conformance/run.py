"""Obtains suites, runs each directly and through Larder, and compares the sets of passed tests.

A suite is one class below: how it is obtained, and how it is run in a namespace where its server listens on 6379. Its run
yields {name of test: passed or not}. Exit status 1 if a test that passes directly is lost through Larder and is not
among the losses that the suite names as known, with their reason.

Environment: LARDER (another build of the binary; default: a release build made by cargo), SERVER (another server than
redis-server in the PATH). Results stay in target/conformance/results for each suite and way.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import hiredis
import python_suite
import redis_crate
import tcl

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / 'target' / 'conformance'

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
        self.logs.mkdir(parents=True, exist_ok=True)
        self.larder = larder if way == 'through' else ''

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


def run_both(name, suite, larder, ways, fast):
    suite.obtain(WORK)
    results = {}
    for way in ways:
        began = time.monotonic()
        print(f'{name}: {way} ...', flush=True)
        stand = Stand(name, way, larder)
        results[way] = suite.run(stand, fast)
        passed = sum(results[way].values())
        print(f'{name}: {way}: {passed} passed of {len(results[way])} in {time.monotonic() - began:.0f} s', flush=True)
        with open(stand.logs / 'results.json', 'w', encoding='utf-8') as file:
            json.dump(results[way], file, indent=0, sort_keys=True)
    return results


def passed(results):
    return {test for test, ok in results.items() if ok}


def table(rows):
    head = ('suite', 'direct', 'through', 'lost', 'of these known')
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
    ways = ['direct'] if options.direct_only else ['direct', 'through']
    larder = None if options.direct_only else larder_binary()
    rows, unexplained = [], 0
    for name in options.suites or SUITES:
        suite = SUITES[name]
        results = run_both(name, suite, larder, ways, options.fast)
        direct, through = passed(results['direct']), passed(results.get('through', {}))
        if not direct:
            print(f'{name}: nothing passes directly: see {WORK}/results/{name}-direct')
            unexplained += 1
        lost = [] if options.direct_only else sorted(direct - through)
        known = [test for test in lost if suite.known(test)]
        for test in lost:
            reason = suite.known(test)
            print(f'{name}: lost: {test}' + (f' (known: {reason})' if reason else ''))
        rows.append((name, len(direct), '-' if options.direct_only else len(through), len(lost), len(known)))
        unexplained += len(lost) - len(known)
    table(rows)
    return 1 if unexplained else 0


if __name__ == '__main__':
    sys.exit(main())
