"""Training while acting in an environment.

Counterpart of ``examples/states/train_online.py`` and ``examples/pixels/train_online_pixels.py`` of
philippe-eecs/IDQL @ 7582571, stream for stream: environment and action space are
seeded with `seed`, batches come from numpy's PCG64 of `seed`, the evaluation environment is seeded
with `seed + 42`. Steps count steps of the environment; where actions are repeated, intervals count
actions.

Deviations from the original:
- Exploration before `start_training` is seeded. (The original's rescaled action space is not.)
- Episodes go into `episodes.csv`, losses into `train.csv`, evaluations into `eval.csv`.
- An interval of 0 means never.
- Images: batches are drawn when they are needed, not two steps ahead.
"""

import contextlib
import dataclasses
import functools
import inspect

import gymnasium
import numpy as np
import torch

from purerl.core import random
from purerl.data.memory_efficient import MemoryEfficientReplayBuffer
from purerl.data.replay import ReplayBuffer, transition
from purerl.envs.make import make
from purerl.envs.pixels import image_keys, options_of
from purerl.train.config import Agent, RunError, check_settings, seed_setting, setting
from purerl.train.evaluation import evaluate, policy_of, to_numpy
from purerl.train.logging import scalars
from purerl.train.loop import (
    check_environment,
    check_step,
    conclude,
    due,
    evaluation_seed,
    is_resumable,
    log_evaluations,
    log_training,
    random_return,
    restore_snapshots,
    take_snapshots,
    warn_of_no_updates,
)
from purerl.train.run import ReplaySettings, Run, create_agents
from purerl.train.seeds import over_seeds, stack, unstack

_METHODS = ('update', 'sample_actions', 'eval_actions')


@dataclasses.dataclass(frozen=True)
class Settings(ReplaySettings):
    """The original's flags, and those of every run."""

    env_name: str = setting('HalfCheetah-v5', 'Environment.')
    seed: int = seed_setting(42, 'Random seed; it determines the whole run.')
    eval_episodes: int = setting(10, 'Episodes of an evaluation.', minimum=1)
    log_interval: int = setting(1000, 'Log losses every so many steps.', minimum=0, free=True)
    eval_interval: int = setting(5000, 'Evaluate every so many steps.', minimum=0, free=True)
    save_interval: int = setting(
        25_000, 'Write a checkpoint every so many steps, and at the end.', minimum=0, free=True
    )
    batch_size: int = setting(256, 'Transitions per critic update.', minimum=1)
    max_steps: int = setting(
        1_000_000, 'Steps in the environment; may be raised to go on.', minimum=1, free=True
    )
    start_training: int = setting(
        10_000, 'First step of training; actions before it are random.', minimum=1
    )
    buffer_size: int | None = setting(
        None, 'Room for so many transitions; max_steps by default.', minimum=1
    )
    save_video: bool = setting(
        False, "Write a video of each evaluation's first episode to 'videos/'."
    )
    utd_ratio: int = setting(1, 'Critic updates per step.', minimum=1)
    image_size: int | None = setting(
        None, 'Act by images of this height and width, in pixels; by states without.', minimum=1
    )
    num_stack: int = setting(3, 'Images in an observation, the latest ones.', minimum=1)
    cameras: str | None = setting(
        None,
        "Numbers or names of the model's cameras, separated by commas: the observations 'pixels', "
        "'pixels_1', ...; by default one, the environment's own.",
    )
    action_repeat: int | None = setting(
        None,
        "Steps of the environment per action; by default PlaNet's for the task or else 2 with "
        'images, 1 with states. Intervals and start_training count actions.',
        minimum=1,
    )
    memory_efficient_replay_buffer: bool = setting(
        True, 'Store each image once, instead of in all the observations that it is part of.'
    )

    @property
    def env_options(self) -> dict:
        """Options of `purerl.envs.make.make`."""
        return options_of(dataclasses.asdict(self))

    @property
    def repeat(self) -> int:
        """Steps of the environment per action."""
        return self.env_options.get('action_repeat', 1)

    @property
    def actions(self) -> int:
        """Actions in all."""
        return self.max_steps // self.repeat


class World:
    """Everything of one seed besides its agent: environments, replay buffer, random streams."""

    def __init__(self, settings: Settings, seed: int):
        self.settings = settings
        self.env = make(settings.env_name, seed=seed, **settings.env_options)
        self.eval_env = make(settings.env_name, seed=evaluation_seed(seed), **_filmed(settings))
        self.key = random.key(evaluation_seed(seed))
        self.buffer = _make_buffer(self.env, settings)
        self.stream = np.random.default_rng(seed)
        self.observation, _ = self.env.reset()
        self.evaluated = (0, None)  # step and return of the latest evaluation

    def random_action(self) -> np.ndarray:
        return self.env.action_space.sample()

    def step(self, action: np.ndarray) -> dict | None:
        """Act and remember; returns the episode's statistics at its end, else None."""
        following, reward, terminated, truncated, info = self.env.step(action)
        check_step(self.settings.env_name, reward, following)
        self.buffer.insert(
            transition(self.observation, action, reward, terminated, truncated, following)
        )
        self.observation = following
        if not (terminated or truncated):
            return None
        self.observation, _ = self.env.reset()
        return info['episode']

    def batch(self) -> dict:
        """Draw what one update takes: `utd_ratio` batches in one."""
        pack = {'pack': True} if isinstance(self.buffer, MemoryEfficientReplayBuffer) else {}
        size = self.settings.batch_size * self.settings.utd_ratio
        return self.buffer.sample(size, self.stream, **pack)

    def evaluate(self, agent, step: int) -> tuple[dict, list]:
        """Run whole episodes; returns statistics and renders. Training's streams stay as is."""
        statistics, _, renders = evaluate(
            policy_of(agent),
            self.eval_env,
            self.settings.eval_episodes,
            random.fold_in(self.key, step),
            video_frame_skip=1,
            film_first=self.settings.save_video,
        )
        self.evaluated = (step, statistics['episode.return'])
        return statistics, renders

    def state(self) -> dict:
        """Return everything that `set_state` needs to go on bit for bit."""
        return {
            'envs': take_snapshots(self._envs()),
            'buffer': self.buffer.state_dict(),
            'stream': self.stream.bit_generator.state,
            'observation': self.observation,
            'evaluated': self.evaluated,
        }

    def set_state(self, state: dict) -> None:
        restore_snapshots(self._envs(), state['envs'])
        try:
            self.buffer.load_state_dict(_with_room(state['buffer'], self.buffer.capacity))
        except ValueError as error:
            raise RunError(
                f"{error}. Without buffer_size it is max_steps' number of actions, and grows with "
                'it only until something has been overwritten, which images do at the end of '
                'every run: resume with the same max_steps, or start with a larger --buffer_size'
            ) from error
        self.stream.bit_generator.state = state['stream']
        self.observation = state['observation']
        self.evaluated = tuple(state['evaluated'])

    def _envs(self):
        return {'env': self.env, 'eval_env': self.eval_env}

    def close(self) -> None:
        self.env.close()
        self.eval_env.close()


def _filmed(settings):
    """Options of an environment that can be filmed, if it is to be; one that is seen can anyway."""
    filmed = settings.save_video and settings.image_size is None
    return {**settings.env_options, **({'render_mode': 'rgb_array'} if filmed else {})}


def _make_buffer(env, settings):
    spaces = env.observation_space, env.action_space
    capacity = settings.buffer_size or settings.actions
    cameras = image_keys(env.observation_space)
    if cameras and settings.memory_efficient_replay_buffer:
        return MemoryEfficientReplayBuffer.from_spaces(*spaces, capacity, pixel_keys=cameras)
    return ReplayBuffer.from_spaces(*spaces, capacity, device=settings.replay_device)


def _with_room(state, capacity):
    """Let a saved buffer go on in one of another size that has room for it.

    It must not have overwritten anything.
    """
    size = state['size']
    if size <= capacity != state['capacity'] and state['pointer'] in (0, size):
        return {**state, 'capacity': capacity, 'pointer': size % capacity}
    return state


def train(agent: Agent, settings: Settings) -> dict:
    """Train an agent online.

    Args:
        agent: the agent's file and config.
        settings: the flags.

    Returns:
        What `summary.json` holds: the last step and, per seed, the final evaluation's return and
        a random policy's.

    Raises:
        RunError: if the agent, the environment, the settings or the folder do not fit; before
            anything is compiled or written.
        SystemExit: after SIGINT or SIGTERM, when a checkpoint has been written.
    """
    check_settings(settings)
    if not settings.actions:
        raise RunError(
            f'max_steps={settings.max_steps} has no room for an action, which is repeated '
            f'{settings.repeat} times'
        )
    _check_agent(agent)
    run = Run('online', agent, settings, settings.env_name)
    worlds = make_worlds(settings)
    try:
        env = worlds[0].env
        _check_observations(agent, env, settings.env_name)
        example = {
            'observations': _zeros(env.observation_space),
            'actions': _zeros(env.action_space),
        }
        agents = create_agents(agent, settings.seeds, example, settings.device)
        warn_of_no_updates('start_training', settings.start_training, settings.actions)
        updates = (settings.actions - settings.start_training) * settings.utd_ratio
        run.begin(updates, settings.max_steps, example)
        with run:
            return _loop(run, settings, worlds, agents)
    finally:
        for world in worlds:
            world.close()


def _zeros(space):
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: _zeros(child) for key, child in space.items()}
    return torch.from_numpy(np.zeros((1, *space.shape), dtype=space.dtype))


def make_worlds(settings: Settings) -> list[World]:
    """Make and check the environments of all seeds.

    Raises:
        RunError: if there is no such environment, no agent of this loop can act in it, or it cannot
            be filmed.
    """
    try:
        with contextlib.closing(make(settings.env_name, **_filmed(settings))) as env:
            check_environment(env, settings.save_video)
            is_resumable(env)
        return [World(settings, seed) for seed in settings.seeds]
    except (ValueError, TypeError, ImportError) as error:
        raise RunError(str(error)) from error


def _check_agent(agent):
    missing = [name for name in _METHODS if not hasattr(agent.agent_class, name)]
    if missing:
        raise RunError(
            f'{agent.path} cannot train online: {agent.agent_class.__name__} has no '
            f'{" and no ".join(missing)}; an agent with pretrain and finetune trains with '
            'experiments.offline'
        )
    if 'whole_episodes' in agent.needs:
        raise RunError(f'{agent.path} learns from whole episodes: it trains with experiments.rrd')
    if 'utd_ratio' not in inspect.signature(agent.agent_class.update).parameters:
        raise RunError(
            f'{agent.path} cannot train online: its update takes no utd_ratio; it trains from a '
            'dataset with experiments.offline_to_online'
        )
    if agent.needs:
        raise RunError(
            f'{agent.path} needs {", ".join(sorted(agent.needs))}, which only datasets have'
        )


def _check_observations(agent, env, env_name):
    space = env.observation_space
    cameras = image_keys(space)
    seen = agent.config.get('pixel_keys')
    if cameras and seen is None:
        raise RunError(f'{agent.path} acts by states, not by images: leave out image_size')
    if seen is None and len(space.shape or ()) != 1:
        raise RunError(
            f'{env_name} has the observation space {space}, but {agent.path} takes vectors: a '
            'Box with one axis, as HalfCheetah-v5 has'
        )
    if cameras and set(seen) != set(cameras):
        raise RunError(
            f'{agent.path} looks at {", ".join(seen)}, but the observations have '
            f'{", ".join(cameras)}: --agent.pixel_keys="{cameras}" or other --cameras'
        )


def _loop(run, settings, worlds, agents):
    num, logger = len(worlds), run.logger
    act = over_seeds(lambda agent, observations: agent.sample_actions(observations), num)
    update = over_seeds(lambda agent, batch: agent.update(batch, settings.utd_ratio), num)

    agent, state = run.restore(stack(agents))
    if state is not None:
        for world, world_state in zip(worlds, state, strict=True):
            world.set_state(world_state)

    repeat, step = settings.repeat, run.start
    last = settings.actions
    for i in range(run.start // repeat + 1, last + 1):
        step = i * repeat
        if i < settings.start_training:
            actions = [world.random_action() for world in worlds]
        else:
            observations = stack([world.observation for world in worlds])
            actions, agent = act(agent, observations)
            actions = unstack(to_numpy(actions), num)
        for k, world in enumerate(worlds):
            episode = world.step(actions[k])
            if episode is not None:
                logger.log_seed(k, 'episodes', step, scalars(episode, 'training/episode.'))
                logger.show(**{'return': episode['return']})

        if i >= settings.start_training:
            agent, info = update(agent, stack([world.batch() for world in worlds]))
            if due(i, settings.log_interval):
                rows = [scalars(seed_info, 'training/') for seed_info in unstack(info, num)]
                log_training(logger, 'train', step, rows)

        if due(i, settings.eval_interval):
            log_evaluations(run, 'eval', step, _evaluations(worlds, agent, step))
        logger.advance(repeat)
        if due(i, settings.save_interval) or i == last or run.stop_requested:
            run.save(step, agent, [world.state() for world in worlds])
        if run.stop_requested:
            run.stop(step)
    return _finish(run, settings, step, worlds, agent)


def _evaluations(worlds, agent, step):
    agents = unstack(agent, len(worlds))
    return [functools.partial(w.evaluate, a, step) for w, a in zip(worlds, agents, strict=True)]


def _finish(run, settings, step, worlds, agent):
    if not settings.eval_interval:
        return conclude(run, step, None, None)
    for world, evaluate_seed in zip(worlds, _evaluations(worlds, agent, step), strict=True):
        if world.evaluated[0] != step:
            evaluate_seed()
    make_env = functools.partial(make, settings.env_name, action_repeat=settings.repeat)
    baselines = [random_return(make_env, settings.eval_episodes, seed) for seed in settings.seeds]
    return conclude(run, step, [world.evaluated[1] for world in worlds], baselines)
