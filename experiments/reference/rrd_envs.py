"""Replays recordings of the RRD originals' environments."""

import itertools

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import RescaleAction, TimeLimit

from experiments.reference.case import Case
from experiments.reference.compare import Report
from purerl.envs import wrappers
from purerl.envs.atari import AtariEnv
from purerl.envs.episodic import EpisodicRewards

HEIGHT = 210  # of a game's screen


class ScriptedEnv(gymnasium.Env):
    """Plays recorded observations, rewards and ends back; notes the actions that it is given."""

    def __init__(self, first, following, rewards, ends, high):
        """Arrays over all steps; `first` are the observations of the episodes' starts, in order."""
        size, num_actions = first.shape[-1], len(high)
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = Box(-high, high, dtype=np.float32)
        assert self.action_space.shape == (num_actions,)
        self._first, self._steps = iter(first), zip(following, rewards, ends, strict=True)
        self.actions = []

    def reset(self, *, seed=None, options=None):
        return next(self._first), {}

    def step(self, action):
        self.actions.append(np.array(action))
        observation, reward, end = next(self._steps)
        return observation, float(reward), bool(end), False, {}


def dressed(env, limit, episodic):
    """Add what the library's environments of the first domain have around them."""
    env = RescaleAction(TimeLimit(env, limit), np.float32(-1.0), np.float32(1.0))
    env = wrappers.EpisodeMonitor(wrappers.ClipAction(env))
    return EpisodicRewards(env) if episodic else env


def _monitor(env):
    return next(x for x in wrappers.layers(env) if isinstance(x, wrappers.EpisodeMonitor))


def replay_episodic(case: Case, report: Report) -> None:
    """Replay both kinds of rewards in a scripted environment."""
    high = case.take('action_scale').numpy()
    for kind in ('ep_rews', 'normal'):
        report.stage = kind
        names = ('action', 'obs', 'inner_env_reward', 'inner_env_done', 'obs_after_reset')
        action, following, rewards, ends, first = (
            case.take(f'{kind}/{name}').numpy() for name in names
        )
        inner = ScriptedEnv(first, following, rewards, ends, high)
        env = dressed(inner, case.config['test_timesteps'], kind == 'ep_rews')
        results = {'reward': [], 'done': [], 'info_Steps': [], 'info_Rewards': []}
        env.reset()
        for one in action:
            _, reward, terminated, truncated, _ = env.step(one)
            results['reward'].append(float(reward))
            results['done'].append(int(terminated or truncated))
            results['info_Steps'].append(_monitor(env)._length)
            results['info_Rewards'].append(_monitor(env)._return)
            if terminated or truncated:
                env.reset()
        for name, values in results.items():
            report.compare('env', f'{kind}/{name}', np.array(values))
        report.compare('env', f'{kind}/inner_env_action', np.array(inner.actions))


class ScriptedGame:
    """Plays recorded screens and rewards back: one screen per reset and per step."""

    lives = 0

    def __init__(self, screens, rewards, lengths, num_actions):
        self.num_actions = num_actions
        self._screens, self._rewards = screens, iter(rewards)
        self._lengths = itertools.cycle(lengths)
        self.shown, self.actions = -1, []
        self._left = 0

    def reset(self):
        self.shown += 1
        self._left = next(self._lengths)

    def step(self, action):
        self.shown += 1
        self.actions.append(action)
        self._left -= 1
        return next(self._rewards), self._left <= 0

    def screen(self):
        base = self._screens[self.shown]
        scale = HEIGHT // len(base)
        return np.kron(base, np.ones((scale, scale, 1), np.uint8))


def replay_atari(case: Case, report: Report) -> None:
    """Replay the Atari preprocessing on scripted screens."""
    names = ('inner_frames_base', 'inner_rewards', 'steps/action')
    screens, rewards, actions = (case.take(name).numpy() for name in names)
    game = ScriptedGame(screens, rewards, case.config['lengths'], int(actions.max()) + 1)
    limit, noop, frames = (case.config[key] for key in ('test_timesteps', 'noop', 'frames'))
    env = EpisodicRewards(wrappers.EpisodeMonitor(AtariEnv(game, limit, noop, frames)))
    results = {name: [] for name in ('reward', 'done', 'info_Steps', 'info_Rewards')}
    results |= {'inner_frame_index': [], 'frame': []}
    resets = 0

    def reset():
        nonlocal resets
        before = len(game.actions)
        observation, _ = env.reset()
        report.compare('env', f'reset{resets}/obs', observation)
        taken = np.array(game.actions[before:])
        report.compare('env', f'reset{resets}/inner_actions', taken)
        if resets == 0:
            report.compare('env', 'reset0/inner_frames_seen', np.array(game.shown + 1))
        resets += 1

    reset()
    for i, action in enumerate(actions):
        observation, reward, terminated, truncated, _ = env.step(action)
        if case.has(f'obs_at/{i}'):
            report.compare('env', f'obs_at/{i}', observation)
        results['reward'].append(float(reward))
        results['done'].append(int(terminated or truncated))
        results['info_Steps'].append(_monitor(env)._length)
        results['info_Rewards'].append(_monitor(env)._return)
        results['inner_frame_index'].append(game.shown)
        results['frame'].append(observation[..., -1])
        if terminated or truncated:
            reset()
    for name, values in results.items():
        report.compare('env', f'steps/{name}', np.array(values))
    report.compare('env', 'inner_actions', np.array(game.actions))


SUBJECTS = {'env_ep_rews': replay_episodic, 'env_atari': replay_atari}
