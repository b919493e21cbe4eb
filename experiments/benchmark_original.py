"""One process of `experiments.benchmark`: a jitted JAX original's calls, timed when asked.

Needs checkouts of the originals (named ``infom`` and ``IDQL``) in one folder, and jax, flax, optax,
distrax and tensorflow_probability in the environment. Nothing of the originals is changed: jaxrl5
is given gymnasium in the place of gym. An original is the class of our agent's name, in the module
or package of our module's name.
"""

import importlib
import inspect
import sys
import types
from pathlib import Path

from absl import app, flags

from experiments.benchmark_worker import define_flags, serve

FLAGS = flags.FLAGS


def load_infom(root: Path, spec):
    """Return an InFOM original, configured as ours."""
    import ml_collections

    from purerl.train.benchmark import example_of

    sys.path.insert(0, str(root))
    _add_package(root, 'agents')
    module = importlib.import_module(f'agents.{_module_name(spec)}')
    examples = [example[None] for example in example_of(spec.config)]
    config = ml_collections.ConfigDict(spec.config.to_dict())
    return getattr(module, spec.agent_class.__name__).create(0, *examples, config)


def load_jaxrl5(root: Path, spec):
    """Return a jaxrl5 original, configured as ours."""
    import flax
    import gymnasium
    import jax
    import optax

    from purerl.train.benchmark import example_of

    flax.config.update('flax_return_frozendict', True)
    jax.tree_map = jax.tree_util.tree_map
    importlib.import_module('tensorflow_probability.substrates.jax')
    sys.modules['gym'] = gymnasium
    for part in ('spaces', 'utils', 'utils.seeding'):
        sys.modules[f'gym.{part}'] = importlib.import_module(f'gymnasium.{part}')
    sys.path.insert(0, str(root))
    for package in ('jaxrl5', 'jaxrl5.agents', 'jaxrl5.data'):
        _add_package(root, package)
    name = _module_name(spec)
    (file,) = (root / 'jaxrl5' / 'agents' / name).glob('*_learner.py')
    module = importlib.import_module(f'jaxrl5.agents.{name}.{file.stem}')
    create = getattr(module, spec.agent_class.__name__).create

    config = spec.config.to_dict()
    accepted = inspect.signature(create).parameters
    arguments = {key: value for key, value in config.items() if key in accepted}
    if config.get('decay_steps') is not None and 'decay_steps' not in accepted:
        # Its launchers make the schedule that is a field here.
        arguments['actor_lr'] = optax.cosine_decay_schedule(
            config['actor_lr'], config['decay_steps']
        )
    return create(0, *map(_space_of, example_of(spec.config)), **arguments)


def _add_package(root, package):
    """Make modules of a package importable without its __init__, which imports everything."""
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [str(root.joinpath(*package.split('.')))]


def _module_name(spec):
    return spec.agent_class.__module__.rpartition('.')[2]


def _space_of(example):
    import gymnasium
    import numpy as np

    if isinstance(example, dict):
        return gymnasium.spaces.Dict({key: _space_of(x) for key, x in example.items()})
    if example.dtype == np.uint8:
        return gymnasium.spaces.Box(0, 255, example.shape, np.uint8)
    return gymnasium.spaces.Box(-1, 1, example.shape, example.dtype)


def main(_):
    import jax
    from flax.core import frozen_dict

    from purerl.train.benchmark import calls_of, carry, synthetic_batch
    from purerl.train.config import load_agent

    spec = load_agent(FLAGS.agent)
    batch = synthetic_batch(spec, FLAGS.batch_size * FLAGS.utd_ratio)
    if 'batch_size' in spec.config:
        agent = load_infom(Path(FLAGS.path, 'infom'), spec)
    else:
        agent = load_jaxrl5(Path(FLAGS.path, 'IDQL'), spec)
        batch = frozen_dict.freeze(batch)
    steps = {}
    for name, call in calls_of(spec.agent_class, FLAGS.utd_ratio).items():
        if FLAGS.call and name != FLAGS.call:
            continue

        def step(agent, call=call):
            after, result = call(agent, batch)
            jax.block_until_ready(result if after is agent else (after, result))
            return after

        steps[name] = carry(step, agent), None
    serve(steps)


if __name__ == '__main__':
    define_flags()
    flags.DEFINE_string('path', None, 'Folder with the checkouts.', required=True)
    app.run(main)
