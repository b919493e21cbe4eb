"""Environment wrappers, and seeding.

Where gymnasium has the wrapper (time limit, rescaling of actions, flattening of dictionaries),
`purerl.envs.make` uses gymnasium's. Sources of the rest: jaxrl5 (`single_precision.py`,
`universal_seed.py`) and InFOM (`env_utils.py`).
"""

import collections
import contextlib
import re

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, flatten, flatten_space
from gymnasium.utils import seeding


def layers(env):
    """Lists an environment's wrappers from the outermost to the bare environment.

    Args:
        env: A `gymnasium.Env`.

    Returns:
        A list of environments; the last one is `env.unwrapped`.
    """
    found = [env]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(found[-1].env)
    return found


def seed_env(env, seed):
    """Seeds an environment's random numbers and those of all its spaces, without a reset.

    Observations, rewards and samples of the spaces are determined from here on. The next
    `env.reset()` gives what `env.reset(seed=seed)` gives, except in OGBench's mazes, whose reset
    applies its seed twice.

    Args:
        env: A `gymnasium.Env`.
        seed: A non-negative integer.
    """
    for layer in layers(env):
        # Some environments build their spaces by a reset, so the spaces come first.
        layer.action_space.seed(seed)
        layer.observation_space.seed(seed)
        # Those whose episodes come from a numpy stream, which gymnasium's seeding does not reach.
        if isinstance(vars(layer).get('random_state'), np.random.RandomState):
            layer.random_state.seed(seed)
    bare = env.unwrapped
    bare._np_random, bare._np_random_seed = seeding.np_random(seed)


@contextlib.contextmanager
def global_numpy_random(random_state):
    """Lends a random source to code that can only draw from numpy's global one.

    OGBench's mazes and scripted oracles call `np.random.uniform` and the like, and take no random
    source. Inside this context numpy's global stream continues `random_state`'s; afterwards
    `random_state` stands where that code left off, and the global stream is as it was. This is the
    only place of the library that touches it.

    Args:
        random_state: A `np.random.RandomState`; it is advanced.
    """
    outside = np.random.get_state()
    np.random.set_state(random_state.get_state())
    try:
        yield
    finally:
        random_state.set_state(np.random.get_state())
        np.random.set_state(outside)


class IsolatedNumpyRandom(gymnasium.Wrapper):
    """Gives an environment that draws from numpy's global stream a stream of its own.

    A seeded reset seeds that stream, and the action space, from which OGBench's environments
    sample within `reset`.

    Args:
        env: The environment to wrap.
        seed: Seed of the stream; None takes one from the operating system.
    """

    def __init__(self, env, seed=None):
        super().__init__(env)
        self.random_state = np.random.RandomState(seed)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.random_state.seed(seed)
            self.unwrapped.action_space.seed(seed)
        with global_numpy_random(self.random_state):
            return self.env.reset(seed=seed, options=options)

    def step(self, action):
        with global_numpy_random(self.random_state):
            return self.env.step(action)


class FlattenDict(gymnasium.ObservationWrapper):
    """Joins a dictionary's entries to one vector, in the order of their sorted names.

    As datasets with such entries are joined; gymnasium's `FlattenObservation` takes the order in
    which a space names them.
    """

    def __init__(self, env):
        super().__init__(env)
        self._space = _sorted_space(env.observation_space)
        self.observation_space = flatten_space(self._space)

    def observation(self, observation):
        return flatten(self._space, observation)


def _sorted_space(space):
    if isinstance(space, Dict):  # made of a plain dict it sorts its names
        return Dict({name: _sorted_space(entry) for name, entry in space.items()})
    return space


class SinglePrecision(gymnasium.ObservationWrapper):
    """Turns vectors of any numbers, and floats of any shape, into float32.

    Images of uint8 stay, and so do single integers.
    """

    def __init__(self, env):
        super().__init__(env)
        space = env.observation_space
        if isinstance(space, Box) and _becomes_single(space):
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
            self.observation_space = Box(low, high, dtype=np.float32)

    def observation(self, observation):
        if hasattr(observation, '__array__'):  # of JAX, for one
            observation = np.asarray(observation)
            if _becomes_single(observation):
                return observation.astype(np.float32)
        return observation


def _becomes_single(array):
    """Whether an array, or the arrays of a space, are floats or vectors, and not float32 yet."""
    return array.dtype != np.float32 and (array.dtype.kind == 'f' or len(array.shape) == 1)


class ClipAction(gymnasium.ActionWrapper):
    """Clips actions into the action space's bounds.

    Unlike gymnasium's wrapper of that name it leaves the action space bounded, because warm-up
    actions are sampled from it.
    """

    def action(self, action):
        return np.clip(action, self.action_space.low, self.action_space.high)


class EpisodeMonitor(gymnasium.Wrapper):
    """Writes the episode's statistics into the info of its last step.

    `info['episode']` holds `final_reward`, `return` (undiscounted sum of rewards), `length`
    (steps), `success` (1.0 if any step reported success; only where the environment reports it)
    and `normalized_return` (percent; only where the environment has `get_normalized_score`).
    `info['total']['timesteps']` counts the steps of all episodes. Source: InFOM's `EpisodeMonitor`
    and jaxrl5's `RecordEpisodeStatistics`, without their wall-clock duration: infos are the same
    from run to run.

    Args:
        env: The environment to wrap.
        filter_regexes: Info keys that match one of these are dropped.
    """

    def __init__(self, env, filter_regexes=()):
        super().__init__(env)
        self.total_timesteps = 0
        self._filters = tuple(filter_regexes)
        self._clear()

    def _clear(self):
        self._return = 0.0
        self._length = 0
        self._success = None

    def reset(self, *, seed=None, options=None):
        self._clear()
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = {
            key: value
            for key, value in info.items()
            if not any(re.match(pattern, key) for pattern in self._filters)
        }
        self._return += float(reward)
        self._length += 1
        self.total_timesteps += 1
        if 'success' in info:
            self._success = max(self._success or 0.0, float(info['success'] > 0.0))
        info['total'] = {'timesteps': self.total_timesteps}
        if terminated or truncated:
            info['episode'] = self._statistics(reward)
        return observation, reward, terminated, truncated, info

    def _statistics(self, final_reward):
        statistics = {
            'final_reward': float(final_reward),
            'return': self._return,
            'length': self._length,
        }
        if self._success is not None:
            statistics['success'] = self._success
        normalized_score = getattr(self.unwrapped, 'get_normalized_score', None)
        if normalized_score is not None:
            statistics['normalized_return'] = float(normalized_score(self._return)) * 100.0
        return statistics


class FrameStack(gymnasium.Wrapper):
    """Concatenates the last observations along the last axis, oldest first.

    A reset fills the stack with its observation; `info['goal']`, if there is one, is repeated to
    the same shape. Source: InFOM's `FrameStackWrapper`.

    Args:
        env: An environment whose observations are arrays (..., C).
        num_stack: Number of observations; the new ones have the shape (..., num_stack * C).

    Raises:
        ValueError: If the observations are no arrays, or `num_stack` is below one.
    """

    def __init__(self, env, num_stack):
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, Box):
            raise ValueError(f'frames can be stacked for array observations only, not for {space}')
        if num_stack < 1:
            raise ValueError(f'the number of stacked frames must be at least 1, not {num_stack}')
        self.frames = collections.deque(maxlen=num_stack)
        self.observation_space = Box(
            np.concatenate([space.low] * num_stack, axis=-1),
            np.concatenate([space.high] * num_stack, axis=-1),
            dtype=space.dtype,
        )

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self.frames.extend([observation] * self.frames.maxlen)
        if info.get('goal') is not None:
            info['goal'] = np.concatenate([info['goal']] * self.frames.maxlen, axis=-1)
        return np.concatenate(self.frames, axis=-1), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.frames.append(observation)
        return np.concatenate(self.frames, axis=-1), reward, terminated, truncated, info
