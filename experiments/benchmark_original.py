"""Time a jitted JAX original for `experiments.benchmark`; prints a line of JSON.

Needs checkouts of the originals (named ``infom`` and ``IDQL``) in one folder, and jax, flax, optax,
distrax and tensorflow_probability in the environment. Nothing of the originals is changed: jaxrl5
is given gymnasium in the place of gym.
"""

import importlib
import json
import os
import sys
import time
import types

from absl import app, flags

from experiments.benchmark_worker import define_flags

FLAGS = flags.FLAGS


def load_infom(path: str, name: str, sizes: tuple[int, int], config: dict):
    """Return (agent, calls) of an InFOM original, configured as ours."""
    import ml_collections
    import numpy as np

    sys.path.insert(0, os.path.join(path, 'infom'))
    # The package's __init__ imports all agents; only the one asked for is wanted here.
    sys.modules['agents'] = types.ModuleType('agents')
    sys.modules['agents'].__path__ = [os.path.join(path, 'infom', 'agents')]
    module = importlib.import_module(f'agents.{name}')
    agent_class = next(v for k, v in vars(module).items() if k.endswith('Agent'))
    examples = [np.zeros((1, size), np.float32) for size in sizes]
    agent = agent_class.create(0, *examples, ml_collections.ConfigDict(config))
    return agent, {
        'pretrain': lambda agent, batch: agent.pretrain(batch),
        'finetune': lambda agent, batch: agent.finetune(batch, full_update=True),
        'finetune_partial': lambda agent, batch: agent.finetune(batch, full_update=False),
    }


def load_jaxrl5(path: str, name: str, sizes: tuple[int, int], config: dict):
    """Return (agent, calls) of a jaxrl5 original, configured as ours."""
    import flax
    import gymnasium
    import jax
    import numpy as np

    flax.config.update('flax_return_frozendict', True)
    jax.tree_map = jax.tree_util.tree_map
    importlib.import_module('tensorflow_probability.substrates.jax')
    sys.modules['gym'] = gymnasium
    for part in ('spaces', 'utils', 'utils.seeding'):
        sys.modules[f'gym.{part}'] = importlib.import_module(f'gymnasium.{part}')
    sys.path.insert(0, os.path.join(path, 'IDQL'))
    for package in ('jaxrl5', 'jaxrl5.agents', 'jaxrl5.data'):  # their __init__s import everything
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [os.path.join(path, 'IDQL', *package.split('.'))]
    learner = importlib.import_module('jaxrl5.agents.sac.sac_learner').SACLearner
    spaces = [gymnasium.spaces.Box(-1, 1, (size,), np.float32) for size in sizes]
    arguments = {key: value for key, value in config.items() if key != 'agent_name'}
    utd_ratio = FLAGS.utd_ratio
    agent = learner.create(0, *spaces, **arguments)
    return agent, {f'update_utd{utd_ratio}': lambda agent, batch: agent.update(batch, utd_ratio)}


def main(_):
    import jax
    import numpy as np
    from flax.core import frozen_dict

    from purerl.train.benchmark import sizes_of, synthetic_batch, time_calls
    from purerl.train.config import load_agent

    spec = load_agent(FLAGS.agent)
    load = load_infom if 'batch_size' in spec.config else load_jaxrl5
    agent, calls = load(FLAGS.path, spec.name, sizes_of(spec.config), spec.config.to_dict())
    size = FLAGS.batch_size * FLAGS.utd_ratio
    batch = synthetic_batch(spec.config, size)
    if load is load_jaxrl5:
        batch = frozen_dict.freeze(batch)
    imported = time.time()
    figures = {}
    for name, call in calls.items():
        if FLAGS.call and name != FLAGS.call:
            continue

        def step(agent, call=call):
            return jax.block_until_ready(call(agent, batch))[0]

        first, seconds = time_calls(step, agent, FLAGS.num_calls)
        figures[name] = {
            'median_ms': 1e3 * float(np.median(seconds)),
            'min_ms': 1e3 * min(seconds),
            'first_s': first,
        }
    first = next(iter(figures.values()))['first_s']
    print(json.dumps({'calls': figures, 'first_update_s': imported - FLAGS.started + first}))


if __name__ == '__main__':
    define_flags()
    flags.DEFINE_string('path', None, 'Folder with the checkouts.', required=True)
    app.run(main)
