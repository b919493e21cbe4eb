"""Benchmark agents: update time, start-up, memory, seeds under vmap, and the JAX original.

    python -m experiments.benchmark --agents=purerl/agents/jaxrl5/sac.py
    python -m experiments.benchmark --originals=/path/with/both/checkouts

Every figure comes from a fresh process. "cold" starts with an empty compiler cache, "warm" with a
filled one; both count from the process's start to the end of the first update. With --originals
(see docs/performance.md) the jitted originals run between ours, on the same sizes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list(
    'agents',
    ['purerl/agents/infom/rebrac.py', 'purerl/agents/infom/iql.py', 'purerl/agents/jaxrl5/sac.py'],
    'Agent files.',
)
flags.DEFINE_list('modes', ['inductor', 'trace'], 'Compilation modes.')
flags.DEFINE_integer('batch_size', 256, 'Batch size of each critic step.')
flags.DEFINE_integer('utd_ratio', 1, 'Updates to data ratio of online agents.')
flags.DEFINE_integer('num_calls', 200, 'Timed calls.')
flags.DEFINE_integer('num_seeds', 1, 'Agents under vmap.')
flags.DEFINE_string('call', '', 'Time this call only; all of them if empty.')
flags.DEFINE_bool('cold', False, 'Measure the start with an empty compiler cache, too.')
flags.DEFINE_string('originals', '', 'Folder with checkouts of the originals, to time them too.')
flags.DEFINE_float('started', 0.0, 'Internal: when the parent started this process.')


def run(module: str, cache: str | None = None, **overrides) -> dict:
    """Run one measurement in a process of its own and return its figures."""
    names = ('batch_size', 'utd_ratio', 'num_calls', 'num_seeds', 'call')
    values = {name: FLAGS[name].value for name in names} | overrides
    command = [sys.executable, '-m', module, *(f'--{k}={v}' for k, v in values.items())]
    environment = os.environ | ({'TORCHINDUCTOR_CACHE_DIR': cache} if cache else {})
    command.append(f'--started={time.time()}')
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f'{" ".join(command)} failed:\n{result.stderr[-3000:]}')
    return json.loads(result.stdout.splitlines()[-1])


def report(title: str, figures: dict) -> None:
    """Print one process's figures, a line for each call."""
    for name, row in figures['calls'].items():
        numbers = '  '.join(f'{key} {value:.4g}' for key, value in row.items())
        print(f'{title:32} {name:18} {numbers}', flush=True)
    print(f'{title:32} {"start":18} first_update_s {figures["first_update_s"]:.3g}', flush=True)


def main(_):
    from experiments.benchmark_worker import peak

    print(f'matrix product: {peak():.0f} GFLOP/s')
    for agent in FLAGS.agents:
        for mode in FLAGS.modes:
            label = f'{os.path.basename(agent)} {mode}'
            if FLAGS.cold:
                with tempfile.TemporaryDirectory() as cache:
                    cold = run('experiments.benchmark_worker', cache, agent=agent, mode=mode)
                    report(f'{label} cold', cold)
            report(label, run('experiments.benchmark_worker', agent=agent, mode=mode))
        if FLAGS.originals:
            original = run('experiments.benchmark_original', agent=agent, path=FLAGS.originals)
            report(f'{os.path.basename(agent)} original', original)


if __name__ == '__main__':
    app.run(main)
