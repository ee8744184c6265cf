"""The server's own Tcl suite, in external-server mode, from the distribution's source package."""

import collections
import pathlib
import re
import shutil
import subprocess

# Units that take a few seconds each and meet every kind of command.
FAST = ('unit/printver unit/auth unit/protocol unit/keyspace unit/info-command unit/type/string unit/type/incr '
        'unit/type/list unit/type/set unit/type/zset unit/type/hash unit/type/stream-cgroups '
        'unit/sort unit/expire unit/multi unit/quit unit/acl unit/scripting unit/functions unit/pubsub unit/pubsubshard '
        'unit/introspection unit/introspection-2 unit/tracking unit/bitops unit/bitfield').split()
# In external mode the server is one for all: a unit that ends takes this long at most.
UNIT_SECONDS_MAX = 300

COLOUR = re.compile(r'\x1b\[[0-9;]*m')
TEST = re.compile(r'^\[(ok|err|exception)\]: (.*)$', re.MULTILINE)
DENIED = re.compile(r'^\[ignore\]: (.*): Tag: needs:repl', re.MULTILINE)
REFUSED = re.compile(r"^\[err\]: (.*) in tests/.*\n.*'(?:SYNC|REPLICAOF)' is refused", re.MULTILINE)

REPLICATION = 'replication is refused'
OWN_CLIENTS = 'the server sees connections of Larder, not clients'
RACE = 'publishes, on another connection, before UNSUBSCRIBE was answered'
# Tests that cannot pass through Larder, and why. Those that take part in replication are found by their tag or error.
KNOWN = {
    'unit/pubsub: PUBLISH/SUBSCRIBE after UNSUBSCRIBE without arguments': RACE,
    'unit/pubsub: PUBLISH/PSUBSCRIBE after PUNSUBSCRIBE without arguments': RACE,
    'unit/latency-monitor: LATENCY HISTOGRAM sub commands': 'CLIENT ID and CLIENT LIST do not reach the server',
    'unit/replybufsize: verify reply buffer limits': OWN_CLIENTS + '; their buffers grow by other rules',
}


class TclSuite:
    def __init__(self):
        self.source = None
        self.replication = set()

    def known(self, test):
        """Why a lost test is lost, if that is known."""
        test = re.sub(r' #\d+$', '', test)
        return KNOWN.get(test) or (REPLICATION if test in self.replication else None)

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

    def run(self, stand, fast):
        listing = subprocess.run(['./runtest', '--list-tests'], cwd=self.source, capture_output=True, text=True, check=True)
        units = [unit for unit in listing.stdout.split() if not fast or unit in FAST]
        # A refused SYNC or REPLICAOF would leave the tests after it in a state that they do not expect.
        tags = '-slow -needs:repl' if stand.larder else '-slow'
        results = {}
        for unit in units:
            # A process and a server of its own for each unit: what one leaves behind, or a hang, is not the next one's.
            command = ['./runtest', '--host', '127.0.0.1', '--port', '6379', '--durable', '--timeout', '150', '--tags', tags,
                       '--dont-clean', '--single', unit]
            output = COLOUR.sub('', stand.run(command, self.source, 'units.log', UNIT_SECONDS_MAX))
            results.update(results_of(unit, output))
            self.replication.update(f'{unit}: {name}' for name in DENIED.findall(output) + REFUSED.findall(output))
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
