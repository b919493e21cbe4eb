"""Environments of the RRD originals: episodic rewards, and both domains under one call.

Counterpart of envs/ of Stilwell-Git/Randomized-Return-Decomposition @ bc80473.
"""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from purerl.envs import atari, naming
from purerl.envs.make import check_continuous, make

ENV_TYPES = ('ep_rews', 'normal')


class EpisodicRewards(gymnasium.Wrapper):
    """Pays nothing until an episode ends, and then the sum of its rewards.

    A reward that is not finite is paid at once: who refuses it can say at which step it came.
    Statistics of an `EpisodeMonitor` inside stay those of the true rewards.
    """

    def __init__(self, env):
        super().__init__(env)
        self._sum = 0.0

    def reset(self, *, seed=None, options=None):
        self._sum = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._sum += float(reward)
        if not np.isfinite(reward):
            return observation, float(reward), terminated, truncated, info
        if not (terminated or truncated):
            return observation, 0.0, terminated, truncated, info
        paid, self._sum = self._sum, 0.0
        return observation, paid, terminated, truncated, info


def make_episodic(env_name, seed=None, env_type='ep_rews', max_episode_steps=1000, **options):
    """Makes an environment of either domain.

    Args:
        env_name: An Atari game (`Assault`; see `purerl.envs.atari`), or a name that
            `purerl.envs.make.make` takes (`Ant-v5`).
        seed: As in `make`.
        env_type: `ep_rews` for an `EpisodicRewards` outermost, `normal` for rewards as they are.
        max_episode_steps: Time limit in steps, which replaces the environment's own.
        **options: Options of `atari.make_atari`, or of `make`.

    Returns:
        A `gymnasium.Env` whose last infos hold the true rewards' statistics.

    Raises:
        ValueError: If there is no such environment or type.
        ImportError: If its package is not installed.
    """
    if env_type not in ENV_TYPES:
        raise ValueError(f'env_type must be {" or ".join(ENV_TYPES)}, not {env_type!r}')
    if atari.is_atari(env_name):
        env = atari.make_atari(env_name, seed, max_episode_steps, **options)
    else:
        env = make(env_name, seed=seed, max_episode_steps=max_episode_steps, **options)
    return EpisodicRewards(env) if env_type == 'ep_rews' else env


def options_of(flags):
    """Picks the options of `make_episodic` from a run's flags.

    Args:
        flags: A mapping of the loop's settings.

    Returns:
        A dict.
    """
    options = {'max_episode_steps': flags['test_timesteps']}
    if atari.is_atari(flags['env_name']):
        names = ('sticky', 'noop', 'frames', 'frame_max', 'life_loss_ends')
        options |= {name: flags[name] for name in names}
    return options


def check_observations(env):
    """Refuses observations that the agents do not take: all but vectors and Atari's frames.

    Args:
        env: A `gymnasium.Env`.

    Raises:
        ValueError: If the observation space is neither a Box with one axis nor an Atari game's.
    """
    space = env.observation_space
    if isinstance(env.unwrapped, atari.AtariEnv):
        return
    if not (isinstance(space, Box) and len(space.shape) == 1):
        raise ValueError(
            f'{naming.name_of(env)} has the observation space {space}, but this agent needs a '
            'Box with one axis, as CartPole-v1 or HalfCheetah-v5 have; images are those of Atari '
            'games, by their names here: Assault, Pong'
        )


def check_actions(env, discrete):
    """Refuses an environment that an agent of one kind of actions cannot act in.

    Args:
        env: A `gymnasium.Env`.
        discrete: Whether the agent chooses among finitely many actions.

    Raises:
        ValueError: If the action space is of the other kind.
    """
    if not discrete:
        check_continuous(env)
    elif not (isinstance(env.action_space, Discrete) and env.action_space.start == 0):
        raise ValueError(
            f'{naming.name_of(env)} has the action space {env.action_space}, but this agent needs '
            'discrete actions 0, 1, ...: an Atari game, or CartPole-v1'
        )
