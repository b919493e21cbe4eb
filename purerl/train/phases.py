"""The data of pretraining and finetuning, as an agent needs it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from purerl.core import trees
from purerl.data.check import DatasetError
from purerl.data.dataset import Dataset
from purerl.data.goals import GCDataset
from purerl.data.load import load_dataset
from purerl.envs.make import ogbench_env_id
from purerl.train.config import Agent, RunError


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


def dataset_names(settings) -> dict[str, str]:
    """Return the path or name of each phase's dataset, from `purerl.train.offline.Settings`."""
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
    dataset = data.dataset if isinstance(data, GCDataset) else data
    return {
        'mean': dataset.obs_mean,
        'var': dataset.obs_var,
        'high': dataset.obs_max,
        'low': dataset.obs_min,
        'kind': dataset.obs_norm_type,
    }
