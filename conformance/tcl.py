"""The server's own Tcl suite, in external-server mode, from the distribution's source package."""

import collections
import pathlib
import re
import shutil
import subprocess
import time

import losses

# Units that take a few seconds each and meet every kind of command.
FAST = ('unit/printver unit/auth unit/protocol unit/keyspace unit/info-command unit/type/string unit/type/incr '
        'unit/type/list unit/type/set unit/type/zset unit/type/hash unit/type/stream-cgroups '
        'unit/sort unit/expire unit/multi unit/quit unit/acl unit/scripting unit/functions unit/pubsub unit/pubsubshard '
        'unit/introspection unit/introspection-2 unit/tracking unit/bitops unit/bitfield').split()
# What the fast part leaves out: clients that wait on connections of their own must have come in the order in which the
# test has written to them, without a reply in between; if not, it waits for ever.
FAST_WITHOUT = ('BRPOPLPUSH with multiple blocked clients', 'BLMPOP with multiple blocked clients')
# In external mode the server is one for all: a unit that ends takes this long at most.
UNIT_SECONDS_MAX = 300
# A test that says nothing for so long is given up, and the rest of its unit. (Some of the whole suite take a minute.)
SILENCE_SECONDS_MAX = 200
SILENCE_SECONDS_MAX_FAST = 60

COLOUR = re.compile(r'\x1b\[[0-9;]*m')
TEST = re.compile(r'^\[(ok|err|exception)\]: (.*)$', re.MULTILINE)


class TclSuite:
    def __init__(self):
        self.source = None

    def obtain(self, work):
        for tool in ('tclsh', 'apt-get', 'tar'):
            if not shutil.which(tool):
                raise SystemExit(f'tcl: {tool} is needed (on Debian: apt-get install tcl)')
        place = work / 'tcl'
        found = sorted(place.glob('*/runtest'))
        if not found:
            place.mkdir(parents=True, exist_ok=True)
            self.fetch(place)
            found = sorted(place.glob('*/runtest'))
        if not found:
            raise SystemExit('tcl: the source package of redis holds no runtest')
        self.source = found[0].parent

    def fetch(self, place):
        """Downloads the source package with package lists of our own, which name sources too; the system's stay."""
        lists, sources = place / 'lists', place / 'sources'
        (lists / 'partial').mkdir(parents=True, exist_ok=True)
        shutil.rmtree(sources, ignore_errors=True)
        sources.mkdir()
        for number, file in enumerate(sorted(pathlib.Path('/etc/apt').glob('sources.list.d/*.sources'))):
            text = re.sub(r'^Types:.*$', 'Types: deb-src', file.read_text(), flags=re.MULTILINE)
            (sources / f'{number}.sources').write_text(text)
        for number, file in enumerate(pathlib.Path('/etc/apt').glob('**/*.list')):
            text = re.sub(r'^deb ', 'deb-src ', file.read_text(), flags=re.MULTILINE)
            (sources / f'{number}.list').write_text(text)
        options = ['-o', f'Dir::State::Lists={lists}', '-o', 'Dir::Etc::SourceList=/dev/null',
                   '-o', f'Dir::Etc::SourceParts={sources}', '-o', 'APT::Sandbox::User=root']
        subprocess.run(['apt-get', *options, 'update'], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(['apt-get', *options, 'source', '--download-only', 'redis'], cwd=place, check=True)
        archive, = place.glob('redis_*.orig.tar.*')
        subprocess.run(['tar', 'xf', archive.name], cwd=place, check=True)

    def run(self, stand, fast, only=None):
        # A copy for each way: the tests leave files beside themselves.
        source = stand.logs / 'source'
        source.mkdir()
        shutil.copy(self.source / 'runtest', source)
        shutil.copytree(self.source / 'tests', source / 'tests', symlinks=True)
        programs = source / 'src'
        programs.mkdir()
        for entry in (self.source / 'src').iterdir():
            (programs / entry.name).symlink_to(entry)
        # The source is not built: the tests of redis-cli run the system's.
        if (cli := shutil.which('redis-cli')) and not (programs / 'redis-cli').exists():
            (programs / 'redis-cli').symlink_to(cli)
        listing = subprocess.run(['./runtest', '--list-tests'], cwd=source, capture_output=True, text=True, check=True)
        wanted = {test.split(': ')[0] for test in only} if only else set(FAST if fast else listing.stdout.split())
        left_out = [*FAST_WITHOUT] if fast else []
        # A refused SYNC or REPLICAOF would leave the tests after it in a state that they do not expect.
        refused = [test for test, (reason, _) in losses.known('tcl').items() if 'replication' in reason] if stand.larder else []
        results = {}
        for unit in [unit for unit in listing.stdout.split() if unit in wanted]:
            # A process and a server of its own for each unit: what one leaves behind, or a hang, is not the next one's.
            skipped = left_out + [test.partition(': ')[2] for test in refused if test.startswith(f'{unit}: ')]
            command = ['./runtest', '--host', '127.0.0.1', '--port', '6379', '--durable', '--timeout',
                       str(SILENCE_SECONDS_MAX_FAST if fast else SILENCE_SECONDS_MAX), '--tags', '-slow', '--dont-clean', '--single', unit,
                       *(word for test in skipped for word in ('--skiptest', test))]
            began = time.monotonic()
            output = COLOUR.sub('', stand.run(command, source, 'units.log', UNIT_SECONDS_MAX))
            with open(stand.logs / 'seconds.txt', 'a', encoding='utf-8') as file:
                file.write(f'{time.monotonic() - began:6.1f} {unit}\n')
            results.update(results_of(unit, output))
        shutil.rmtree(source)
        return results


def results_of(unit, output):
    results, seen = {}, collections.Counter()
    for kind, name in TEST.findall(output):
        name = re.sub(r' \(\d+ ms\)$', '', name)
        name = re.sub(r' in tests/.*$', '', name) if kind == 'err' else name
        if kind == 'exception':
            name = f'exception: {name[:100]}'
        seen[name] += 1
        number = f' #{seen[name]}' if seen[name] > 1 else ''
        results[f'{unit}: {name}{number}'] = kind == 'ok'
    if output.endswith('TIMEOUT\n'):
        results[f'{unit}: within {UNIT_SECONDS_MAX} s'] = False
    return results
