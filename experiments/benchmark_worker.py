"""One process of `experiments.benchmark`: prepares an agent's calls, then times them when asked."""

import json
import resource
import sys
import time
from collections.abc import Callable

from absl import app, flags

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags that workers share."""
    flags.DEFINE_string('agent', None, 'Agent file.', required=True)
    flags.DEFINE_integer('batch_size', 256, 'Batch size of each critic step.')
    flags.DEFINE_integer('utd_ratio', 1, 'Updates to data ratio of online agents.')
    flags.DEFINE_string('call', '', 'Time this call only; all of them if empty.')
    flags.DEFINE_float('started', 0.0, 'When this process was started, in seconds since 1970.')


def serve(steps: dict[str, tuple[Callable[[], None], Callable[[], int] | None]]) -> None:
    """Make each call once, say how long that took, and then time calls as asked.

    Prints lines of JSON: first what is known of each call, and the start's seconds; then, for each
    line ``NAME COUNT`` of the input until it ends, the seconds of `COUNT` calls. Two calls before
    them, which are not counted, wake threads and fill caches after another process has run.
    """
    from purerl.train.benchmark import time_calls

    ready = time.time()
    calls = {}
    for name, (step, _) in steps.items():
        (first,) = time_calls(step, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        calls[name] = {'first_s': first, 'peak_mib': peak}
    for name, (_, flops) in steps.items():  # last, because it is no part of a start
        if flops is not None:
            calls[name]['gflop'] = flops() / 1e9
    # Creation is quick; the first call's own time is what compilation adds.
    start = ready - FLAGS.started + next(iter(calls.values()))['first_s']
    print(json.dumps({'calls': calls, 'first_update_s': start}), flush=True)
    for line in sys.stdin:
        name, count = line.split()
        step, _ = steps[name]
        time_calls(step, 2)
        print(json.dumps(time_calls(step, int(count))), flush=True)


def main(_):
    from purerl.core import jit
    from purerl.train.benchmark import prepare
    from purerl.train.config import RunError, load_agent

    jit.set_mode(FLAGS.mode)
    try:
        spec = load_agent(FLAGS.agent)
    except RunError as error:
        sys.exit(f'error: {error}')
    sizes = FLAGS.batch_size, FLAGS.utd_ratio, FLAGS.num_seeds
    serve(prepare(spec, *sizes, FLAGS.call, FLAGS.device))


if __name__ == '__main__':
    define_flags()
    flags.DEFINE_integer('num_seeds', 1, 'Agents under vmap.')
    flags.DEFINE_string('device', 'cpu', 'Where to put agents and batches.')
    flags.DEFINE_enum('mode', 'inductor', ['inductor', 'trace', 'off'], 'Compilation mode.')
    app.run(main)
