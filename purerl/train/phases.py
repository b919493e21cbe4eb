"""The data of pretraining and finetuning, as an agent needs it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from purerl.core import trees
from purerl.data import exorl
from purerl.data.check import DatasetError
from purerl.data.dataset import Dataset
from purerl.data.episodes import episode_ends
from purerl.data.goals import GCDataset
from purerl.data.load import load_dataset
from purerl.envs import dmc
from purerl.envs.make import ogbench_env_id
from purerl.train.config import Agent, RunError
from purerl.train.transitions import check_ends, flattened, time_limit


class Data(NamedTuple):
    """A phase's datasets, shared by all seeds."""

    train: Dataset | GCDataset
    val: Dataset | GCDataset | None


def load_phases(agent: Agent, settings) -> dict[str, Data]:
    """Load the datasets of both phases.

    Args:
        agent: its `needs` say what batches are to hold.
        settings: `purerl.train.offline.Settings`.

    Returns:
        'pretraining' and 'finetuning', each normalised with its own statistics.

    Raises:
        DatasetError: if one is missing, damaged, or lacks what the agent needs, or if they do not
            have the same shapes.
    """
    sources = dataset_names(settings)
    sizes = {'pretraining': settings.pretraining_size, 'finetuning': settings.finetuning_size}
    loaded: dict = {}
    phases = {}
    for phase, source in sources.items():
        options = _load_options(settings, phase, source, sizes[phase])
        key = (source, sizes[phase], *options.items())
        if key not in loaded:
            loaded[key] = _load_data(agent, settings, source, sizes[phase], options)
        phases[phase] = loaded[key]
    if settings.finetuning_steps:
        _check_rewards(_transitions(phases['finetuning'].train))
    _check_same_shapes(phases)
    return phases


def dataset_names(settings) -> dict[str, str]:
    """Return the path or name of each phase's dataset, from `purerl.train.offline.Settings`."""
    given = settings.pretraining_dataset or settings.finetuning_dataset
    if given is None and dmc.is_dmc(settings.env_name):
        files = exorl.exorl_files(settings.env_name)
        return {phase: path.stem for phase, path in files.items()}
    finetuning = settings.finetuning_dataset or settings.pretraining_dataset
    if given is None:
        before, separator, after = settings.env_name.partition('-singletask')
        finetuning = f'{before}-ft{separator}{after}' if separator else settings.env_name
    return {'pretraining': given or settings.env_name, 'finetuning': finetuning}


def _load_options(settings, phase, source, size):
    """Return what `load_dataset` is to be told about a source."""
    path = Path(source).expanduser()
    if path.suffix == '.npz' and 'singletask' in settings.env_name:
        return {'env_name': ogbench_env_id(settings.env_name)}
    if exorl.find(source) is not None or (path.is_file() and exorl.is_aggregated(path)):
        return {'max_size': size}
    if path.suffix in ('.hdf5', '.h5'):  # D4RL's old files do not say where the time limit was
        return {'max_episode_steps': time_limit(settings.env_name)}
    if phase == 'finetuning' and exorl.holds_episodes(path):
        return {'env_name': settings.env_name}
    return {}


def _load_data(agent, settings, source, size, options):
    train, val = (_arranged(arrays) for arrays in load_dataset(source, **options))
    if 'goals' in agent.needs:
        check_ends(train, source, options, 'goals of the same episode; choose an agent without')
    return Data(
        _dataset(agent, settings, train, size, source),
        None if val is None else _dataset(agent, settings, val, size, f'{source} (validation)'),
    )


def _arranged(arrays):
    """Arrays with nested observations made one vector, as environments give them here."""
    return None if arrays is None else {key: flattened(entry) for key, entry in arrays.items()}


def _check_rewards(data):
    if 'rewards' not in data:
        raise DatasetError(
            f'{data.name}: no rewards to finetune on; choose a single-task --env_name '
            '(cube-single-play-singletask-v0, for one), from which OGBench computes them, or '
            '--finetuning_dataset=<data with rewards>'
        )


def _dataset(agent, settings, arrays, size, name):
    _check_entries(arrays, name)
    if 'goals' in agent.needs:
        _check_first_episode(arrays, size, name)
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
    if 'goals' not in agent.needs:
        return dataset
    # The sampler of goals is told with the agent's config how data comes.
    as_data = {'p_aug': settings.p_aug, 'frame_stack': settings.frame_stack}
    return GCDataset(dataset, {**agent.config, **as_data})


def _check_entries(arrays, name):
    """Refuse what these agents do not take: anything but vectors, and images of uint8."""
    observations, actions = arrays['observations'], arrays['actions']
    if actions.ndim != 2 or actions.dtype.kind != 'f':
        raise DatasetError(
            f'{name}: actions are {actions.dtype} {actions.shape}, but these agents need '
            'continuous ones, (N, action size): choose data with a bounded '
            'Box of actions'
        )
    if observations.ndim not in (2, 4):
        raise DatasetError(
            f'{name}: observations have shape {observations.shape}, but these agents take vectors '
            '(N, size), or images (N, height, width, channels)'
        )
    if observations.ndim == 4:
        height, width, channels = observations.shape[1:]
        # No camera has so many: the channels stand before the height.
        misplaced = channels > 4 and channels >= min(height, width)
        if observations.dtype != np.uint8 or misplaced:
            raise DatasetError(
                f'{name}: observations are {observations.dtype} {observations.shape}, but images '
                'must be uint8 (N, height, width, channels); save them so'
            )


def _check_first_episode(arrays, size, name):
    """Refuse to cut a dataset off before its first episode ends."""
    ends = np.flatnonzero(episode_ends(arrays, name))
    if len(ends) and ends[0] >= size:
        raise RunError(
            f'{name}: its first episode has {ends[0] + 1} transitions, but only {size} are taken, '
            'without an end that goals could be drawn up to: raise --pretraining_size and '
            '--finetuning_size'
        )


def _check_same_shapes(phases):
    first, *others = [
        _transitions(data)
        for phase in phases.values()
        for data in (phase.train, phase.val)
        if data is not None
    ]
    for other in others:
        for key in ('observations', 'actions'):
            expected, shape = first[key].shape[1:], other[key].shape[1:]
            if shape != expected:
                raise DatasetError(
                    f'{other.name}: {key} have shape {shape}, but those of {first.name} have '
                    f'{expected}; one agent is trained on both, so collect them in one environment'
                )


def _transitions(data) -> Dataset:
    return data.dataset if isinstance(data, GCDataset) else data


def by_frames(normalize: Callable, frame_stack: int | None) -> Callable:
    """Apply a function of single observations to ones that the environment has stacked."""
    if frame_stack is None:
        return normalize

    def normalize_frames(observation):
        frames = np.split(observation, frame_stack, axis=-1)
        return np.concatenate([normalize(frame) for frame in frames], axis=-1)

    return normalize_frames


def normalization(data: Dataset | GCDataset) -> dict:
    """Return the arguments of `purerl.data.dataset.normalize` that normalise as a dataset does."""
    dataset = _transitions(data)
    return {
        'mean': dataset.obs_mean,
        'var': dataset.obs_var,
        'high': dataset.obs_max,
        'low': dataset.obs_min,
        'kind': dataset.obs_norm_type,
    }
