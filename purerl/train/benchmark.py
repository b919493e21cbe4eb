"""Timing of agents' compiled calls on synthetic batches.

`prepare` makes what is timed, in this process; `experiments.benchmark` runs it in fresh processes,
so that start-up, compilation and peak memory are each agent's own.
"""

import inspect
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from purerl.core import jit, native, trees
from purerl.train.config import Agent

SIZES = {  # observations, actions: OGBench's cube tasks, and HalfCheetah
    'offline': (40, 5),
    'online': (17, 6),
}
IMAGES = (64, 64, 3, 3)  # of one camera: height, width, channels, stacked frames


def takes_utd_ratio(agent_class: type) -> bool:
    """Return whether an agent's `update` takes several batches in one, as `online` hands them."""
    update = getattr(agent_class, 'update', None)
    return update is not None and 'utd_ratio' in inspect.signature(update).parameters


def calls_of(agent_class: type, utd_ratio: int = 1) -> dict[str, Callable]:
    """Return the timed calls ``(agent, batch) -> (agent, info)`` that an agent offers.

    Acting is timed on the batch's first observation; it returns the agent as it was, and actions.
    """
    if hasattr(agent_class, 'finetune'):
        return {
            'pretrain': lambda agent, batch: agent.pretrain(batch),
            'finetune': lambda agent, batch: agent.finetune(batch, full_update=True),
            'finetune_partial': lambda agent, batch: agent.finetune(batch, full_update=False),
        }
    if takes_utd_ratio(agent_class):
        calls = {f'update_utd{utd_ratio}': lambda agent, batch: agent.update(batch, utd_ratio)}
    else:
        calls = {'update': lambda agent, batch: agent.update(batch)}
    methods = {}  # one name each
    for name in ('eval_actions', 'sample_actions', 'sample_implicit_policy'):
        if hasattr(agent_class, name):
            methods.setdefault(getattr(agent_class, name), name)
    return calls | {name: _acting(name) for name in methods.values()}


def _acting(name):
    def call(agent, batch):
        observations = batch['observations']
        if isinstance(observations, Mapping):
            first = {key: x[0] for key, x in observations.items()}
        else:
            first = observations[0]
        result = getattr(agent, name)(first)
        return agent, result[0] if isinstance(result, tuple) else result

    return call


def example_of(config) -> tuple:
    """Return an observation and an action of zeros, of the sizes that an agent is timed with."""
    observation_dim, action_dim = SIZES['offline' if 'batch_size' in config else 'online']
    observation = np.zeros(observation_dim, np.float32)
    if 'pixel_keys' in config:
        observation = {key: np.zeros(IMAGES, np.uint8) for key in config['pixel_keys']}
    return observation, np.zeros(action_dim, np.float32)


def synthetic_batch(spec: Agent, batch_size: int) -> dict:
    """Make a batch with every field that an agent may ask for: float32 arrays, images uint8."""
    rng = np.random.RandomState(0)
    config = spec.config
    observation, action = example_of(config)

    def normal(*shape):
        return rng.randn(*shape).astype(np.float32)

    def observations():
        if isinstance(observation, np.ndarray):
            return normal(batch_size, *observation.shape)
        return {
            key: rng.randint(256, size=(batch_size, *image.shape)).astype(np.uint8)
            for key, image in observation.items()
        }

    batch = {
        'observations': observations(),
        'next_observations': observations(),
        'actions': np.tanh(normal(batch_size, *action.shape)),
        'next_actions': np.tanh(normal(batch_size, *action.shape)),
        'rewards': normal(batch_size),
        'masks': np.ones(batch_size, np.float32),
    }
    if 'batch_size' not in config:
        return {**batch, 'dones': np.zeros(batch_size, bool)}
    return batch | {
        'terminals': np.zeros(batch_size, np.float32),
        'value_goals': normal(batch_size, *observation.shape),
        'actor_goals': normal(batch_size, *observation.shape),
        'relabeled_rewards': -np.ones(batch_size, np.float32),
        'relabeled_masks': np.ones(batch_size, np.float32),
        'observation_min': np.full(observation.shape, -4, np.float32),
        'observation_max': np.full(observation.shape, 4, np.float32),
        'latents': normal(batch_size, config.get('latent_dim', 1)),
    }


def carry(call: Callable, state) -> Callable[[], None]:
    """Return a function that goes on by `call(state) -> state` each time it is called."""

    def step():
        nonlocal state
        state = call(state)

    return step


def time_calls(step: Callable[[], None], count: int) -> list[float]:
    """Return the seconds of each of `count` calls of `step`, with what it leaves a GPU to do."""
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        step()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds


def peak_gflops(device: str = 'cpu', size: int = 1024, repeats: int = 20) -> float:
    """Measure a device's float32 matrix product, in 1e9 operations per second."""
    a = torch.ones(size, size, device=device)
    return 2 * size**3 / min(time_calls(lambda: a @ a, repeats)) / 1e9


def count_flops(call: Callable, agent, batch) -> int:
    """Count the operations of a call's matrix products, from an eager run."""
    with jit.use_mode('off'), FlopCounterMode(display=False) as counter:
        call(agent, batch)
    return counter.get_total_flops()


def prepare(
    spec: Agent,
    batch_size: int = 256,
    utd_ratio: int = 1,
    num_seeds: int = 1,
    only: str = '',
    device: str = 'cpu',
) -> dict[str, tuple[Callable[[], None], Callable[[], int]]]:
    """Create an agent, and a synthetic batch for its calls.

    Args:
        spec: the agent's file and config.
        batch_size: transitions of each critic step.
        utd_ratio: such steps in one update, of agents that take several.
        num_seeds: agents trained together under vmap; 1 runs the plain program.
        only: name of the one call wanted; all of them if empty.
        device: where agents and batch are put.

    Returns:
        For each call: a function that makes it once, going on from its last state, and one that
        counts the floating-point operations of its matrix products, which takes an eager run.
    """
    native.keep_freed_memory()
    batch = trees.map(torch.from_numpy, synthetic_batch(spec, batch_size * utd_ratio))
    batch = trees.device_put(batch, device)
    examples = trees.map(lambda x: torch.from_numpy(x)[None], example_of(spec.config))
    agents = [
        trees.device_put(spec.agent_class.create(seed, *examples, spec.config), device)
        for seed in range(num_seeds)
    ]
    prepared = {}
    for name, call in calls_of(spec.agent_class, utd_ratio).items():
        if only and name != only:
            continue
        if num_seeds == 1:
            timed, state, inputs = call, agents[0], batch
        else:
            timed = jit.jit(jit.vmap(call))
            state, inputs = trees.stack(agents), trees.stack([batch] * num_seeds)
        step = carry(lambda s, t=timed, b=inputs: t(s, b)[0], state)
        flops = lambda c=call: num_seeds * count_flops(c, agents[0], batch)  # noqa: E731
        prepared[name] = step, flops
    return prepared
