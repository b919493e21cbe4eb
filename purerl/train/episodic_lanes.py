"""Several environments of one seed, stepped as one.

They are gymnasium's vector environments, whose episodes the caller resets
(`AutoresetMode.DISABLED`); what is added is their snapshots, in this process or in others.
"""

import functools
import os
import signal

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from purerl.train.loop import restore_snapshots, take_snapshots

MODES = ('sync', 'async')


class Lane(gymnasium.Env):
    """One of several environments: infos hold an episode's statistics at its end, nothing else."""

    def __init__(self, env, number: int):
        """Take the lane of a number; `env` needs an `EpisodeMonitor`."""
        self.env, self._number = env, number
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata, self.render_mode = env.metadata, env.render_mode

    def reset(self, *, seed=None, options=None):
        """Reset without a seed: environments are seeded when they are made."""
        observation, _ = self.env.reset()
        return observation, {}

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        ended = terminated or truncated
        infos = {'episode': info['episode']} if ended else {}
        return observation, reward, terminated, truncated, infos

    def snapshot(self) -> dict | None:
        """Return the environment's state; None where there can be none."""
        return take_snapshots({'env': self.env})

    def restore(self, states) -> None:
        """Go on from this lane's one of all lanes' snapshots.

        Raises:
            RunError: if there is none.
        """
        restore_snapshots({'env': self.env}, states[self._number])

    def close(self):
        self.env.close()


def lane_seed(seed: int, number: int) -> int:
    """Return the seed of a lane: the first one has the run's own."""
    return seed if number == 0 else int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def make_lanes(make_env, seed: int, num: int, mode: str = 'sync'):
    """Make environments side by side.

    Args:
        make_env: `make_env(seed) -> gymnasium.Env`.
        seed: the run's, from which theirs follow (`lane_seed`).
        num: how many.
        mode: `sync` has them take their steps one after the other, `async` at the same time, each
            in a process of its own. Both give the same.

    Returns:
        A `gymnasium.vector.VectorEnv` of `Lane`s.
    """
    makers = [functools.partial(_make_lane, make_env, seed, i, os.getpid()) for i in range(num)]
    if mode == 'sync':
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    # A copy of this process could not be trusted: it has threads, torch's among them.
    return AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED, context='spawn')


def _make_lane(make_env, seed, number, owner):
    if os.getpid() != owner:
        # A signal to all processes of a run must leave it the environments that it is to save.
        for ignored in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)
    return Lane(make_env(lane_seed(seed, number)), number)
