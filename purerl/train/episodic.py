"""Training in cycles of acting and learning, on whole episodes.

Counterpart of train.py, learner/ and test.py of Stilwell-Git/Randomized-Return-Decomposition @
bc80473, in whose order everything happens: `timesteps` steps, then `train_batches` updates; every
`iterations` of that make a cycle, which ends with `test_rollouts` test episodes; `cycles` make an
epoch. An episode's transitions enter the replay buffer when it has ended, and learning begins with
the first iteration that ends with `warmup` of them. A batch is drawn for the observations'
statistics in each iteration, also where there are none.

In an environment with images, an episode that the time limit ends counts as terminated; elsewhere
it does not, even if it would have ended in that step anyway (both as in the original).

Deviations from the original: batches come from numpy's MT19937 of `seed`, noise from the agent's
key; test episodes have random numbers of their own.
"""

import contextlib
import dataclasses

import numpy as np
import torch

from purerl.core import random, trees
from purerl.data.episode_replay import EliteReplay, EpisodeReplay
from purerl.data.frame_replay import FrameReplay
from purerl.data.transition_replay import TransitionReplay
from purerl.envs.episodic import ENV_TYPES, check_actions, make_episodic, options_of
from purerl.train.config import Agent, RunError, check_settings, setting
from purerl.train.evaluation import evaluate, policy_of, to_numpy
from purerl.train.logging import scalars
from purerl.train.loop import (
    EVAL_SEED_OFFSET,
    RANDOM_SEED_OFFSET,
    conclude,
    is_resumable,
    log_evaluations,
    log_training,
    restore_snapshots,
    take_snapshots,
)
from purerl.train.run import Run, RunSettings, create_agents
from purerl.train.seeds import over_seeds, stack, unstack

_METHODS = ('update', 'update_normalizer', 'sample_actions', 'warmup_actions', 'eval_actions')


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """The original's flags, and those of every run. Some agents have other defaults."""

    env_name: str = setting('Ant-v5', 'Environment: a gymnasium id, or an Atari game (Assault).')
    env_type: str = setting(
        'ep_rews', 'Rewards: all at the end of an episode, or as they are.', choices=ENV_TYPES
    )
    epochs: int = setting(3, 'Epochs of training; may be raised to go on.', minimum=1, free=True)
    cycles: int = setting(100, 'Cycles in an epoch.', minimum=1)
    iterations: int = setting(100, 'Iterations in a cycle.', minimum=1)
    timesteps: int = setting(100, 'Steps in the environment per iteration.', minimum=1)
    train_batches: int = setting(100, 'Updates per iteration.', minimum=1)
    test_rollouts: int = setting(10, 'Test episodes at the end of a cycle.', minimum=1)
    test_timesteps: int = setting(1000, 'Time limit of all episodes, in steps.', minimum=1)
    test_eps: float = setting(
        0.001, 'Share of random actions in test episodes of Atari games.', minimum=0
    )
    buffer_size: int = setting(1_000_000, 'Room for so many transitions.', minimum=1)
    batch_size: int = setting(256, 'Transitions in a batch.', minimum=1)
    warmup: int = setting(10_000, 'Transitions before the first update.', minimum=0)
    rews_scale: float = setting(
        1.0, "Bound of Atari games' rewards, where env_type is normal.", minimum=0
    )
    sticky: bool = setting(False, 'Atari: whether the emulator repeats actions at random.')
    noop: int = setting(30, 'Atari: steps of nothing at the start of an episode.', minimum=0)
    frames: int = setting(4, 'Atari: frames in an observation.', minimum=1)
    frame_max: bool = setting(False, 'Atari: take the maximum of two frames at a time.')
    life_loss_ends: bool = setting(False, 'Atari: let an episode end with each life.')
    save_cycles: int = setting(
        10,
        'Write a checkpoint every so many cycles (0: never), and at the end.',
        minimum=0,
        free=True,
    )

    @property
    def total_iterations(self) -> int:
        return self.epochs * self.cycles * self.iterations

    @property
    def env_options(self) -> dict:
        """Options of `purerl.envs.episodic.make_episodic`."""
        return options_of(dataclasses.asdict(self))

    def make_env(self, seed=None):
        """Make the environment.

        Raises:
            RunError: if there is none, or its package is missing.
        """
        try:
            return make_episodic(self.env_name, seed, self.env_type, **self.env_options)
        except (ValueError, ImportError) as error:
            raise RunError(str(error)) from error


class World:
    """Everything of one seed besides its agent: environments, replay buffer, random streams.

    Attributes:
        steps: steps taken in the environment.
        updates: updates of the agent.
        tested: step and return of the latest test.
    """

    def __init__(self, agent: Agent, settings: Settings, seed: int, env=None, buffer=None):
        """Make them; `env` and `buffer` replace those that the settings ask for."""
        self.settings = settings
        self.env = env or settings.make_env(seed)
        self.test_env = env or settings.make_env(seed + EVAL_SEED_OFFSET)
        self.key = random.key(seed + EVAL_SEED_OFFSET)
        self.stream = np.random.RandomState(seed)
        self._needs, self._config = agent.needs, agent.config
        self._images = len(self.env.observation_space.shape) == 3
        self.buffer = buffer or self._make_buffer()
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


# --- The loop ------------------------------------------------------------------------------------


def train(agent: Agent, settings: Settings) -> dict:
    """Train an agent.

    Args:
        agent: the agent's file and config.
        settings: the flags.

    Returns:
        What `summary.json` holds: the last step and, per seed, the last test's return and a
        random policy's.

    Raises:
        RunError: if the agent, the environment, the settings or the folder do not fit, before
            anything is compiled or written; later, for rewards that are not finite.
        SystemExit: after SIGINT or SIGTERM, when a checkpoint has been written.
    """
    check_settings(settings)
    _check_agent(agent, settings)
    run = Run('rrd', agent, settings, settings.env_name)
    with contextlib.closing(settings.make_env()) as env:
        _check_environment(agent, env)
        is_resumable(env)
        example = _example(env)
    worlds = [World(agent, settings, seed) for seed in settings.seeds]
    try:
        agents = create_agents(agent, settings.seeds, example)
        updates = settings.total_iterations * settings.train_batches
        run.begin(updates, settings.total_iterations * settings.timesteps, example)
        with run:
            return _loop(run, settings, worlds, agents)
    finally:
        for world in worlds:
            world.close()


def _check_agent(agent, settings):
    missing = [name for name in _METHODS if not hasattr(agent.agent_class, name)]
    if missing or 'whole_episodes' not in agent.needs:
        raise RunError(
            f'{agent.path} does not train on whole episodes: experiments.online or '
            'experiments.offline may be its launcher'
        )
    if 'subsequences' in agent.needs and agent.config.rrd_sample_size > settings.test_timesteps:
        raise RunError(
            f'rrd_sample_size={agent.config.rrd_sample_size} is longer than any episode '
            f'(test_timesteps={settings.test_timesteps})'
        )


def _check_environment(agent, env):
    try:
        check_actions(env, agent.agent_class.acts_discretely(agent.config))
    except ValueError as error:
        raise RunError(f'{agent.path}: {error}') from error


def _example(env):
    """Zeros of observations, and of actions; one for each of finitely many."""
    space = env.observation_space
    actions = env.action_space.shape or (int(env.action_space.n),)
    return {
        'observations': torch.from_numpy(np.zeros((1, *space.shape), space.dtype)),
        'actions': torch.zeros(1, *actions),
    }


class Learner:
    """The agents of all seeds, and their programs."""

    def __init__(self, agent, num: int):
        self.agent = agent
        self._num = num
        self._act = over_seeds(lambda agent, x: agent.sample_actions(x), num)
        self._act_first = over_seeds(lambda agent, x: agent.warmup_actions(x), num)
        self._count = over_seeds(lambda agent, batch: agent.update_normalizer(batch), num)
        self._update = over_seeds(lambda agent, batch: agent.update(batch), num)
        self._update_both = over_seeds(lambda agent, *batches: agent.update(*batches), num)

    def act(self, worlds) -> list:
        """Choose one action per seed."""
        observations = stack([world.observation for world in worlds])
        first = [world.buffer.stored < world.settings.warmup for world in worlds]
        programs = {True: self._act_first, False: self._act}
        results = {key: programs[key](self.agent, observations) for key in set(first)}
        actions, self.agent = self._select(first, results)
        return unstack(to_numpy(actions), self._num)

    def learn(self, worlds) -> None:
        """Take one iteration's updates, for the seeds that are ready."""
        ready = [world.ready for world in worlds]
        if not any(ready):
            return
        batches = self._batches(worlds, ready)
        self._keep(ready, self._count(self.agent, batches))
        for _ in range(worlds[0].settings.train_batches):
            self._learn_once(worlds, ready)

    def _learn_once(self, worlds, ready):
        due = [r and world.policy_is_due for r, world in zip(ready, worlds, strict=True)]
        batch = self._batches(worlds, ready)
        results = {}
        if any(due):
            actor_batch = self._batches(worlds, due)
            results[True] = self._update_both(self.agent, batch, actor_batch)
        if due != ready:
            results[False] = self._update(self.agent, batch)
        agents = {key: agent for key, (agent, _) in results.items()}
        infos = {key: unstack(info, self._num) for key, (_, info) in results.items()}
        self._keep(ready, self._select(due, agents))
        for i, world in enumerate(worlds):
            if ready[i]:
                world.updates += 1
                world.count(infos[due[i]][i])

    def _batches(self, worlds, drawing):
        """Draw for some seeds; the others get a copy, whose results are not kept."""
        drawn = [w.batch() if draws else None for w, draws in zip(worlds, drawing, strict=True)]
        some = next(batch for batch in drawn if batch is not None)
        return stack([some if batch is None else batch for batch in drawn])

    def _keep(self, mask, agent):
        self.agent = self._select(mask, {True: agent, False: self.agent})

    def _select(self, mask, results):
        """Take each seed's result from the tree of its mask's value."""
        if len(results) == 1 or len(set(mask)) == 1:
            return results[mask[0]] if mask[0] in results else next(iter(results.values()))
        choice = torch.tensor(mask)

        def choose(yes, no):
            return torch.where(choice.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)

        return trees.map(choose, results[True], results[False])


def run_iteration(learner, worlds, on_episode=None) -> None:
    """Act for `timesteps` steps, then learn.

    Args:
        learner: has `act(worlds) -> actions` and `learn(worlds)`.
        worlds: one per seed.
        on_episode: called with a seed's number and an episode's statistics at its end.
    """
    for _ in range(worlds[0].settings.timesteps):
        actions = learner.act(worlds)
        for i, world in enumerate(worlds):
            episode = world.step(actions[i])
            if episode is not None and on_episode is not None:
                on_episode(i, episode)
    learner.learn(worlds)


def _loop(run, settings, worlds, agents):
    logger = run.logger
    agent, state = run.restore(stack(agents))
    if state is not None:
        for world, world_state in zip(worlds, state, strict=True):
            world.set_state(world_state)
    learner = Learner(agent, len(worlds))

    def log_episode(i, episode):
        logger.log_seed(i, 'episodes', worlds[i].steps, scalars(episode, 'training/episode.'))
        logger.show(**{'return': episode['return']})

    step = run.start
    for iteration in range(run.start // settings.timesteps + 1, settings.total_iterations + 1):
        run_iteration(learner, worlds, log_episode)
        step = iteration * settings.timesteps
        logger.advance(settings.timesteps)
        cycle, rest = divmod(iteration, settings.iterations)
        if rest == 0:
            _end_cycle(run, step, worlds, learner.agent)
        due = rest == 0 and settings.save_cycles and cycle % settings.save_cycles == 0
        if due or iteration == settings.total_iterations or run.stop_requested:
            run.save(step, learner.agent, [world.state() for world in worlds])
        if run.stop_requested:
            run.stop(step)
    return _finish(run, settings, step, worlds, learner.agent)


def _end_cycle(run, step, worlds, agent):
    rows = [scalars(world.take_means(), 'training/') for world in worlds]
    if all(rows):
        log_training(run.logger, 'train', step, rows)
    log_evaluations(run, 'eval', step, _tests(worlds, agent, step))


def _tests(worlds, agent, step):
    agents = unstack(agent, len(worlds))
    return [lambda w=w, a=a: w.test(a, step) for w, a in zip(worlds, agents, strict=True)]


def _finish(run, settings, step, worlds, agent):
    for world, test in zip(worlds, _tests(worlds, agent, step), strict=True):
        if world.tested[0] != step:
            test()
    baselines = [_random_return(settings, seed) for seed in settings.seeds]
    return conclude(run, step, [world.tested[1] for world in worlds], baselines)


def _random_return(settings, seed):
    """Mean return of uniformly random actions."""
    with contextlib.closing(settings.make_env(seed + RANDOM_SEED_OFFSET)) as env:
        statistics, _, _ = evaluate(
            lambda observation, key: env.action_space.sample(),
            env,
            settings.test_rollouts,
            random.key(seed),
        )
    return statistics['episode.return']
