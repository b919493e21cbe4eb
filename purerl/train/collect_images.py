"""Collects datasets of images with agents that act by them.

Counterpart of ``examples/pixels/collect_from_checkpoint.py`` of philippe-eecs/IDQL @ 7582571.

Deviations from the original:
- The dataset is a safetensors file (`MemoryEfficientReplayBuffer.save`), not a pickled buffer, and
  says which options its environment was made with.
- It holds all transitions. In the original's buffer, which has a row per step, the padding of each
  episode takes the place of the oldest ones.
"""

import contextlib
from pathlib import Path

from purerl.core import random
from purerl.data.memory_efficient import MemoryEfficientReplayBuffer
from purerl.data.replay import transition
from purerl.envs.pixels import image_keys, options_of
from purerl.envs.wrappers import seed_env
from purerl.train.evaluation import clip_action

SUFFIX = '.safetensors'
_FIRST_ROWS = 1024


def acts_by_images(flags):
    """Whether a run with these flags acts by images."""
    return flags.get('image_size') is not None


def collect_images(trained, policy, path, env_name, num_episodes, num_transitions, seed):
    """Collects a dataset with the policy of a run that acts by images.

    Args:
        trained: A `purerl.train.load_run.TrainedRun`.
        policy: `policy(observation, key) -> action`.
        path: File to write, ending in `.safetensors`.
        env_name: Environment; None for the run's.
        num_episodes: Number of episodes.
        num_transitions: Number of transitions instead; the last episode is cut off.
        seed: Determines everything, together with the policy.

    Returns:
        The list of paths written.

    Raises:
        ValueError: If the path has another ending.
        RunError: If there is no such environment, or it does not fit the run.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(
            f'{path} must end in {SUFFIX!r}: {trained.folder} acts by images, whose datasets are '
            'of that format'
        )
    with contextlib.closing(trained.make_env(env_name=env_name)) as env:
        buffer = gather(env, policy, random.key(seed), num_episodes, num_transitions, seed)
    buffer.env_options = options_of(trained.flags)
    buffer.save(path)
    return [path]


def gather(env, policy, key, num_episodes=None, num_transitions=None, seed=0):
    """Runs a policy and stores its transitions.

    Args:
        env: A `gymnasium.Env` whose observations are dicts of stacked images.
        policy: `policy(observation, key) -> action`.
        key: Key of the policy's randomness, shape (2,).
        num_episodes: Number of episodes.
        num_transitions: Number of transitions instead.
        seed: Seeds the environment and its spaces.

    Returns:
        A `MemoryEfficientReplayBuffer` with all transitions.
    """
    seed_env(env, seed)
    buffer = _buffer_for(env, (num_transitions or 0) + _FIRST_ROWS)
    observation, _ = env.reset()
    episodes = transitions = 0
    while episodes != num_episodes and transitions != num_transitions:
        key, call_key = random.split(key)
        action = clip_action(policy(observation, call_key), env.action_space)
        following, reward, terminated, truncated, _ = env.step(action)
        transitions += 1
        # The last episode is cut off where there are enough transitions.
        truncated = truncated or transitions == num_transitions
        buffer = _with_room(buffer, env)
        buffer.insert(transition(observation, action, reward, terminated, truncated, following))
        observation = following
        if terminated or truncated:
            episodes += 1
            observation, _ = env.reset()
    return buffer


def _buffer_for(env, capacity):
    return MemoryEfficientReplayBuffer.from_spaces(
        env.observation_space,
        env.action_space,
        capacity,
        pixel_keys=image_keys(env.observation_space),
    )


def _with_room(buffer, env):
    """Returns the buffer, or a larger one with its contents where an episode could not begin."""
    if buffer.capacity - buffer.size > buffer.num_stack:
        return buffer
    larger = _buffer_for(env, 2 * buffer.capacity)
    state = {**buffer.state_dict(), 'capacity': larger.capacity, 'pointer': buffer.size}
    larger.load_state_dict(state)
    return larger
