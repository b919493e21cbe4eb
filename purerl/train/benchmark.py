"""Timing of agents' compiled calls on synthetic batches.

`measure` runs one agent in this process and returns its figures; `experiments.benchmark` runs it
in fresh processes, so that start-up, compilation and peak memory are each agent's own.
"""

import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from purerl.core import jit, native, trees
from purerl.train.config import Agent

SIZES = {  # observations, actions: OGBench's cube tasks, and HalfCheetah
    'offline': (40, 5),
    'online': (17, 6),
}


def calls_of(agent, utd_ratio: int = 1) -> dict[str, Callable]:
    """Return the timed calls ``(agent, batch) -> (agent, info)`` that an agent offers."""
    if hasattr(agent, 'finetune'):
        return {
            'pretrain': lambda agent, batch: agent.pretrain(batch),
            'finetune': lambda agent, batch: agent.finetune(batch, full_update=True),
            'finetune_partial': lambda agent, batch: agent.finetune(batch, full_update=False),
        }
    return {f'update_utd{utd_ratio}': lambda agent, batch: agent.update(batch, utd_ratio)}


def sizes_of(config) -> tuple[int, int]:
    """Return the sizes of observations and actions that an agent is timed with."""
    return SIZES['offline' if 'batch_size' in config else 'online']


def synthetic_batch(config, batch_size: int) -> dict:
    """Make a batch with every field that an agent with this config may ask for (float32)."""
    rng = np.random.RandomState(0)
    observation_dim, action_dim = sizes_of(config)

    def normal(*shape):
        return rng.randn(*shape).astype(np.float32)

    batch = {
        'observations': normal(batch_size, observation_dim),
        'next_observations': normal(batch_size, observation_dim),
        'actions': np.tanh(normal(batch_size, action_dim)),
        'next_actions': np.tanh(normal(batch_size, action_dim)),
        'rewards': normal(batch_size),
        'masks': np.ones(batch_size, np.float32),
    }
    if 'batch_size' not in config:
        return {**batch, 'dones': np.zeros(batch_size, bool)}
    batch |= {
        'terminals': np.zeros(batch_size, np.float32),
        'value_goals': normal(batch_size, observation_dim),
        'actor_goals': normal(batch_size, observation_dim),
        'relabeled_rewards': -np.ones(batch_size, np.float32),
        'relabeled_masks': np.ones(batch_size, np.float32),
        'observation_min': np.full(observation_dim, -4, np.float32),
        'observation_max': np.full(observation_dim, 4, np.float32),
    }
    return batch | {'latents': normal(batch_size, config.get('latent_dim', 1))}


def time_calls(call: Callable, state, num_calls: int) -> tuple[float, list[float]]:
    """Time `call(state) -> state`; returns seconds of the first call and of `num_calls` others."""
    begin = time.perf_counter()
    state = call(state)
    first = time.perf_counter() - begin
    for _ in range(5):
        state = call(state)
    seconds = []
    for _ in range(num_calls):
        begin = time.perf_counter()
        state = call(state)
        seconds.append(time.perf_counter() - begin)
    return first, seconds


def peak_gflops(size: int = 1024, repeats: int = 20) -> float:
    """Measure this machine's float32 matrix product, in 1e9 operations per second."""
    a = torch.ones(size, size)
    _, seconds = time_calls(lambda x: a @ a, a, repeats)
    return 2 * size**3 / min(seconds) / 1e9


def count_flops(call: Callable, agent, batch) -> int:
    """Count the operations of a call's matrix products, from an eager run."""
    with jit.use_mode('off'), FlopCounterMode(display=False) as counter:
        call(agent, batch)
    return counter.get_total_flops()


def measure(
    spec: Agent,
    batch_size: int = 256,
    utd_ratio: int = 1,
    num_calls: int = 200,
    num_seeds: int = 1,
    only: str = '',
) -> dict[str, dict]:
    """Time every call of one agent in the compilation mode in force.

    Args:
        num_seeds: agents trained together under vmap; 1 runs the plain program.
        only: name of the one call to time; all of them if empty.

    Returns:
        For each call: ``median_ms``, ``min_ms``, ``first_s`` (tracing and compilation included),
        ``gflop`` of its matrix products, and ``peak_mib`` of the process so far.
    """
    native.keep_freed_memory()
    batch = trees.map(torch.from_numpy, synthetic_batch(spec.config, batch_size * utd_ratio))
    examples = [torch.zeros(1, size) for size in sizes_of(spec.config)]
    agents = [spec.agent_class.create(seed, *examples, spec.config) for seed in range(num_seeds)]
    figures = {}
    for name, call in calls_of(agents[0], utd_ratio).items():
        if only and name != only:
            continue
        if num_seeds == 1:
            timed, state, inputs = call, agents[0], batch
        else:
            timed = jit.jit(jit.vmap(call))
            state, inputs = trees.stack(agents), trees.stack([batch] * num_seeds)
        first, seconds = time_calls(lambda s, t=timed, b=inputs: t(s, b)[0], state, num_calls)
        figures[name] = {
            'median_ms': 1e3 * float(np.median(seconds)),
            'min_ms': 1e3 * min(seconds),
            'first_s': first,
            'gflop': num_seeds * count_flops(call, agents[0], batch) / 1e9,
            'peak_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    return figures
