"""One seed's side of training on whole episodes: environments, replay buffer, random streams.

`num_envs` environments take their steps side by side, each in its lane: with a seed, an observation
and an unfinished episode of its own. Steps are counted in environments, lane by lane, and episodes
enter the replay buffer in the order in which they end.
"""

import contextlib

import numpy as np

from purerl.core import random
from purerl.data.episode_replay import EliteReplay, EpisodeReplay
from purerl.data.frame_replay import FrameReplay
from purerl.data.transition_replay import TransitionReplay
from purerl.envs.atari import is_atari
from purerl.train.config import Agent, RunError
from purerl.train.episodic_lanes import make_lanes
from purerl.train.evaluation import disturbed, evaluate, policy_of
from purerl.train.loop import evaluation_seed, restore_snapshots, take_snapshots

_PATIENCE = 5.0  # seconds for environments in other processes to finish a step when all is over


class World:
    """Everything of one seed besides its agent: environments, replay buffer, random streams.

    Attributes:
        envs: the environments to train in, one per lane.
        observations: what the agent sees next, (num_envs, ...).
        steps: steps taken in all of them.
        updates: updates of the agent.
        tested: step and return of the latest test.
    """

    def __init__(self, agent: Agent, settings, seed: int, env=None):
        """Make them for `episodic.Settings`; `env` replaces the environments that they ask for."""
        self.settings = settings
        self.test_env = env or settings.make_env(evaluation_seed(seed))
        self.key = random.key(evaluation_seed(seed))
        self.stream = np.random.RandomState(seed)
        self._needs, self._config = agent.needs, agent.config
        # Read once: ConfigDict looks for similar names when one is missing, for 0.2 ms.
        self._policy_delay = agent.config.get('policy_delay')
        self._atari = is_atari(settings.env_name)
        self.buffer = self._make_buffer()
        make_env = settings.make_env if env is None else lambda seed: env
        self.envs = make_lanes(make_env, seed, settings.num_envs, settings.vectorization_mode)
        self.observations, _ = self.envs.reset()
        self.steps = self.updates = 0
        self.means: dict[str, list] = {}  # sums and counts of infos since the last cycle
        self.tested = (0, None)

    def _make_buffer(self):
        space, actions = self.test_env.observation_space, self.test_env.action_space
        observation = np.zeros(space.shape, space.dtype)
        example = {
            'observations': observation,
            'actions': np.zeros(actions.shape, actions.dtype),
            'rewards': np.float32(0),
            'masks': np.float32(0),
            'next_observations': observation,
        }
        if self._atari:
            kind = FrameReplay
        elif 'subsequences' in self._needs:
            kind = EpisodeReplay
        elif 'returns' in self._needs:
            kind = EliteReplay
        else:
            kind = TransitionReplay
        settings = self.settings
        return kind(
            example,
            settings.buffer_size,
            settings.test_timesteps,
            settings.num_envs,
            settings.replay_device,
        )

    @property
    def observation(self):
        """What the agent is to act on: all lanes' observations, or the only lane's."""
        return self.observations if self.settings.num_envs > 1 else self.observations[0]

    @property
    def ready(self) -> bool:
        """Whether there are transitions enough to learn from."""
        return self.buffer.stored >= self.settings.warmup and self.buffer.stored > 0

    @property
    def policy_is_due(self) -> bool:
        """Whether the coming update takes a batch for the policy of its own."""
        delay = self._policy_delay
        return delay is not None and (self.updates + 1) % delay == 0

    def step(self, actions) -> list[tuple[int, dict]]:
        """Act in all lanes and remember.

        Args:
            actions: one per lane, (num_envs, ...), or that of the only lane.

        Returns:
            The episodes that have ended, by lane: the number of steps by then, and statistics.

        Raises:
            RunError: for a reward that is not finite, or an episode that does not end.
        """
        actions = np.reshape(actions, self.envs.action_space.shape)
        with self._watching():
            following, rewards, terminations, truncations, infos = self.envs.step(actions)
        masks = self._masks(terminations, truncations)
        ended, episodes = terminations | truncations, []
        if self._atari and self.settings.env_type == 'normal':
            rewards = np.clip(rewards, -self.settings.rews_scale, self.settings.rews_scale)
        for lane in range(len(actions)):
            self.steps += 1
            entry = {
                'observations': self.observations[lane],
                'actions': actions[lane],
                'rewards': rewards[lane],
                'masks': masks[lane],
                'next_observations': following[lane],
            }
            self._remember(entry, lane)
            if ended[lane]:
                self.buffer.commit(lane)
                episodes.append((self.steps, _of_lane(infos['episode'], lane)))
        self.observations = following
        if ended.any():
            with self._watching():
                self.observations, _ = self.envs.reset(options={'reset_mask': ended})
        return episodes

    @contextlib.contextmanager
    def _watching(self):
        """Say so if an environment's process has ended."""
        try:
            yield
        except (EOFError, ConnectionError) as error:
            raise RunError(
                f'{self.settings.env_name}, step {self.steps}: the process of one of the '
                f'{self.settings.num_envs} environments has ended, perhaps for want of memory. '
                'The same command with --resume goes on from the last checkpoint'
            ) from error

    def _masks(self, terminations, truncations):
        ends = terminations | truncations if self._atari else terminations & ~truncations
        return np.float32(~ends)

    def _remember(self, entry, lane):
        try:
            self.buffer.append(entry, lane)
        except ValueError as error:
            raise RunError(
                f'{self.settings.env_name}, step {self.steps}: {error}. What was recorded before '
                'is kept'
            ) from error

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
        if self._atari:
            policy = disturbed(policy, self.settings.test_eps, self.test_env.action_space.n)
        statistics, _, renders = evaluate(
            policy, self.test_env, self.settings.test_rollouts, random.fold_in(self.key, step)
        )
        self.tested = (step, statistics['episode.return'])
        return statistics, renders

    def state(self) -> dict:
        """Return everything that `set_state` needs to go on bit for bit."""
        with self._watching():
            lanes = list(self.envs.call('snapshot'))
        return {
            'lanes': lanes,
            'test_env': take_snapshots({'test_env': self.test_env}),
            'buffer': self.buffer.state_dict(),
            'stream': self.stream.get_state(legacy=False),
            'observations': self.observations,
            'counts': (self.steps, self.updates),
            'means': self.means,
            'tested': self.tested,
        }

    def set_state(self, state: dict) -> None:
        restore_snapshots({'test_env': self.test_env}, state['test_env'])
        self.envs.call('restore', state['lanes'])
        self.buffer.load_state_dict(state['buffer'])
        self.stream.set_state(state['stream'])
        self.observations = state['observations']
        self.steps, self.updates = state['counts']
        self.means = {key: list(total) for key, total in state['means'].items()}
        self.tested = tuple(state['tested'])

    def close(self) -> None:
        try:
            self.envs.close(timeout=_PATIENCE)
        except (EOFError, ConnectionError):  # one of the processes has been killed: end the others
            for process in self.envs.processes:
                process.terminate()
                process.join()
        self.test_env.close()


def _of_lane(statistics, lane):
    """Take a lane's statistics out of the arrays in which gymnasium collects them."""
    return {
        key: values[lane].item()
        for key, values in statistics.items()
        if not key.startswith('_') and statistics[f'_{key}'][lane]
    }
