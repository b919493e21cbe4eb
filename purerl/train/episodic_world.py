"""One seed's side of training on whole episodes: environments, replay buffer, random streams."""

import numpy as np

from purerl.core import random
from purerl.data.episode_replay import EliteReplay, EpisodeReplay
from purerl.data.frame_replay import FrameReplay
from purerl.data.transition_replay import TransitionReplay
from purerl.train.config import Agent, RunError
from purerl.train.evaluation import evaluate, policy_of
from purerl.train.loop import EVAL_SEED_OFFSET, restore_snapshots, take_snapshots


class World:
    """Everything of one seed besides its agent: environments, replay buffer, random streams.

    Attributes:
        steps: steps taken in the environment.
        updates: updates of the agent.
        tested: step and return of the latest test.
    """

    def __init__(self, agent: Agent, settings, seed: int, env=None):
        """Make them for `episodic.Settings`; `env` replaces the environments that they ask for."""
        self.settings = settings
        self.env = env or settings.make_env(seed)
        self.test_env = env or settings.make_env(seed + EVAL_SEED_OFFSET)
        self.key = random.key(seed + EVAL_SEED_OFFSET)
        self.stream = np.random.RandomState(seed)
        self._needs, self._config = agent.needs, agent.config
        self._images = len(self.env.observation_space.shape) == 3
        self.buffer = self._make_buffer()
        self.observation, _ = self.env.reset()
        self.steps = self.updates = 0
        self.means: dict[str, list] = {}  # sums and counts of infos since the last cycle
        self.tested = (0, None)

    def _make_buffer(self):
        space, actions = self.env.observation_space, self.env.action_space
        observation = np.zeros(space.shape, space.dtype)
        example = {
            'observations': observation,
            'actions': np.zeros(actions.shape, actions.dtype),
            'rewards': np.float32(0),
            'masks': np.float32(0),
            'next_observations': observation,
        }
        if self._images:
            kind = FrameReplay
        elif 'subsequences' in self._needs:
            kind = EpisodeReplay
        elif 'returns' in self._needs:
            kind = EliteReplay
        else:
            kind = TransitionReplay
        return kind(example, self.settings.buffer_size, self.settings.test_timesteps)

    @property
    def ready(self) -> bool:
        """Whether there are transitions enough to learn from."""
        return self.buffer.stored >= self.settings.warmup and self.buffer.stored > 0

    @property
    def policy_is_due(self) -> bool:
        """Whether the coming update takes a batch for the policy of its own."""
        delay = self._config.get('policy_delay')
        return delay is not None and (self.updates + 1) % delay == 0

    def step(self, action) -> dict | None:
        """Act and remember; returns the episode's statistics at its end, else None.

        Raises:
            RunError: for a reward that is not finite, or an episode that does not end.
        """
        following, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if self._images:
            end = terminated or truncated
            if self.settings.env_type == 'normal':
                reward = np.clip(reward, -self.settings.rews_scale, self.settings.rews_scale)
        else:
            end = terminated and not truncated
        entry = {
            'observations': self.observation,
            'actions': action,
            'rewards': reward,
            'masks': np.float32(not end),
            'next_observations': following,
        }
        try:
            self.buffer.append(entry)
        except ValueError as error:
            raise RunError(
                f'{self.settings.env_name}, step {self.steps}: {error}. What was recorded before '
                'is kept'
            ) from error
        self.observation = following
        if not (terminated or truncated):
            return None
        self.buffer.commit()
        self.observation, _ = self.env.reset()
        return info['episode']

    def batch(self) -> dict:
        """Draw a batch of the kind that the agent needs."""
        size, config = self.settings.batch_size, self._config
        if 'subsequences' in self._needs:
            return self.buffer.sample_subsequences(
                size,
                self.stream,
                config.rrd_batch_size,
                config.rrd_sample_size,
                config.rrd_bias_correction,
            )
        if 'returns' in self._needs:
            return self.buffer.sample_returns(size, self.stream)
        return self.buffer.sample(size, self.stream)

    def count(self, info: dict) -> None:
        """Take one update's info into the cycle's means."""
        for key, value in info.items():
            total = self.means.setdefault(key, [0.0, 0])
            total[0] += float(value)
            total[1] += 1

    def take_means(self) -> dict:
        """Return the means since the last call."""
        means = {key: total / count for key, (total, count) in sorted(self.means.items())}
        self.means = {}
        return means

    def test(self, agent, step: int) -> tuple[dict, list]:
        """Run test episodes; returns statistics and no renders. Training's streams stay as is."""
        policy = policy_of(agent)
        if self._images:
            policy = _disturbed(policy, self.settings.test_eps, self.test_env.action_space.n)
        statistics, _, renders = evaluate(
            policy, self.test_env, self.settings.test_rollouts, random.fold_in(self.key, step)
        )
        self.tested = (step, statistics['episode.return'])
        return statistics, renders

    def state(self) -> dict:
        """Return everything that `set_state` needs to go on bit for bit."""
        return {
            'envs': take_snapshots(self._envs()),
            'buffer': self.buffer.state_dict(),
            'stream': self.stream.get_state(legacy=False),
            'observation': self.observation,
            'counts': (self.steps, self.updates),
            'means': self.means,
            'tested': self.tested,
        }

    def set_state(self, state: dict) -> None:
        restore_snapshots(self._envs(), state['envs'])
        self.buffer.load_state_dict(state['buffer'])
        self.stream.set_state(state['stream'])
        self.observation = state['observation']
        self.steps, self.updates = state['counts']
        self.means = {key: list(total) for key, total in state['means'].items()}
        self.tested = tuple(state['tested'])

    def _envs(self):
        return {'env': self.env, 'test_env': self.test_env}

    def close(self) -> None:
        self.env.close()
        self.test_env.close()


def _disturbed(policy, share, num_actions):
    """Replace a share of a policy's actions by random ones."""

    def disturbed(observation, key):
        key, uniform_key, action_key = random.split(key, 3)
        action = policy(observation, key)
        if random.uniform(uniform_key) <= share:
            return random.randint(action_key, (), 0, num_actions).numpy()
        return action

    return disturbed
