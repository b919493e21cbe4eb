"""Replays reference recordings through purerl and compares every number.

    python -m experiments.replay_reference PATH... [--jit=off|trace|inductor]

Paths are recordings or folders of them; docs/reference_cases.md describes the format, the
tolerances and the output. Exits with 1 if one fails.
"""

import os

from absl import app, flags

from experiments.reference.replay import recordings, replay_file
from purerl.core import jit

_JIT = flags.DEFINE_enum(
    'jit',
    None,
    jit.MODES,
    'How updates are compiled; by default as the environment variable PURERL_JIT says, else trace.',
)


def main(argv):
    if len(argv) < 2:
        raise app.UsageError('name at least one recording or folder')
    mode = _JIT.value or os.environ.get('PURERL_JIT', 'trace')
    if mode not in jit.MODES:
        raise app.UsageError(f'PURERL_JIT must be {", ".join(jit.MODES)}, not {mode!r}')
    paths = recordings(argv[1:])
    failed = 0
    for path in paths:
        passed, lines = replay_file(path, mode)
        print(lines, flush=True)
        failed += not passed
    print(f'{len(paths) - failed} passed, {failed} failed')
    return int(failed > 0)


if __name__ == '__main__':
    app.run(main)
