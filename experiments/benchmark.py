"""Benchmark agents: update time, start-up, memory, seeds under vmap, and the JAX original.

    python -m experiments.benchmark --agents=purerl/agents/jaxrl5/sac.py
    python -m experiments.benchmark --originals=/path/with/both/checkouts

Each mode of an agent, and with --originals (see docs/performance.md) its jitted original, has a
process of its own. These take turns: each of --rounds rounds times every call a few times in each
process, so that what else the machine does falls on all of them alike. "ratio" is the median, over
the rounds, of a round's median divided by the last process's (the original's, where there is one).
Starts count from the process's start to the end of the first update; "cold" ones with an empty
compiler cache.
"""

import json
import os
import statistics
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
flags.DEFINE_list('modes', ['inductor', 'trace'], 'Compilation modes: inductor, trace, off.')
flags.register_validator(
    'modes', {'inductor', 'trace', 'off'}.issuperset, 'the modes are inductor, trace and off'
)
flags.DEFINE_integer('batch_size', 256, 'Batch size of each critic step.')
flags.DEFINE_integer('utd_ratio', 1, 'Updates to data ratio of online agents.')
flags.DEFINE_string('device', 'cpu', 'Where our agents compute; originals choose for themselves.')
flags.DEFINE_integer('rounds', 10, 'Rounds.', lower_bound=1)
flags.DEFINE_integer('num_calls', 20, 'Timed calls in each round.', lower_bound=1)
flags.DEFINE_integer('num_seeds', 1, 'Agents under vmap, timed beside one agent.', lower_bound=1)
flags.DEFINE_string('call', '', 'Time this call only; all of them if empty.')
flags.DEFINE_bool('cold', False, 'Measure the start with an empty compiler cache, too.')
flags.DEFINE_string('originals', '', 'Folder with checkouts of the originals, to time them too.')


class Worker:
    """A process that has prepared an agent's calls, and times them when asked.

    Attributes:
        title: what its lines are printed with.
        start: ``calls`` (first_s, peak_mib and, of ours, gflop of each) and ``first_update_s``.
    """

    def __init__(self, title: str, module: str, cache: str | None = None, **options):
        names = ('batch_size', 'utd_ratio', 'call')
        values = {name: FLAGS[name].value for name in names} | options
        command = [sys.executable, '-m', module, *(f'--{k}={v}' for k, v in values.items())]
        environment = os.environ | ({'TORCHINDUCTOR_CACHE_DIR': cache} if cache else {})
        self.title = title
        self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [*command, f'--started={time.time()}'],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.start = self._read()

    def time(self, name: str) -> list[float]:
        """Return the seconds of some calls of a name."""
        self._process.stdin.write(f'{name} {FLAGS.num_calls}\n')
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()

    def _read(self):
        # Libraries may print, too.
        for line in self._process.stdout:
            if line.startswith(('{', '[')):
                return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        raise SystemExit(f'{" ".join(self._process.args)} failed:\n{self._errors.read()[-3000:]}')


def report(worker: Worker, name: str, figures: dict) -> None:
    """Print a line."""
    numbers = '  '.join(f'{key} {value:.4g}' for key, value in figures.items())
    print(f'{worker.title:32} {name:18} {numbers}', flush=True)


def start(agent: str) -> list[Worker]:
    """Start an agent's processes, one after the other, and report how long that took."""
    workers = []
    label = os.path.basename(agent)
    for mode in FLAGS.modes:
        options = {'module': 'experiments.benchmark_worker', 'agent': agent, 'mode': mode}
        options['device'] = FLAGS.device
        if FLAGS.cold:
            with tempfile.TemporaryDirectory() as cache:
                cold = Worker(f'{label} {mode} cold', cache=cache, **options)
                cold.close()
            report(cold, 'start', {'first_update_s': cold.start['first_update_s']})
            for name, call in cold.start['calls'].items():
                report(cold, name, {'first_s': call['first_s']})
        if FLAGS.num_seeds > 1:
            title = f'{label} {mode}, {FLAGS.num_seeds} seeds'
            workers.append(Worker(title, num_seeds=FLAGS.num_seeds, **options))
        workers.append(Worker(f'{label} {mode}', **options))
    if FLAGS.originals:
        options = {'agent': agent, 'path': FLAGS.originals}
        workers.append(Worker(f'{label} original', 'experiments.benchmark_original', **options))
    for worker in workers:
        report(worker, 'start', {'first_update_s': worker.start['first_update_s']})
    return workers


def compare(workers: list[Worker]) -> None:
    """Time the calls of several processes by turns, and report them."""
    for name in workers[0].start['calls']:
        rounds = [[worker.time(name) for worker in workers] for _ in range(FLAGS.rounds)]
        for i, worker in enumerate(workers):
            seconds = [x for times in rounds for x in times[i]]
            ratios = [
                statistics.median(times[i]) / statistics.median(times[-1]) for times in rounds
            ]
            figures = {
                'median_ms': 1e3 * statistics.median(seconds),
                'min_ms': 1e3 * min(seconds),
                'ratio': statistics.median(ratios),
            }
            report(worker, name, figures | worker.start['calls'][name])


def main(_):
    from purerl.train.benchmark import peak_gflops

    print(f'matrix product: {peak_gflops(FLAGS.device):.0f} GFLOP/s')
    for agent in FLAGS.agents:
        workers = start(agent)
        compare(workers)
        for worker in workers:
            worker.close()


if __name__ == '__main__':
    app.run(main)
