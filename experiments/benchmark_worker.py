"""One measurement of `experiments.benchmark`, in a process of its own; prints a line of JSON."""

import json
import time

from absl import app, flags

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags that workers share."""
    flags.DEFINE_string('agent', None, 'Agent file.', required=True)
    flags.DEFINE_integer('batch_size', 256, 'Batch size of each critic step.')
    flags.DEFINE_integer('utd_ratio', 1, 'Updates to data ratio of online agents.')
    flags.DEFINE_integer('num_calls', 200, 'Timed calls.')
    flags.DEFINE_integer('num_seeds', 1, 'Agents under vmap.')
    flags.DEFINE_string('call', '', 'Time this call only; all of them if empty.')
    flags.DEFINE_float('started', 0.0, 'When this process was started, in seconds since 1970.')


def peak() -> float:
    """This machine's float32 matrix product, in GFLOP/s."""
    from purerl.train.benchmark import peak_gflops

    return peak_gflops()


def main(_):
    from purerl.core import jit
    from purerl.train.benchmark import measure
    from purerl.train.config import load_agent

    jit.set_mode(FLAGS.mode)
    spec = load_agent(FLAGS.agent)
    imported = time.time()
    calls = measure(
        spec, FLAGS.batch_size, FLAGS.utd_ratio, FLAGS.num_calls, FLAGS.num_seeds, FLAGS.call
    )
    # Creation is quick; the first call's own time is what compilation adds.
    first = next(iter(calls.values()))['first_s']
    print(json.dumps({'calls': calls, 'first_update_s': imported - FLAGS.started + first}))


if __name__ == '__main__':
    define_flags()
    flags.DEFINE_enum('mode', 'inductor', ['inductor', 'trace', 'off'], 'Compilation mode.')
    app.run(main)
