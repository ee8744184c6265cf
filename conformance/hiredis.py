"""hiredis's own test program, as the server's source package ships it: the C client, blocking and asynchronous."""

import pathlib
import re
import shutil
import subprocess

SECONDS_MAX = 300
RESULT = re.compile(r'^#(\d+) (.*?): (?:\x1b\[[0-9;]*m)?(PASSED|FAILED)', re.MULTILINE)


class HiredisSuite:
    """`server_source` is the suite that obtains the server's source package."""

    def __init__(self, server_source):
        self.server_source = server_source
        self.place = None

    def obtain(self, work):
        for tool in ('cc', 'make'):
            if not shutil.which(tool):
                raise SystemExit(f'hiredis: {tool} is needed (on Debian: apt-get install build-essential)')
        self.server_source.obtain(work)
        self.place = work / 'hiredis'
        if not (self.place / 'hiredis-test').exists():
            shutil.rmtree(self.place, ignore_errors=True)
            shutil.copytree(self.server_source.source / 'deps' / 'hiredis', self.place)
            # The asynchronous half needs an event loop.
            has_libevent = any(pathlib.Path(root, 'event2', 'event.h').exists() for root in ('/usr/include', '/usr/local/include'))
            options = ['TEST_ASYNC=1'] if has_libevent else []
            subprocess.run(['make', '--silent', 'hiredis-test', *options], cwd=self.place, check=True,
                           stdout=subprocess.DEVNULL)

    def run(self, stand, _fast, _only=None):
        command = ['./hiredis-test', '-h', '127.0.0.1', '-p', '6379', '--skip-throughput', '--skip-inherit-fd']
        output = stand.run(command, self.place, 'tests.log', SECONDS_MAX)
        return {f'{number} {name}': verdict == 'PASSED' for number, name, verdict in RESULT.findall(output)}
