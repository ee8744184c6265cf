"""The tests of the redis crate, which its package ships. They start servers of their own: server.sh stands in for them."""

import json
import os
import pathlib
import re
import shutil
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
VERSION = '1.8.1'
TEST_VERSION = '1.0.4'
SECONDS_MAX = 3600
FEATURES = 'tokio-comp,connection-manager,cache-aio,token-based-authentication'
TESTS = 'test_acl test_async test_auth test_basic test_cache test_geospatial test_script test_streams test_types'.split()
FAST = ['test_cache', 'test_streams', 'test_acl']
# What the package does not name: its helpers from the registry, and the attribute that is not there.
DEPENDENCIES = f'''
[dev-dependencies.redis-test]
version = "={TEST_VERSION}"
features = ["aio"]

[dev-dependencies.test-macros]
path = "{HERE / 'test_macros'}"

[patch.crates-io]
redis = {{ path = "." }}

[workspace]
'''
VERDICT = re.compile(r'^(passed|failed) (\S+ \S+)$', re.MULTILINE)


class RedisCrateSuite:
    def __init__(self, protocol):
        self.protocol = protocol
        self.source = self.target = None

    def obtain(self, work):
        place = work / f'redis-crate-{VERSION}'
        self.source, self.target = place / 'source', place / 'target'
        if not (place / 'complete').exists():
            self.fetch(place)

    def fetch(self, place):
        shutil.rmtree(place, ignore_errors=True)
        asking = place / 'asking'
        (asking / 'src').mkdir(parents=True)
        (asking / 'src' / 'lib.rs').touch()
        (asking / 'Cargo.toml').write_text('[package]\nname = "asking"\nedition = "2024"\n[workspace]\n'
                                           f'[dependencies]\nredis = "={VERSION}"\n')
        answer = subprocess.run(['cargo', 'metadata', '--format-version', '1'], cwd=asking, check=True, text=True,
                                stdout=subprocess.PIPE)
        manifest, = (p['manifest_path'] for p in json.loads(answer.stdout)['packages'] if p['name'] == 'redis')
        shutil.copytree(pathlib.Path(manifest).parent, self.source)
        with open(self.source / 'Cargo.toml', 'a', encoding='utf-8') as file:
            file.write(DEPENDENCIES)
        (place / 'complete').touch()

    def run(self, stand, fast, only=None):
        tests = FAST if fast else TESTS
        command = ['cargo', 'test', '--no-run', '--features', FEATURES, '--message-format', 'json',
                   *(word for test in tests for word in ('--test', test))]
        built = subprocess.run(command, cwd=self.source, check=True, text=True, stdout=subprocess.PIPE,
                               env={**os.environ, 'CARGO_TARGET_DIR': str(self.target)})
        messages = (json.loads(line) for line in built.stdout.splitlines() if line.startswith('{'))
        binaries = [m['executable'] for m in messages if m.get('executable') and m['target']['name'] in tests]
        env = {'REDISRS_SERVER_BIN': str(HERE / 'server.sh'), 'PROTOCOL': f'RESP{self.protocol}',
               'ONLY': '\n'.join(only or [])}
        output = stand.run([HERE / 'each_test.sh', *binaries], self.source, 'tests.log', SECONDS_MAX, env)
        return {test: verdict == 'passed' for verdict, test in VERDICT.findall(output)}
