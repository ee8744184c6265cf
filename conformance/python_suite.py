"""Suites that are run by pytest, from the source distributions of Python packages."""

import pathlib
import subprocess
import sys
import tarfile
import xml.etree.ElementTree

SECONDS_MAX = 3600
# A single test that hangs is one failure.
TEST_SECONDS_MAX = 60

# The oldest redis-py that is tested wants old tools.
TOOLS_OLD = ['pytest<8', 'pytest-asyncio<0.24', 'mock', 'packaging', 'cachetools', 'setuptools', 'wheel', 'numpy']
TOOLS_NEW = ['hatchling', 'pytest', 'pytest-asyncio', 'mock', 'packaging', 'cachetools', 'numpy', 'xxhash', 'pybreaker', 'click',
             'aiohttp', 'opentelemetry-api', 'opentelemetry-sdk']
FAST = 'tests/test_commands.py tests/test_pipeline.py tests/test_pubsub.py tests/test_lock.py tests/test_connection.py'.split()
# Of the newest redis-py: client-side caching, and what may have changed in how a client uses the server.
NEW = ('tests/test_cache.py tests/test_pubsub.py tests/test_pipeline.py tests/test_lock.py tests/test_scripting.py '
       'tests/test_monitor.py tests/test_connection.py tests/test_commands.py tests/test_keyspace_notifications.py '
       'tests/test_asyncio/test_pubsub.py tests/test_asyncio/test_lock.py tests/test_asyncio/test_pipeline.py').split()
# What needs a cluster, modules, TLS or a sentinel is not for one plain server.
REDIS_PY_LEFT_OUT = ('not onlycluster and not redismod and not ssl and not replica and not experimental '
                     'and not fixed_client')


class PythonSuite:
    """`package==version` with its tests: `tests` are all, `fast` a part of them, `options` go to pytest."""

    def __init__(self, package, version, tools, tests, fast, options=()):
        self.package, self.version, self.tools = package, version, tools
        self.tests, self.fast, self.options = tests, fast, options
        self.source = self.python = None

    def obtain(self, work):
        place = work / f'{self.package}-{self.version}'
        self.python = place / 'venv' / 'bin' / 'python'
        if not (place / 'complete').exists():
            self.fetch(place)
        self.source, = (path.parent for path in place.glob('*/PKG-INFO'))

    def fetch(self, place):
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, '-m', 'venv', place / 'venv'], check=True)
        pip = [self.python, '-m', 'pip']
        subprocess.run([*pip, 'install', '--quiet', 'pytest-timeout', 'setuptools', 'wheel', *self.tools], check=True)
        # Downloading needs a way to read the package's metadata: the build tools are those that were just installed.
        subprocess.run([*pip, 'download', '--quiet', '--no-deps', '--no-binary', ':all:', '--no-build-isolation', '--dest',
                        place, f'{self.package}=={self.version}'], check=True)
        archive, = place.glob('*.tar.gz')
        with tarfile.open(archive) as opened:
            opened.extractall(place, filter='data')
        (place / 'complete').touch()

    def run(self, stand, fast, only=None):
        report = stand.logs / 'report.xml'
        tests = [self.node(test) for test in only] if only else self.fast if fast else self.tests
        command = [self.python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-o', 'addopts=', '--timeout',
                   TEST_SECONDS_MAX, '--junitxml', report, *self.options, *tests]
        stand.run(command, self.source, 'pytest.log', SECONDS_MAX, env={'PYTHONPATH': str(self.source)})
        if not report.exists():
            return {}
        return results_of(report)


    def node(self, test):
        """What pytest calls a test of the report: PATH::CLASS::NAME."""
        # A parameter may hold dots.
        place, bracket, parameters = test.partition('[')
        words = place.split('.')
        files = [n for n in range(1, len(words)) if (self.source / pathlib.Path(*words[:n])).with_suffix('.py').exists()]
        path = pathlib.Path(*words[:files[-1]]).with_suffix('.py')
        return '::'.join([str(path), *words[files[-1]:]]) + bracket + parameters


def redis_py(version, protocol, tools=TOOLS_OLD, tests=('tests',)):
    options = ['-o', 'asyncio_mode=auto', '--redis-url', 'redis://127.0.0.1:6379/9', '--protocol', protocol,
               '-m', REDIS_PY_LEFT_OUT, '--ignore', 'tests/test_cluster.py', '--ignore', 'tests/test_asyncio/test_cluster.py',
               '--ignore', 'tests/test_ssl.py']
    return PythonSuite('redis', version, tools, tests, FAST, options)


def redis_py_new():
    return redis_py('8.1.0', 3, TOOLS_NEW, NEW)


def huey():
    tests = ['huey/tests']
    options = ['--ignore', 'huey/tests/test_postgres.py', '-k', 'not Sqlite and not File']
    return PythonSuite('huey', '3.5.4', ['pytest', 'redis'], tests, tests, options)


def django_redis():
    options = ['-k', 'not sentinel and not Sentinel and not cluster and not Cluster and not usock']
    tools = ['setuptools>=77', 'pytest>=9', 'pytest-mock', 'pytest-xdist', 'pytest-django', 'django', 'redis', 'lz4', 'msgpack', 'pyzstd', 'backports.zstd']
    return PythonSuite('django-redis', '7.0.0', tools, ['tests'], ['tests/test_session.py', 'tests/test_client.py'], options)


def results_of(report):
    results = {}
    for case in xml.etree.ElementTree.parse(report).iter('testcase'):
        kinds = {child.tag for child in case}
        if 'skipped' not in kinds:
            name = f'{case.get("classname")}.{case.get("name")}'
            results[name] = not kinds & {'failure', 'error'}
    return results
