"""Training from a dataset and then, where asked for, in the environment: jaxrl5's offline agents.

Counterpart of ``examples/states/train_offline.py``, ``examples/states/train_diffusion_offline.py``
(with its launchers) and ``examples/pixels/train_offline_pixels.py`` of philippe-eecs/IDQL @
7582571, stream for stream: what draws from what is in `purerl.train.transitions`.

An agent has `update(batch) -> (agent, info)` and `eval_actions(observations) -> (actions, agent)`.
Acting online, it also needs `critic_update(batch)`, and what `train_actor_finetuning` and
`sample_implicit_policy` ask for.

Deviations from the original:
- Steps count from 1, as everywhere here: a figure of step s is that of the original's i = s - 1.
  `max_steps` and `online_max_steps` are the numbers of updates and of steps in the environment; the
  original takes one step in the environment less.
- `inference_variants` change the agent for an evaluation only. The original throws the result of
  changing it back away, so that it acts online as the last variant.
- `sample_implicit_policy` and `train_actor_finetuning` do what they did in the original's first
  commits; its present launchers set them, and nothing reads them.
- Environments are seeded. The one that evaluates is not the one that gathers transitions, whose
  episode the original's evaluations break off.
"""

import dataclasses
import functools

import torch

from purerl.core import trees
from purerl.data.memory_efficient import MemoryEfficientReplayBuffer
from purerl.envs.make import make
from purerl.envs.pixels import options_of
from purerl.train import offline_checks, transitions
from purerl.train.config import Agent, RunError, setting
from purerl.train.evaluation import to_numpy
from purerl.train.logging import scalars
from purerl.train.loop import (
    conclude,
    due,
    log_evaluations,
    log_training,
    random_return,
    warn_of_no_updates,
)
from purerl.train.offline_world import World
from purerl.train.run import ReplaySettings, Run, create_agents
from purerl.train.seeds import over_seeds, stack, unstack
from purerl.train.variants import parse as parse_variants

_REHEARSAL_ROWS = 2


@dataclasses.dataclass(frozen=True)
class Settings(ReplaySettings):
    """The originals' flags and launchers' parameters, and the flags of every run."""

    env_name: str = setting(
        'Hopper-v5', 'Environment. Its name says, too, how rewards are rescaled and scored.'
    )
    dataset: str | None = setting(
        None,
        'Dataset: a file (D4RL .hdf5, OGBench .npz, ExORL .hdf5, AWAC .npy, images .safetensors), '
        'a folder (Minari, ExORL) or a name (pen-binary-v0, a Minari identifier).',
    )
    batch_size: int = setting(512, 'Transitions per update.', minimum=1)
    max_steps: int = setting(
        3_000_000, 'Updates from the dataset; may be raised to go on.', minimum=0, free=True
    )
    log_interval: int = setting(1000, 'Log losses every so many steps.', minimum=0, free=True)
    eval_interval: int = setting(250_000, 'Evaluate every so many steps.', minimum=0, free=True)
    eval_episodes: int = setting(50, 'Episodes of an evaluation.', minimum=1)
    save_interval: int = setting(
        100_000, 'Write a checkpoint every so many steps, and at the end.', minimum=0, free=True
    )
    save_video: bool = setting(
        False, "Write a video of each evaluation's first episode to 'videos/'."
    )

    train_ratio: float = setting(
        0.95,
        'Share of the transitions to train on; the others give validation/... (the original '
        'splits so for diffusion policies). 1 trains on all (its train_offline.py).',
        minimum=0,
    )
    take_top: float | None = setting(
        None, 'Train on this percentage of the episodes only, the best ones.', minimum=0
    )
    filter_threshold: float | None = setting(
        None, 'Train on episodes that return this much or more only.'
    )
    normalize_returns: bool = setting(
        True, "Scale the rewards of locomotion tasks so that the episodes' returns span 1000."
    )
    clip_actions: bool = setting(
        False, 'Clip actions of the dataset beyond -1 and 1, which are refused otherwise.'
    )
    cosine_decay: bool = setting(
        False, "Let the actor's learning rate fall to 0 over max_steps (its decay_steps)."
    )
    inference_variants: str | None = setting(
        None,
        "Evaluate changed copies of the agent: 'N=16,64,256;M=0' for three. The first one's "
        'figures go under the usual names.',
    )
    evaluate_implicit: bool = setting(
        False, 'Evaluate the implicit policy (sample_implicit_policy), too.'
    )

    online_max_steps: int = setting(
        0, 'Steps in the environment after max_steps; may be raised.', minimum=0, free=True
    )
    online_start_training: int = setting(
        5000, 'Steps in the environment before updates go on.', minimum=0
    )
    online_batch_size: int = setting(
        128, "Transitions of each half, online and offline, of a critic's batch.", minimum=1
    )
    online_eval_interval: int = setting(
        25_000, 'Evaluate every so many steps of the online phase.', minimum=0, free=True
    )
    online_eval_episodes: int = setting(25, 'Episodes of such an evaluation.', minimum=1)
    sample_implicit_policy: bool = setting(False, 'Act online by the implicit policy.')
    train_actor_finetuning: bool = setting(
        False, 'Train the actor online, too, on batch_size transitions, half of them online.'
    )

    image_size: int | None = setting(
        None,
        'Height and width of the images that the agent sees: a dataset of images sets it.',
        minimum=1,
    )
    num_stack: int = setting(3, 'Images in an observation; set likewise.', minimum=1)
    cameras: str | None = setting(
        None, "Numbers or names of the model's cameras (experiments.online); else the dataset's."
    )
    action_repeat: int | None = setting(
        None,
        "Steps of the environment per action; by default the dataset's, or 1 (with images that do "
        'not say: as PlaNet for its tasks, else 2).',
        minimum=1,
    )

    @property
    def total_steps(self) -> int:
        return self.max_steps + self.online_max_steps

    @property
    def evaluates(self) -> bool:
        online = self.online_max_steps and self.online_eval_interval
        return bool(self.eval_interval or online)

    @property
    def env_options(self) -> dict:
        """Options of `purerl.envs.make.make`."""
        return options_of(dataclasses.asdict(self))

    @property
    def eval_env_options(self) -> dict:
        """The same for an environment that can be filmed, if it is to be."""
        filmed = self.save_video and self.image_size is None
        return {**self.env_options, **({'render_mode': 'rgb_array'} if filmed else {})}


def train(agent: Agent, settings: Settings) -> dict:
    """Train an agent on a dataset, then online.

    Args:
        agent: the agent's file and config.
        settings: the flags.

    Returns:
        What `summary.json` holds: the last step and, per seed, the final evaluation's return and
        a random policy's.

    Raises:
        RunError, DatasetError: if the agent, the data, the environment, the settings or the folder
            do not fit; before anything is compiled or written.
        SystemExit: after SIGINT or SIGTERM, when a checkpoint has been written.
    """
    offline_checks.check_settings(settings)
    offline_checks.check_agent(agent, settings)
    agent = _decaying(agent, settings)
    variants = parse_variants(settings.inference_variants, agent)
    data = transitions.load(settings)
    settings = _seeing(settings, data)
    run = Run('offline_to_online', agent, settings, settings.env_name)
    rows = transitions.first_rows(data, _REHEARSAL_ROWS)
    first = trees.map(lambda array: array[:1], {key: rows[key] for key in transitions.CLONED})
    offline_checks.check_data(agent, settings, first)
    if settings.evaluates or settings.online_max_steps:
        offline_checks.check_env(settings, first)
    example = trees.map(torch.from_numpy, first)
    agents = create_agents(agent, settings.seeds, example, settings.device)
    keys = offline_checks.entries_to_learn_from(agent, agents[0], rows)
    data = transitions.prepare(data, settings, keys)
    samplers = [transitions.make_sampler(data, settings, seed, keys) for seed in settings.seeds]
    pairs = zip(settings.seeds, samplers, strict=True)
    worlds = [World(settings, seed, sampler, variants) for seed, sampler in pairs]
    try:
        offline_checks.warn_of_scales(settings)
        if settings.online_max_steps:
            online_start = settings.online_start_training
            warn_of_no_updates('online_start_training', online_start, settings.online_max_steps - 1)
        run.begin(settings.total_steps, settings.total_steps, example)
        with run:
            return _loop(run, settings, worlds, agents)
    finally:
        for world in worlds:
            world.close()


def _decaying(agent, settings):
    """Return the agent with its learning rate's schedule over the planned updates."""
    if not settings.cosine_decay:
        return agent
    if 'decay_steps' not in agent.config:
        raise RunError(f'--cosine_decay: the config of {agent.path} has no field decay_steps')
    config = agent.config.copy_and_resolve_references()
    config.decay_steps = settings.max_steps
    return dataclasses.replace(agent, config=config)


def _seeing(settings, data):
    """Return the settings with those of a dataset of images that are not given.

    Raises:
        RunError: if a given one contradicts the dataset.
    """
    if not isinstance(data, MemoryEfficientReplayBuffer):
        return settings
    options = {'action_repeat': 1, **data.env_options} if data.env_options else {}
    cameras = options.get('cameras') or {}
    size = data['observations'][data.pixel_keys[0]].shape[1]
    for name, found in (('image_size', size), ('num_stack', data.num_stack)):
        given = getattr(settings, name)
        if given not in (found, getattr(type(settings), name)):  # a default counts as not given
            raise RunError(
                f'{name}={given}, but the images of {settings.dataset} have {found}: leave '
                f'{name} out, or choose another dataset'
            )
    return dataclasses.replace(
        settings,
        image_size=size,
        num_stack=data.num_stack,
        cameras=settings.cameras or ','.join(map(str, cameras.values())) or None,
        action_repeat=settings.action_repeat or options.get('action_repeat'),
    )


class _Calls:
    """The agent's methods over all seeds, each compiled once."""

    def __init__(self, settings: Settings, num: int):
        method = 'sample_implicit_policy' if settings.sample_implicit_policy else 'eval_actions'
        self.act = over_seeds(lambda agent, seen: getattr(agent, method)(seen), num)
        self.update = over_seeds(lambda agent, batch: agent.update(batch), num)
        self.critic_update = over_seeds(lambda agent, batch: agent.critic_update(batch), num)
        self.actor_update = over_seeds(lambda agent, batch: agent.actor_update(batch), num)


def _loop(run, settings, worlds, agents):
    calls = _Calls(settings, len(worlds))
    agent, state = run.restore(stack(agents))
    if state is not None:
        _check_phase(run, settings, state[0])
        for world, world_state in zip(worlds, state, strict=True):
            world.set_state(world_state)

    step = run.start
    for step in range(run.start + 1, settings.total_steps + 1):
        take_step = _offline_step if step <= settings.max_steps else _online_step
        agent = take_step(run, settings, calls, worlds, agent, step)
        run.logger.advance()
        ends = step == settings.total_steps or run.stop_requested
        if due(step, settings.save_interval) or ends:
            run.save(step, agent, [world.state() for world in worlds])
        if run.stop_requested:
            run.stop(step)
    return _finish(run, settings, step, worlds, agent)


def _check_phase(run, settings, state):
    """Refuse to move the start of the online phase once it is past."""
    before = state['max_steps']
    if settings.max_steps != before and min(settings.max_steps, before) < run.start:
        raise RunError(
            f'{run.folder} is at step {run.start}: max_steps was {before} and can no longer become '
            f'{settings.max_steps}'
        )


def _offline_step(run, settings, calls, worlds, agent, step):
    """Update from the dataset; returns the agent."""
    agent, info = calls.update(agent, stack([world.sampler.batch() for world in worlds]))
    if due(step, settings.log_interval):
        rows = [scalars(seed_info, 'training/') for seed_info in unstack(info, len(worlds))]
        held_out = [world.sampler.held_out_batch() for world in worlds]
        if held_out[0] is not None:
            _, info = calls.update(agent, stack(held_out))
            for row, seed_info in zip(rows, unstack(info, len(worlds)), strict=True):
                row.update(scalars(seed_info, 'validation/'))
        log_training(run.logger, 'train', step, rows)
    if due(step, settings.eval_interval):
        evaluations = _evaluations(worlds, agent, step, settings.eval_episodes)
        log_evaluations(run, 'eval', step, evaluations)
    return agent


def _online_step(run, settings, calls, worlds, agent, step):
    """Act in the environment and, from `online_start_training` on, update; returns the agent."""
    online_step, num = step - settings.max_steps, len(worlds)
    if online_step == 1:
        for world in worlds:
            world.begin_online()
    actions, agent = calls.act(agent, stack([world.observation for world in worlds]))
    for i, action in enumerate(unstack(to_numpy(actions), num)):
        episode = worlds[i].step(action)
        if episode is not None:
            run.logger.log_seed(i, 'episodes', step, scalars(episode, 'training/episode.'))
            run.logger.show(**{'return': episode['return']})
    if online_step <= settings.online_start_training:
        return agent

    batches = [world.mixed_batch(settings.online_batch_size) for world in worlds]
    agent, info = calls.critic_update(agent, stack(batches))
    if settings.train_actor_finetuning:
        batches = [world.mixed_batch(settings.batch_size // 2) for world in worlds]
        agent, actor_info = calls.actor_update(agent, stack(batches))
        info = {**info, **actor_info}
    if due(online_step, settings.log_interval):
        rows = [scalars(seed_info, 'training/') for seed_info in unstack(info, num)]
        log_training(run.logger, 'online_train', step, rows)
    if due(online_step, settings.online_eval_interval):
        evaluations = _evaluations(worlds, agent, step, settings.online_eval_episodes)
        log_evaluations(run, 'online_eval', step, evaluations)
    return agent


def _evaluations(worlds, agent, step, num_episodes):
    agents = unstack(agent, len(worlds))
    return [
        functools.partial(world.evaluate, member, step, num_episodes)
        for world, member in zip(worlds, agents, strict=True)
    ]


def _finish(run, settings, step, worlds, agent):
    if not settings.evaluates:
        return conclude(run, step, None, None)
    num_episodes = settings.eval_episodes
    if settings.online_max_steps:
        num_episodes = settings.online_eval_episodes
    for world, evaluate_seed in zip(
        worlds, _evaluations(worlds, agent, step, num_episodes), strict=True
    ):
        if world.evaluated[0] != step:
            evaluate_seed()
    repeat = settings.env_options.get('action_repeat', 1)
    make_env = functools.partial(make, settings.env_name, action_repeat=repeat)
    baselines = [random_return(make_env, num_episodes, seed) for seed in settings.seeds]
    return conclude(run, step, [world.evaluated[1] for world in worlds], baselines)
