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
    model_rollouts transitions of the agent's own model while finetuning (`purerl.train.rollouts`)

If it has `target_reset() -> agent`, that is called before finetuning; if it has
`infer_latent(batch)`, too, and the result goes into every batch of finetuning (`latents`) and to
`sample_actions`.

Under torchrun several processes train one agent (`purerl.core.parallel`). Each draws the whole
batches and computes on its rows of them, so that the data are those of a single process; latents
are inferred, and models rolled out, by all of them alike. The first one evaluates and writes the
folder.

Deviations from the original:
- Datasets are found by path, too; the evaluation environment is seeded, with `seed + 42`.
- Wall-clock figures are in `timing.csv`. An interval of 0 means never.
"""

import contextlib
import dataclasses
import functools
import glob
from pathlib import Path

import numpy as np
import torch

from purerl.core import jit, parallel, random
from purerl.core.checkpoint import load_checkpoint
from purerl.core.flax_io import load_flax, restore_flax
from purerl.data.dataset import Dataset
from purerl.data.goals import GCDataset
from purerl.envs.make import make
from purerl.train.config import Agent, RunError, check_settings, setting
from purerl.train.evaluation import evaluate, policy_of, to_numpy
from purerl.train.logging import scalars
from purerl.train.loop import (
    check_environment,
    conclude,
    due,
    evaluation_seed,
    is_resumable,
    log_evaluations,
    log_training,
    random_return,
    restore_snapshots,
    take_snapshots,
)
from purerl.train.phases import by_frames, load_phases, normalization
from purerl.train.rollouts import ModelRollouts, imagine, model_step
from purerl.train.run import Run, RunSettings, create_agents, read_flags, use_device
from purerl.train.seeds import over_seeds, stack, unstack

PROVIDED = frozenset({'next_actions', 'goals', 'augmentations', 'model_rollouts'})
# The entry of batches by which each of them is recognised.
_ENTRIES = {
    'next_actions': 'next_actions',
    'value_goals': 'goals',
    'actor_goals': 'goals',
    'aug1_observations': 'augmentations',
}
_TASK_ENTRIES = ('rewards', 'masks')
_BOUNDS = ('observation_min', 'observation_max')  # of all data, in every batch: no rows
_FLAT_ENCODERS = (None, 'mlp')
_REHEARSAL_ROWS = 2
_METHODS = ('pretrain', 'finetune', 'pretraining_loss', 'finetuning_loss', 'sample_actions')


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """The original's flags, and those of every run."""

    env_name: str = setting('cube-single-play-singletask-v0', 'Environment (dataset) name.')
    pretraining_dataset: str | None = setting(
        None,
        'Dataset to pretrain on: a file (OGBench .npz with its -val.npz, ExORL .hdf5 with its '
        '_val.hdf5, D4RL .hdf5), a folder of ExORL episodes, or a name (OGBench, ExORL, Minari); '
        'by default finetuning_dataset, or else the one that env_name names.',
    )
    finetuning_dataset: str | None = setting(
        None,
        "Dataset to finetune on; by default pretraining_dataset, or for a name env_name's "
        "finetuning data (...-ft-singletask-..., or the task's labelled data of ExORL).",
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
    p_aug: float | None = setting(None, 'Probability of augmenting images.', minimum=0, maximum=1)
    num_aug: int = setting(1, 'Number of image augmentations.', minimum=1)
    inplace_aug: bool = setting(True, 'Replace images by the augmented ones.')
    frame_stack: int | None = setting(None, 'Number of frames to stack.', minimum=1)

    @property
    def total_steps(self) -> int:
        return self.pretraining_steps + self.finetuning_steps

    @property
    def evaluates(self) -> bool:
        return bool(self.eval_interval and self.finetuning_steps)


class World:
    """Everything of one seed besides its agent: random stream, evaluation environment, latent."""

    def __init__(self, settings: Settings, seed: int):
        self.settings = settings
        self.stream = np.random.RandomState(seed)
        self.eval_env = None
        if settings.evaluates:
            self.eval_env = make_eval_env(settings, evaluation_seed(seed))
        self.latent: np.ndarray | None = None
        self.rollouts: ModelRollouts | None = None
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
        # With 0 < p_aug < 1 only some have augmented copies, which no latent is inferred from.
        shared = set.intersection(*(set(batch) for batch in batches))
        keys = [key for key in batches[0] if key in shared and key not in _BOUNDS]
        return {key: np.concatenate([batch[key] for batch in batches])[:num] for key in keys}

    def evaluation_key(self) -> torch.Tensor:
        """Draw the key of an evaluation, whose seed comes from the stream of the batches."""
        return random.key(self.stream.randint(0, 2**32, dtype=np.int64))

    def evaluate(self, agent, data, step: int, key: torch.Tensor) -> tuple[dict, list]:
        """Run whole episodes; returns statistics and renders."""
        inputs = {} if self.latent is None else {'latents': self.latent}
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
            'envs': take_snapshots(self._envs()),
            'latent': self.latent,
            'rollouts': None if self.rollouts is None else self.rollouts.state(),
            'evaluated': self.evaluated,
        }

    def set_state(self, state: dict) -> None:
        self.stream.set_state(state['stream'])
        restore_snapshots(self._envs(), state['envs'])
        self.latent = state['latent']
        if self.rollouts is not None:
            self.rollouts.set_state(state['rollouts'])
        self.evaluated = tuple(state['evaluated'])

    def _envs(self):
        return {} if self.eval_env is None else {'eval_env': self.eval_env}

    def close(self) -> None:
        if self.eval_env is not None:
            self.eval_env.close()


def make_eval_env(settings: Settings, seed: int | None = None):
    """Make an environment to evaluate in."""
    render_mode = 'rgb_array' if settings.video_episodes else None
    return make(
        settings.env_name, seed=seed, frame_stack=settings.frame_stack, render_mode=render_mode
    )


# --- Checks --------------------------------------------------------------------------------------


def _check_agent(agent, settings):
    missing = [name for name in _METHODS if not hasattr(agent.agent_class, name)]
    if missing:
        raise RunError(
            f'{agent.path} cannot train offline: {agent.agent_class.__name__} has no '
            f'{" and no ".join(missing)}; an agent with update and eval_actions trains from a '
            'dataset with experiments.offline_to_online, in an environment with experiments.online'
        )
    unknown = agent.needs - PROVIDED
    if unknown:
        raise RunError(
            f'{agent.path} needs {", ".join(sorted(unknown))}; this loop provides '
            f'{", ".join(sorted(PROVIDED))}'
        )
    sometimes = settings.p_aug not in (None, 0.0, 1.0) and not settings.inplace_aug
    if settings.num_seeds > 1 and sometimes:
        raise RunError(
            "with num_seeds, all seeds' batches must have the same entries: set --p_aug=1 or "
            '--inplace_aug'
        )


def _check_processes(agent, settings):
    """Refuse batches and devices that several processes cannot divide among them."""
    num = parallel.launched()
    if num == 1:
        return
    batch_size = agent.config['batch_size']
    if batch_size % num:
        raise RunError(
            f'agent.batch_size={batch_size} cannot be divided among {num} processes: choose a '
            f'multiple of {num}'
        )
    if settings.device not in ('cpu', 'cuda'):
        raise RunError(
            f'{num} processes cannot share device={settings.device}: choose cuda, with which each '
            'takes the GPU of its number'
        )
    use_device(parallel.device_of(settings.device))


def _check_encoder(agent, observations):
    """Refuse an encoder of images for vectors, and none for images."""
    encoder, shape = agent.config.get('encoder'), tuple(observations.shape[1:])
    flat = encoder in _FLAT_ENCODERS
    if len(shape) == 3 and flat:
        raise RunError(
            f'the observations are images of shape {shape}, which agent.encoder={encoder} does not '
            'read: choose one of images, such as --agent.encoder=impala_small'
        )
    if len(shape) == 1 and not flat:
        raise RunError(
            f'the observations are vectors of {shape[0]} numbers, which agent.encoder={encoder} '
            'does not read: choose --agent.encoder=mlp, or a config without an encoder'
        )


def _rehearse(agent_file, agent, phases, settings):
    """Compute the losses of a few rows, uncompiled: what does not fit is found before the run."""
    steps = {'pretraining': settings.pretraining_steps, 'finetuning': settings.finetuning_steps}
    rows = agent_file.config['batch_size'] // parallel.size()
    # A restored agent may have values that only fit batches of the size that they come from.
    if settings.restore_path is None or not hasattr(agent, 'changes_shape'):
        rows = min(_REHEARSAL_ROWS, rows)
    for phase, data in phases.items():
        batch = data.train.sample(rows, np.random.RandomState(0))
        try:
            if steps[phase]:
                with jit.use_mode('off'):
                    _rehearse_phase(phase, agent, batch)
        except (KeyError, ValueError) as error:
            reason = _misfit(agent_file.agent_class, batch, error)
            if reason is None:
                raise
            raise RunError(f'{agent_file.path} cannot use these data: {reason}') from error


def _rehearse_phase(phase, agent, batch):
    if phase == 'pretraining':
        agent.pretraining_loss(batch)
        return
    if hasattr(agent, 'infer_latent'):
        latent = to_numpy(agent.infer_latent(batch))
        batch['latents'] = np.tile(latent, (len(batch['actions']), 1))
    agent.finetuning_loss(batch)


def _misfit(agent_class, batch, error) -> str | None:
    """Explain what a loss raised; None for a KeyError that is not about batches."""
    message = str(error)
    wanted = [entry for entry in _ENTRIES if entry in message and entry not in batch]
    if isinstance(error, KeyError):
        lacks = f'the batch lacks {error} (it has {", ".join(batch)})'
        if error.args[0] in _TASK_ENTRIES and error.args[0] not in batch:
            return f'{lacks}: choose data that have them, or a single-task --env_name'
        if not wanted:
            return None
        message = lacks
    if not wanted:
        return message
    needs = ', '.join(repr(_ENTRIES[entry]) for entry in wanted)
    return f'{message}; the class {agent_class.__name__} has to declare {needs} in `needs`'


def make_worlds(settings: Settings, data) -> list[World]:
    """Make and check the streams and environments of all seeds.

    Raises:
        RunError: if there is no such environment, or it is not the dataset's.
    """
    try:
        if settings.evaluates:
            with contextlib.closing(make_eval_env(settings)) as env:
                check_environment(env, settings.video_episodes > 0)
                is_resumable(env)
                _check_shapes(env, data, settings)
        return [World(settings, seed) for seed in settings.seeds]
    except (ValueError, TypeError, ImportError) as error:
        raise RunError(str(error)) from error


def _check_shapes(env, data, settings):
    example = data.sample(1, np.random.RandomState(0), idxs=np.zeros(1, dtype=np.int64))
    spaces = {'observations': env.observation_space, 'actions': env.action_space}
    for key, space in spaces.items():
        if example[key].shape[1:] != space.shape:
            raise RunError(
                f'the dataset has {key} of shape {example[key].shape[1:]}, but '
                f'{settings.env_name} has {space.shape}: set the --env_name it was collected in'
            )


def restore_agent(agent, path: str, epoch: int | None, seed: int = 0):
    """Return an agent with the values of another run's.

    Args:
        agent: an agent of the same algorithm and sizes.
        path: a run's folder, or one with the original's ``params_<epoch>.pkl``; may be a pattern.
        epoch: the step; None for the latest (of a run's folder).
        seed: whose agent to take of a run with several seeds.

    Raises:
        RunError: if the pattern matches none or several, or the run has several seeds, but not
            this one.
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
    if not checkpoints.is_dir():
        pickles = [path.name for path in folder.glob('params_*.pkl')]
        if pickles or folder.is_file():
            raise RunError(
                f'restore_path={path} has to be a folder, with --restore_epoch for the number of '
                f'its params_<epoch>.pkl (there are: {", ".join(sorted(pickles)) or "none"})'
            )
        return load_checkpoint(folder, epoch, like=agent)[0]
    flags = read_flags(folder)
    num = flags['num_seeds']
    members = unstack(load_checkpoint(checkpoints, epoch, like=stack([agent] * num))[0], num)
    if num == 1:
        return members[0]
    seeds = range(flags['seed'], flags['seed'] + num)
    if seed not in seeds:
        raise RunError(f'restore_path={path} has seeds {seeds[0]} to {seeds[-1]}, but not {seed}')
    return members[seed - seeds[0]]


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
    _check_processes(agent, settings)
    with parallel.processes(settings.device):
        return _train(agent, settings)


def _train(agent, settings):
    run = Run('offline', agent, settings, settings.env_name, several_processes=True)
    phases = load_phases(agent, settings)
    worlds = make_worlds(settings, phases['pretraining'].train)
    try:
        # The original's example batch, whose draw the batches come after.
        examples = [world.batch(phases['pretraining'].train, 1) for world in worlds]
        example = {key: torch.from_numpy(examples[0][key]) for key in ('observations', 'actions')}
        _check_encoder(agent, example['observations'])
        device = parallel.device_of(settings.device)
        agents = create_agents(agent, settings.seeds, example, device)
        if settings.restore_path is not None and not run.start:
            path, epoch = settings.restore_path, settings.restore_epoch
            agents = [
                restore_agent(member, path, epoch, seed)
                for member, seed in zip(agents, settings.seeds, strict=True)
            ]
        _rehearse(agent, agents[0], phases, settings)
        if 'model_rollouts' in agent.needs:
            batch = phases['finetuning'].train.sample(1, np.random.RandomState(0))
            for world, seed in zip(worlds, settings.seeds, strict=True):
                world.rollouts = ModelRollouts(batch, agent.config, seed)
        run.begin(settings.total_steps, settings.total_steps, example)
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
        self.model_step = over_seeds(model_step, num)
        self._losses = {
            'pretraining': over_seeds(lambda agent, batch: agent.pretraining_loss(batch)[1], num),
            'finetuning': over_seeds(lambda agent, batch: agent.finetuning_loss(batch)[1], num),
        }

    def update(self, phase, agent, batch, full_update):
        """Take one step; returns (agent, info)."""
        update = self._pretrain if phase == 'pretraining' else self._finetune[full_update]
        return parallel.step(update, agent, batch)

    def validate(self, phase, agent, batch):
        """Return the info of the phase's loss."""
        return self._losses[phase](parallel.apart(agent), batch)


def _loop(run, agent_file, settings, worlds, phases, agents):
    calls, config = _Calls(len(worlds)), agent_file.config
    agent, state = run.restore(stack(agents))
    if state is not None:
        for world, world_state in zip(worlds, state['worlds'], strict=True):
            world.set_state(world_state)

    # Read once: ConfigDict looks for similar names when one is missing, for 0.2 ms.
    actor_freq = config.get('actor_freq', 1)
    step = run.start
    for step in range(run.start + 1, settings.total_steps + 1):
        phase = 'pretraining' if step <= settings.pretraining_steps else 'finetuning'
        data = phases[phase]
        if step == settings.pretraining_steps + 1:
            agent = _begin_finetuning(agent_file, worlds, data.train, agent)

        batches = [world.batch(data.train, config['batch_size']) for world in worlds]
        imagines = phase == 'finetuning' and 'model_rollouts' in agent_file.needs
        if imagines:
            for world, batch in zip(worlds, batches, strict=True):
                world.rollouts.add_to(batch, config['batch_size'], world.stream)
        full_update = step % actor_freq == 0
        agent, info = calls.update(phase, agent, _stack_shares(batches), full_update)
        if imagines:
            _imagine(calls, agent, worlds, data.train, config)

        if due(step, settings.log_interval):
            infos = unstack(parallel.pmean(info), len(worlds))
            rows = [scalars(seed_info, 'training/') for seed_info in infos]
            if data.val is not None:
                _add_validation(rows, calls, phase, (worlds, agent, data.val, config))
            log_training(run.logger, f'{phase}_train', step, rows)
        if phase == 'finetuning' and _evaluates(settings, step):
            evaluations = _evaluations(worlds, agent, data.train, step)
            record = functools.partial(log_evaluations, run, 'finetuning_eval', step, evaluations)
            parallel.first(record)
        run.logger.advance()
        stops = run.stop_requested
        if due(step, settings.save_interval) or step == settings.total_steps or stops:
            run.save(step, agent, _state(worlds, phases))
        if stops:
            run.stop(step)
    data = phases['finetuning'].train
    return parallel.first(lambda: _finish(run, settings, step, worlds, agent, data))


def _stack_shares(batches):
    """Stack each seed's batch, cut down to the rows of this process."""
    return stack([_share(batch) for batch in batches])


def _share(batch):
    rows = {key: array for key, array in batch.items() if key not in _BOUNDS}
    return {**batch, **parallel.share(rows)}


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


def _imagine(calls, agent, worlds, data, config):
    batches = [world.batch(data, config['num_model_rollouts']) for world in worlds]
    observations = [batch['observations'] for batch in batches]
    rollouts = [world.rollouts for world in worlds]
    imagine(calls.model_step, agent, rollouts, observations, config)


def _evaluates(settings, step):
    first = settings.eval_interval > 0 and step == settings.pretraining_steps + 1
    return first or due(step, settings.eval_interval)


def _add_validation(rows, calls, phase, current):
    """Add the losses of validation batches to the rows of all seeds."""
    worlds, agent, val, config = current
    batch = _stack_shares([world.batch(val, config['batch_size']) for world in worlds])
    infos = unstack(parallel.pmean(calls.validate(phase, agent, batch)), len(worlds))
    for row, info in zip(rows, infos, strict=True):
        row.update(scalars(info, 'validation/'))


def _evaluations(worlds, agent, data, step):
    """Return one evaluation per seed. Every process draws their keys, whoever runs them."""
    agents = unstack(agent, len(worlds))
    return [
        functools.partial(world.evaluate, member, data, step, world.evaluation_key())
        for world, member in zip(worlds, agents, strict=True)
    ]


def _state(worlds, phases):
    statistics = normalization(phases['finetuning'].train)
    return {'worlds': [world.state() for world in worlds], 'normalization': statistics}


def _finish(run, settings, step, worlds, agent, data):
    if not settings.evaluates:
        return conclude(run, step, None, None)
    for world, evaluate_seed in zip(worlds, _evaluations(worlds, agent, data, step), strict=True):
        if world.evaluated[0] != step:
            evaluate_seed()
    make_env = functools.partial(make_eval_env, settings)
    baselines = [random_return(make_env, settings.eval_episodes, seed) for seed in settings.seeds]
    return conclude(run, step, [world.evaluated[1] for world in worlds], baselines)
