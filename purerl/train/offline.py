"""Training from datasets: pretraining, then finetuning.

Counterpart of ``main.py`` of chongyi-zheng/infom @ f0356dd, draw for draw: one numpy
`RandomState(seed)` gives the example batch, all batches, the validation batches and the key of
each evaluation, in the original's order. So the intervals at which a run logs and evaluates are
part of what determines it.

An agent has `pretrain(batch)`, `finetune(batch, full_update)` and their losses, and says in `needs`
what else it wants:

    next_actions   the actions after the next observations, in every batch
    goals          goals from the same episodes (`purerl.data.goals`), in every batch
    augmentations  two augmented copies of images in every batch

If it has `target_reset() -> agent`, that is called before finetuning; if it has
`infer_latent(batch)`, too, and the result goes into every batch of finetuning (`latents`) and to
`sample_actions`.

Deviations from the original:
- Datasets are found by path, too; the evaluation environment is seeded, with `seed + 42`.
- Wall-clock figures are in `timing.csv`. An interval of 0 means never.
"""

import dataclasses
import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from purerl.core import random, trees
from purerl.core.checkpoint import load_checkpoint
from purerl.core.flax_io import load_flax, restore_flax
from purerl.data.check import DatasetError
from purerl.data.dataset import Dataset
from purerl.data.goals import GCDataset
from purerl.data.load import load_dataset
from purerl.envs.make import check_continuous, make, ogbench_env_id
from purerl.envs.snapshot import check_resumable, env_state, set_env_state
from purerl.train.config import Agent, RunError, check_settings, setting
from purerl.train.evaluation import evaluate, policy_of, to_numpy, write_video
from purerl.train.logging import scalars
from purerl.train.run import Run, RunSettings, create_agents
from purerl.train.seeds import over_seeds, stack, unstack
from purerl.train.summary import conclude, random_return

EVAL_SEED_OFFSET = 42
PROVIDED = frozenset({'next_actions', 'goals', 'augmentations'})
_METHODS = ('pretrain', 'finetune', 'pretraining_loss', 'finetuning_loss', 'sample_actions')


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """The original's flags, and those of every run."""

    env_name: str = setting('cube-single-play-singletask-v0', 'Environment (dataset) name.')
    pretraining_dataset: str | None = setting(
        None,
        'Dataset to pretrain on: a file (OGBench .npz with its -val.npz, D4RL .hdf5), or a name '
        '(OGBench, Minari); by default the one that env_name names.',
    )
    finetuning_dataset: str | None = setting(
        None,
        "Dataset to finetune on; by default pretraining_dataset, or for a name env_name's "
        'finetuning data (...-ft-singletask-...).',
    )
    restore_path: str | None = setting(
        None, "Start from this run's agent: its folder, or that of the original's params_*.pkl."
    )
    restore_epoch: int | None = setting(None, 'Its step; the latest by default.')

    pretraining_steps: int = setting(1_000_000, 'Number of pretraining steps.', minimum=0)
    pretraining_size: int = setting(1_000_000, 'Transitions to pretrain on, at most.', minimum=1)
    finetuning_steps: int = setting(
        500_000, 'Number of finetuning steps; may be raised to go on.', minimum=0, free=True
    )
    finetuning_size: int = setting(500_000, 'Transitions to finetune on, at most.', minimum=1)
    log_interval: int = setting(5_000, 'Log losses every so many steps.', minimum=0)
    eval_interval: int = setting(
        50_000, 'Evaluate every so many finetuning steps, and at their start.', minimum=0
    )
    save_interval: int = setting(
        100_000, 'Write a checkpoint every so many steps, and at the end.', minimum=0, free=True
    )

    eval_episodes: int = setting(50, 'Episodes of an evaluation.', minimum=1)
    video_episodes: int = setting(
        0, "Further episodes per evaluation, recorded to 'videos/'.", minimum=0
    )
    video_frame_skip: int = setting(3, 'Every which frame is recorded.', minimum=1)

    obs_norm_type: str = setting(
        'normal', 'How observations are normalised.', choices=('none', 'normal', 'bounded')
    )
    p_aug: float | None = setting(None, 'Probability of augmenting images.', minimum=0)
    num_aug: int = setting(1, 'Number of image augmentations.', minimum=1)
    inplace_aug: bool = setting(True, 'Replace images by the augmented ones.')
    frame_stack: int | None = setting(None, 'Number of frames to stack.', minimum=1)

    @property
    def total_steps(self) -> int:
        return self.pretraining_steps + self.finetuning_steps

    @property
    def evaluates(self) -> bool:
        return bool(self.eval_interval and self.finetuning_steps)


class Data(NamedTuple):
    """A phase's datasets, shared by all seeds."""

    train: Dataset | GCDataset
    val: Dataset | GCDataset | None


class World:
    """Everything of one seed besides its agent: random stream, evaluation environment, latent."""

    def __init__(self, settings: Settings, seed: int):
        self.settings = settings
        self.stream = np.random.RandomState(seed)
        self.eval_env = None
        if settings.evaluates:
            self.eval_env = make(
                settings.env_name,
                seed=seed + EVAL_SEED_OFFSET,
                frame_stack=settings.frame_stack,
                render_mode='rgb_array' if settings.video_episodes else None,
            )
        self.latent: np.ndarray | None = None
        self.evaluated = (0, None)  # step and return of the latest evaluation

    def batch(self, data: Dataset | GCDataset, batch_size: int) -> dict:
        """Draw a batch, with the latent once there is one."""
        batch = data.sample(batch_size, self.stream)
        if self.latent is not None:
            batch['latents'] = np.tile(self.latent, (len(batch['actions']), 1))
        return batch

    def inference_batch(self, data, batch_size: int, num: int) -> dict:
        """Draw the `num` transitions from which a latent is inferred."""
        batches = [data.sample(batch_size, self.stream) for _ in range(-(-num // batch_size))]
        keys = [key for key in batches[0] if not key.startswith('observation_')]
        return {key: np.concatenate([batch[key] for batch in batches])[:num] for key in keys}

    def evaluate(self, agent, data, step: int) -> tuple[dict, list]:
        """Run whole episodes; returns statistics and renders."""
        inputs = {} if self.latent is None else {'latents': self.latent}
        # The original draws this key's seed from the stream of the batches.
        key = random.key(self.stream.randint(0, 2**32))
        statistics, _, renders = evaluate(
            policy_of(agent, temperature=0.0, **inputs),
            self.eval_env,
            self.settings.eval_episodes,
            key,
            normalize=by_frames(data.normalize_observations, self.settings.frame_stack),
            video_episodes=self.settings.video_episodes,
            video_frame_skip=self.settings.video_frame_skip,
        )
        self.evaluated = (step, statistics['episode.return'])
        return statistics, renders

    def state(self) -> dict:
        """Return everything that `set_state` needs to go on bit for bit."""
        return {
            'stream': self.stream.get_state(legacy=False),
            'eval_env': None if self.eval_env is None else env_state(self.eval_env),
            'latent': self.latent,
            'evaluated': self.evaluated,
        }

    def set_state(self, state: dict) -> None:
        self.stream.set_state(state['stream'])
        if self.eval_env is not None and state['eval_env'] is not None:
            set_env_state(self.eval_env, state['eval_env'])
        self.latent = state['latent']
        self.evaluated = tuple(state['evaluated'])

    def close(self) -> None:
        if self.eval_env is not None:
            self.eval_env.close()


def by_frames(normalize: Callable, frame_stack: int | None) -> Callable:
    """Apply a function of single observations to ones that the environment has stacked."""
    if frame_stack is None:
        return normalize

    def normalize_frames(observation):
        frames = np.split(observation, frame_stack, axis=-1)
        return np.concatenate([normalize(frame) for frame in frames], axis=-1)

    return normalize_frames


# --- Loading ---------------------------------------------------------------------------------


def load_phases(agent: Agent, settings: Settings) -> dict[str, Data]:
    """Load the datasets of both phases.

    Returns:
        'pretraining' and 'finetuning', each normalised with its own statistics.

    Raises:
        DatasetError: if one is missing, damaged, or lacks what the agent needs.
    """
    sources = dataset_names(settings)
    sizes = {'pretraining': settings.pretraining_size, 'finetuning': settings.finetuning_size}
    loaded: dict = {}
    phases = {}
    for phase, source in sources.items():
        if (source, sizes[phase]) not in loaded:
            loaded[source, sizes[phase]] = _load_data(agent, settings, source, sizes[phase])
        phases[phase] = loaded[source, sizes[phase]]
    return phases


def dataset_names(settings: Settings) -> dict[str, str]:
    """Return the path or name of each phase's dataset."""
    given = settings.pretraining_dataset or settings.finetuning_dataset
    finetuning = settings.finetuning_dataset or settings.pretraining_dataset
    if given is None:
        before, separator, after = settings.env_name.partition('-singletask')
        finetuning = f'{before}-ft{separator}{after}' if separator else settings.env_name
    return {'pretraining': given or settings.env_name, 'finetuning': finetuning}


def _load_data(agent, settings, source, size):
    options = {}
    if source.endswith('.npz') and 'singletask' in settings.env_name:
        options['env_name'] = ogbench_env_id(settings.env_name)
    train, val = load_dataset(source, **options)
    if settings.finetuning_steps and 'rewards' not in train:
        raise DatasetError(
            f'{source}: no rewards to finetune on; choose a single-task --env_name '
            '(cube-single-play-singletask-v0, for one), from which OGBench computes them'
        )
    return Data(
        _dataset(agent, settings, train, size, source),
        None if val is None else _dataset(agent, settings, val, size, f'{source} (validation)'),
    )


def _dataset(agent, settings, arrays, size, name):
    dataset = Dataset(
        trees.map(lambda array: array[:size], arrays),
        name=name,
        obs_norm_type=settings.obs_norm_type,
        frame_stack=settings.frame_stack,
        p_aug=settings.p_aug,
        num_aug=settings.num_aug,
        inplace_aug=settings.inplace_aug,
        return_next_actions='next_actions' in agent.needs,
    )
    images = dataset['observations'].ndim == 4 if 'augmentations' in agent.needs else False
    if images and (settings.p_aug != 1.0 or settings.num_aug < 2 or settings.inplace_aug):
        raise RunError(
            f'{agent.path} compares two augmented copies of each image: set --p_aug=1 --num_aug=2 '
            '--noinplace_aug'
        )
    dataset.normalize_observations()
    return GCDataset(dataset, agent.config) if 'goals' in agent.needs else dataset


def _check_agent(agent, settings):
    missing = [name for name in _METHODS if not hasattr(agent.agent_class, name)]
    if missing:
        raise RunError(
            f'{agent.path} cannot train offline: {agent.agent_class.__name__} has no '
            f'{" and no ".join(missing)}; an agent with update and eval_actions trains with '
            'experiments.online'
        )
    unknown = agent.needs - PROVIDED
    if unknown:
        raise RunError(
            f'{agent.path} needs {", ".join(sorted(unknown))}; this loop provides '
            f'{", ".join(sorted(PROVIDED))}'
        )
    if settings.num_seeds > 1 and settings.p_aug not in (None, 0.0, 1.0):
        raise RunError('with num_seeds, all seeds augment at once: p_aug must be 0 or 1')


def _with_data_settings(agent, settings):
    """Tell an agent with goals, whose sampler reads them from its config, how data comes."""
    if 'goals' not in agent.needs:
        return agent
    config = agent.config.copy_and_resolve_references().unlock()
    config.update({'p_aug': settings.p_aug, 'frame_stack': settings.frame_stack})
    return dataclasses.replace(agent, config=config.lock())


def make_worlds(settings: Settings, example: dict) -> list[World]:
    """Make and check the streams and environments of all seeds.

    Raises:
        RunError: if there is no such environment, or it is not the dataset's.
    """
    try:
        worlds = [World(settings, seed) for seed in settings.seeds]
        env = worlds[0].eval_env
        if env is not None:
            check_continuous(env)
            check_resumable(env)
    except (ValueError, TypeError, ImportError) as error:
        raise RunError(str(error)) from error
    if env is not None:
        spaces = {'observations': env.observation_space, 'actions': env.action_space}
        for key, space in spaces.items():
            if example[key].shape[1:] != space.shape:
                raise RunError(
                    f'the dataset has {key} of shape {example[key].shape[1:]}, but '
                    f'{settings.env_name} has {space.shape}: set the --env_name it was collected in'
                )
    return worlds


def restore_agent(agent, path: str, epoch: int | None):
    """Return an agent with the values of another run's.

    Args:
        agent: an agent of the same algorithm and sizes.
        path: a run's folder, or one with the original's ``params_<epoch>.pkl``; may be a pattern.
        epoch: the step; None for the latest (of a run's folder).

    Raises:
        RunError: if the pattern matches none or several.
        CheckpointError: if there is no such checkpoint, or it does not fit.
    """
    matches = sorted(glob.glob(str(Path(path).expanduser())))
    if len(matches) != 1:
        raise RunError(f'restore_path={path} matches {len(matches)} folders: {matches[:3]}')
    folder = Path(matches[0])
    pickled = folder / f'params_{epoch}.pkl'
    if pickled.exists():
        return restore_flax(agent, load_flax(pickled))
    checkpoints = folder / 'checkpoints'
    return load_checkpoint(checkpoints if checkpoints.is_dir() else folder, epoch, like=agent)[0]


# --- Training --------------------------------------------------------------------------------


def train(agent: Agent, settings: Settings) -> dict:
    """Pretrain and finetune an agent.

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
    check_settings(settings)
    _check_agent(agent, settings)
    agent = _with_data_settings(agent, settings)
    run = Run('offline', agent, settings, settings.env_name)
    phases = load_phases(agent, settings)
    first = phases['pretraining'].train.sample(1, np.random.RandomState(0), idxs=np.zeros(1, int))
    worlds = make_worlds(settings, first)
    try:
        # The original's example batch, whose draw the batches come after.
        examples = [world.batch(phases['pretraining'].train, 1) for world in worlds]
        example = {key: torch.from_numpy(examples[0][key]) for key in ('observations', 'actions')}
        agents = create_agents(agent, settings.seeds, example)
        run.begin(settings.total_steps, settings.total_steps, example)
        if settings.restore_path is not None and not run.start:
            path, epoch = settings.restore_path, settings.restore_epoch
            agents = [restore_agent(member, path, epoch) for member in agents]
        with run:
            return _loop(run, agent, settings, worlds, phases, agents)
    finally:
        for world in worlds:
            world.close()


class _Calls:
    """The agent's methods over all seeds, each compiled once."""

    def __init__(self, num: int):
        self._pretrain = over_seeds(lambda agent, batch: agent.pretrain(batch), num)
        self._finetune = {
            full: over_seeds(
                lambda agent, batch, full=full: agent.finetune(batch, full_update=full), num
            )
            for full in (True, False)
        }
        self._losses = {
            'pretraining': over_seeds(lambda agent, batch: agent.pretraining_loss(batch)[1], num),
            'finetuning': over_seeds(lambda agent, batch: agent.finetuning_loss(batch)[1], num),
        }

    def update(self, phase, agent, batch, full_update):
        """Take one step; returns (agent, info)."""
        if phase == 'pretraining':
            return self._pretrain(agent, batch)
        return self._finetune[full_update](agent, batch)

    def validate(self, phase, agent, batch):
        """Return the info of the phase's loss."""
        return self._losses[phase](agent, batch)


def _loop(run, agent_file, settings, worlds, phases, agents):
    calls, config = _Calls(len(worlds)), agent_file.config
    agent, state = run.restore(stack(agents))
    if state is not None:
        for world, world_state in zip(worlds, state['worlds'], strict=True):
            world.set_state(world_state)

    step = run.start
    for step in range(run.start + 1, settings.total_steps + 1):
        phase = 'pretraining' if step <= settings.pretraining_steps else 'finetuning'
        data = phases[phase]
        if step == settings.pretraining_steps + 1:
            agent = _begin_finetuning(agent_file, worlds, data.train, agent)

        batch = stack([world.batch(data.train, config['batch_size']) for world in worlds])
        full_update = step % config.get('actor_freq', 1) == 0
        agent, info = calls.update(phase, agent, batch, full_update)

        if _due(step, settings.log_interval):
            _log(run.logger, calls, step, phase, (worlds, agent, info, data.val, config))
        if phase == 'finetuning' and _evaluates(settings, step):
            _evaluate(run, step, worlds, unstack(agent, len(worlds)), data.train)
        run.logger.advance()
        ends = step == settings.total_steps or run.stop_requested
        if _due(step, settings.save_interval) or ends:
            run.save(step, agent, _state(worlds, phases, settings))
        if run.stop_requested:
            run.stop(step)
    return _finish(run, settings, step, worlds, unstack(agent, len(worlds)), phases)


def _begin_finetuning(agent_file, worlds, data, agent):
    """Reset targets and infer latents, for agents that do so."""
    num, config = len(worlds), agent_file.config
    if hasattr(agent_file.agent_class, 'target_reset'):
        agent = over_seeds(lambda agent: agent.target_reset(), num)(agent)
    if hasattr(agent_file.agent_class, 'infer_latent'):
        samples = config['num_latent_inference_samples']
        batches = [world.inference_batch(data, config['batch_size'], samples) for world in worlds]
        infer = over_seeds(lambda agent, batch: agent.infer_latent(batch), num)
        latents = unstack(infer(agent, stack(batches)), num)
        for world, latent in zip(worlds, latents, strict=True):
            world.latent = to_numpy(latent)
    return agent


def _due(step, interval):
    return interval > 0 and step % interval == 0


def _evaluates(settings, step):
    first = step == settings.pretraining_steps + 1
    return settings.eval_interval > 0 and (first or step % settings.eval_interval == 0)


def _log(logger, calls, step, phase, current):
    worlds, agent, info, val, config = current
    num = len(worlds)
    rows = [scalars(seed_info, 'training/') for seed_info in unstack(info, num)]
    if val is not None:
        batch = stack([world.batch(val, config['batch_size']) for world in worlds])
        val_infos = unstack(calls.validate(phase, agent, batch), num)
        for row, val_info in zip(rows, val_infos, strict=True):
            row.update(scalars(val_info, 'validation/'))
    logger.log(f'{phase}_train', step, rows)
    logger.tick(step)
    losses = [name for name in rows[0] if re.fullmatch(r'training/.*loss', name)][:3]
    logger.show(
        **{name.removeprefix('training/'): np.mean([row[name] for row in rows]) for name in losses}
    )


def _evaluate(run, step, worlds, agents, data):
    for i, (world, agent) in enumerate(zip(worlds, agents, strict=True)):
        statistics, renders = world.evaluate(agent, data, step)
        run.logger.log_seed(i, 'finetuning_eval', step, scalars(statistics, 'evaluation/'))
        if renders:
            write_video(run.seed_folders[i] / 'videos' / f'eval_{step:010d}.mp4', renders)
    run.logger.show(eval=np.mean([world.evaluated[1] for world in worlds]))


def _state(worlds, phases, settings):
    data = phases['finetuning'].train
    dataset = data.dataset if isinstance(data, GCDataset) else data
    statistics = {
        'mean': dataset.obs_mean,
        'var': dataset.obs_var,
        'high': dataset.obs_max,
        'low': dataset.obs_min,
        'kind': settings.obs_norm_type,
    }
    return {'worlds': [world.state() for world in worlds], 'normalization': statistics}


def _finish(run, settings, step, worlds, agents, phases):
    if not settings.evaluates:
        return conclude(run, step, None, None)
    for world, agent in zip(worlds, agents, strict=True):
        if world.evaluated[0] != step:
            world.evaluate(agent, phases['finetuning'].train, step)
    baselines = [
        random_return(
            settings.env_name, settings.eval_episodes, seed, frame_stack=settings.frame_stack
        )
        for seed in settings.seeds
    ]
    return conclude(run, step, [world.evaluated[1] for world in worlds], baselines)
