"""The tests of redis-py, from its source distribution."""

import subprocess
import sys
import tarfile
import xml.etree.ElementTree

SECONDS_MAX = 3600
# A single test that hangs is one failure.
TEST_SECONDS_MAX = 60
FAST = 'tests/test_commands.py tests/test_pipeline.py tests/test_pubsub.py tests/test_lock.py tests/test_connection.py'
# What needs a cluster, modules, TLS or a sentinel is not for one plain server.
LEFT_OUT = 'not onlycluster and not redismod and not ssl and not replica and not experimental'


# Tests that cannot pass through Larder, and why.
KNOWN = {
    'tests.test_commands.TestRedisCommands.test_replicaof': 'replication is refused',
    'tests.test_asyncio.test_commands.TestRedisCommands.test_replicaof': 'replication is refused',
}


class RedisPySuite:
    def __init__(self, version, protocol):
        self.version, self.protocol = version, protocol
        self.source = self.python = None

    def known(self, test):
        """Why a lost test is lost, if that is known."""
        return KNOWN.get(test)

    def obtain(self, work):
        place = work / f'redis-py-{self.version}'
        self.source, self.python = place / f'redis-{self.version}', place / 'venv' / 'bin' / 'python'
        if (place / 'complete').exists():
            return
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, '-m', 'venv', place / 'venv'], check=True)
        pip = [self.python, '-m', 'pip', 'install', '--quiet']
        subprocess.run([*pip, 'pytest<8', 'pytest-asyncio<0.24', 'pytest-timeout', 'mock', 'packaging', 'cachetools',
                        'setuptools', 'wheel', 'numpy'], check=True)
        # Downloading needs a way to read the package's metadata: the build tools are those that were just installed.
        subprocess.run([self.python, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', ':all:',
                        '--no-build-isolation', '--dest', place, f'redis=={self.version}'], check=True)
        with tarfile.open(place / f'redis-{self.version}.tar.gz') as archive:
            archive.extractall(place, filter='data')
        (place / 'complete').touch()

    def run(self, stand, fast):
        report = stand.logs / 'report.xml'
        report.unlink(missing_ok=True)
        tests = FAST.split() if fast else ['tests']
        command = [self.python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-o', 'asyncio_mode=auto', '--redis-url', 'redis://127.0.0.1:6379/9',
                   '--protocol', self.protocol, '-m', LEFT_OUT, '--timeout', TEST_SECONDS_MAX, '--junitxml', report,
                   '--ignore', 'tests/test_cluster.py', '--ignore', 'tests/test_asyncio/test_cluster.py',
                   '--ignore', 'tests/test_ssl.py', *tests]
        stand.run(command, self.source, 'pytest.log', SECONDS_MAX, env={'PYTHONPATH': str(self.source)})
        if not report.exists():
            return {}
        return results_of(report)


def results_of(report):
    results = {}
    for case in xml.etree.ElementTree.parse(report).iter('testcase'):
        kinds = {child.tag for child in case}
        if 'skipped' not in kinds:
            name = f'{case.get("classname")}.{case.get("name")}'
            results[name] = not kinds & {'failure', 'error'}
    return results
