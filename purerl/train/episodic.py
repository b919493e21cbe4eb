"""Training in cycles of acting and learning, on whole episodes.

Counterpart of train.py, learner/ and test.py of Stilwell-Git/Randomized-Return-Decomposition @
bc80473, in whose order everything happens: `timesteps` steps, then `train_batches` updates; every
`iterations` of that make a cycle, which ends with `test_rollouts` test episodes; `cycles` make an
epoch. An episode's transitions enter the replay buffer when it has ended, and learning begins with
the first iteration that ends with `warmup` of them. A batch is drawn for the observations'
statistics in each iteration, also where there are none.

In an Atari game, an episode that the time limit ends counts as terminated; elsewhere
it does not, even if it would have ended in that step anyway (both as in the original).

`num_envs` environments can take these steps side by side, with one call of the agent for a step of
each; steps are those of all of them, so that nothing else of the order changes.

Deviations from the original: batches come from numpy's MT19937 of `seed`, noise from the agent's
key; test episodes have random numbers of their own.
"""

import contextlib
import dataclasses
import sys

import numpy as np
import torch

from purerl.envs.episodic import (
    ENV_TYPES,
    check_actions,
    check_observations,
    make_episodic,
    options_of,
)
from purerl.train.config import Agent, RunError, check_settings, setting
from purerl.train.episodic_lanes import MODES
from purerl.train.episodic_learner import Learner, run_iteration
from purerl.train.episodic_world import World
from purerl.train.logging import scalars
from purerl.train.loop import (
    conclude,
    due,
    is_resumable,
    log_evaluations,
    log_training,
    random_return,
    warn_of_no_updates,
)
from purerl.train.run import ReplaySettings, Run, create_agents
from purerl.train.seeds import stack, unstack

_METHODS = ('update', 'update_normalizer', 'sample_actions', 'warmup_actions', 'eval_actions')


@dataclasses.dataclass(frozen=True)
class Settings(ReplaySettings):
    """The original's flags, and those of every run. Some agents have other defaults."""

    env_name: str = setting('Ant-v5', 'Environment: a gymnasium id, or an Atari game (Assault).')
    env_type: str = setting(
        'ep_rews', 'Rewards: all at the end of an episode, or as they are.', choices=ENV_TYPES
    )
    epochs: int = setting(3, 'Epochs of training; may be raised to go on.', minimum=1, free=True)
    cycles: int = setting(100, 'Cycles in an epoch.', minimum=1)
    iterations: int = setting(100, 'Iterations in a cycle.', minimum=1)
    timesteps: int = setting(100, 'Steps in the environments per iteration.', minimum=1)
    num_envs: int = setting(
        1, 'Environments that are stepped side by side; a divisor of timesteps.', minimum=1
    )
    vectorization_mode: str = setting(
        'sync',
        'sync: they take their steps one after the other; async: at the same time, each in a '
        'process of its own.',
        choices=MODES,
        free=True,
    )
    train_batches: int = setting(100, 'Updates per iteration.', minimum=1)
    test_rollouts: int = setting(10, 'Test episodes at the end of a cycle.', minimum=1)
    test_timesteps: int = setting(1000, 'Time limit of all episodes, in steps.', minimum=1)
    test_eps: float = setting(
        0.001, 'Share of random actions in test episodes of Atari games.', minimum=0, maximum=1
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
        except (ValueError, TypeError, ImportError) as error:
            raise RunError(str(error)) from error


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
    with contextlib.ExitStack() as opened:
        worlds = [
            opened.enter_context(contextlib.closing(World(agent, settings, seed)))
            for seed in settings.seeds
        ]
        agents = create_agents(agent, settings.seeds, example, settings.device)
        updates = settings.total_iterations * settings.train_batches
        steps = settings.total_iterations * settings.timesteps
        warn_of_no_updates('warmup', settings.warmup, steps)
        run.begin(updates, steps, example)
        with run:
            return _loop(run, settings, worlds, agents)


def _check_agent(agent, settings):
    missing = [name for name in _METHODS if not hasattr(agent.agent_class, name)]
    if missing or 'whole_episodes' not in agent.needs:
        raise RunError(
            f'{agent.path} does not train on whole episodes: experiments.online or '
            'experiments.offline may be its launcher'
        )
    if settings.timesteps % settings.num_envs:
        raise RunError(
            f'timesteps={settings.timesteps} is no multiple of num_envs={settings.num_envs}: the '
            'environments cannot share an iteration evenly'
        )
    if 'subsequences' in agent.needs and agent.config.rrd_sample_size > settings.test_timesteps:
        raise RunError(
            f'rrd_sample_size={agent.config.rrd_sample_size} is longer than any episode '
            f'(test_timesteps={settings.test_timesteps})'
        )


def _check_environment(agent, env):
    try:
        check_actions(env, agent.agent_class.acts_discretely(agent.config))
        check_observations(env)
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


def _loop(run, settings, worlds, agents):
    logger = run.logger
    agent, state = run.restore(stack(agents))
    if state is not None:
        for world, world_state in zip(worlds, state, strict=True):
            world.set_state(world_state)
    learner = Learner(agent, len(worlds))

    def log_episode(i, steps, episode):
        logger.log_seed(i, 'episodes', steps, scalars(episode, 'training/episode.'))
        logger.show(**{'return': episode['return']})

    step = run.start
    for iteration in range(run.start // settings.timesteps + 1, settings.total_iterations + 1):
        run_iteration(learner, worlds, log_episode)
        step = iteration * settings.timesteps
        logger.advance(settings.timesteps)
        cycle, rest = divmod(iteration, settings.iterations)
        if rest == 0:
            _end_cycle(run, step, worlds, learner.agent)
        saves = rest == 0 and due(cycle, settings.save_cycles)
        if saves or iteration == settings.total_iterations or run.stop_requested:
            run.save(step, learner.agent, [world.state() for world in worlds])
        if run.stop_requested:
            run.stop(step)
    return _finish(run, settings, step, worlds, learner.agent)


def _end_cycle(run, step, worlds, agent):
    rows = [scalars(world.take_means(), 'training/') for world in worlds]
    if any(rows):  # seeds get ready to learn apart
        log_training(run.logger, 'train', step, rows)
    log_evaluations(run, 'eval', step, _tests(worlds, agent, step))


def _tests(worlds, agent, step):
    agents = unstack(agent, len(worlds))
    return [lambda w=w, a=a: w.test(a, step) for w, a in zip(worlds, agents, strict=True)]


def _finish(run, settings, step, worlds, agent):
    if not any(world.updates for world in worlds):
        print(
            f'warning: nothing was learnt: of the {step} steps {worlds[0].buffer.stored} are of '
            f'episodes that have ended, and warmup={settings.warmup}',
            file=sys.stderr,
        )
    for world, test in zip(worlds, _tests(worlds, agent, step), strict=True):
        if world.tested[0] != step:
            test()
    baselines = [
        random_return(settings.make_env, settings.test_rollouts, seed) for seed in settings.seeds
    ]
    return conclude(run, step, [world.tested[1] for world in worlds], baselines)
