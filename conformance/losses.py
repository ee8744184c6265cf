"""What is known to be lost through Larder: known-losses.txt, which says why of each."""

import pathlib

FILE = pathlib.Path(__file__).resolve().parent / 'known-losses.txt'


def known(suite):
    """{test: (reason, by chance or not)} of a suite."""
    found, reason = {}, None
    for number, line in enumerate(FILE.read_text(encoding='utf-8').splitlines(), 1):
        if not line or line.startswith('#'):
            continue
        if line[:2] in ('= ', '~ '):
            reason = (line[2:], line[0] == '~')
            continue
        suites, _, test = line.partition(' :: ')
        if not test or not reason:
            raise SystemExit(f'{FILE}:{number}: neither a reason nor, below one, "SUITE,... :: TEST"')
        if suite in suites.split(','):
            found[test] = reason
    return found
