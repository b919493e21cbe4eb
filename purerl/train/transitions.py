"""The data of an offline run of jaxrl5: from a file to each seed's batches.

Counterpart of what ``examples/states/{train_offline,train_diffusion_offline}.py`` and
``examples/pixels/train_offline_pixels.py`` do to their datasets (philippe-eecs/IDQL @ 7582571).
"""

from collections.abc import Sequence
from pathlib import Path

import gymnasium
import numpy as np
import torch

from purerl.core import trees
from purerl.data import binary, d4rl, episodes, exorl
from purerl.data.check import ACTION_BOUND, DatasetError, check_values, length
from purerl.data.device import DeviceDataset, initial_key
from purerl.data.load import load_dataset
from purerl.data.memory_efficient import MemoryEfficientReplayBuffer
from purerl.envs.make import ogbench_env_id
from purerl.train.config import RunError

CLONED = ('observations', 'actions')  # what an agent that clones behaviour learns from
ENTRIES = (*CLONED, 'rewards', 'masks', 'dones', 'next_observations')
CLIP_EPS = 1e-5

Data = dict | MemoryEfficientReplayBuffer


# --- From the file to the transitions ------------------------------------------------------------


def load(settings) -> Data:
    """Load, check and filter a dataset.

    Args:
        settings: `purerl.train.offline_to_online.Settings`.

    Returns:
        A dict of arrays (N, ...), which are some of `ENTRIES`, with actions in
        [-1 + 1e-5, 1 - 1e-5]; or a buffer of images with such actions.

    Raises:
        DatasetError: if the dataset is missing, damaged, or lacks what is asked of it.
        RunError: if the settings do not fit it, or actions lie outside of [-1, 1].
    """
    if not settings.dataset:
        raise RunError('which data? --dataset=<file or name>')
    if Path(settings.dataset).suffix == '.safetensors':
        return _images(settings)
    loaded, _ = load_dataset(settings.dataset, **_load_options(settings))
    arrays = {key: flattened(loaded[key]) for key in ENTRIES if key in loaded}
    if 'dones' not in arrays and 'terminals' in loaded:
        arrays['dones'] = loaded['terminals'] > 0
    _check_actions(arrays['actions'], settings)
    arrays['actions'] = _clipped(arrays['actions'])
    return _filtered(arrays, settings)


def _images(settings):
    for name in ('take_top', 'filter_threshold'):
        if getattr(settings, name) is not None:
            raise RunError(f'{name}: a dataset of images is not filtered by returns')
    if settings.online_max_steps:
        raise RunError('online_max_steps: from images only offline training is possible')
    buffer = MemoryEfficientReplayBuffer.load(Path(settings.dataset).expanduser())
    if not buffer.is_drawable.any():
        raise DatasetError(f'{settings.dataset}: there are no transitions; collect it again')
    for path, array in trees.leaves_with_path(buffer.arrays):
        if array.dtype.kind == 'f':
            check_values(_drawn(array, buffer), '/'.join(path), settings.dataset)
    actions = buffer['actions']
    _check_actions(_drawn(actions, buffer), settings)
    buffer.arrays['actions'] = _clipped(actions)
    return buffer


def _drawn(array, buffer):
    """An entry with zeros in the rows that no batch holds, whose values do not matter."""
    is_drawable = buffer.is_drawable.reshape(-1, *[1] * (array.ndim - 1))
    return np.where(is_drawable, array, np.zeros((), array.dtype))


def _load_options(settings):
    """Return what `load_dataset` is to be told, so that it leaves actions as they are."""
    path = Path(settings.dataset).expanduser()
    if path.suffix == '.npz':
        single_task = 'singletask' in settings.env_name
        options = {'env_name': ogbench_env_id(settings.env_name)} if single_task else {}
        return {'action_clip_eps': None, **options}
    if path.suffix == '.npy' or binary.find(settings.dataset) is not None:
        return {'clip_to_eps': False}
    if path.suffix in ('.hdf5', '.h5') and not exorl.is_aggregated(path):
        # Old files do not say where the time limit ended an episode.
        return {'clip_to_eps': False, 'max_episode_steps': time_limit(settings.env_name)}
    return {'action_clip_eps': None}


def time_limit(env_name):
    try:
        return gymnasium.spec(env_name).max_episode_steps
    except (gymnasium.error.Error, ImportError):
        return None


def flattened(entry):
    """Turn nested dicts of arrays into one vector, as environments give them here."""
    if not isinstance(entry, dict):
        return entry
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in trees.leaves(entry)], axis=-1)


def _check_actions(actions, settings):
    if actions.dtype.kind != 'f':
        raise RunError(f'{settings.dataset}: actions are {actions.dtype}, not continuous')
    largest = np.abs(actions).max()
    if largest > ACTION_BOUND and not settings.clip_actions:
        raise RunError(
            f'{settings.dataset}: actions reach {largest:.4g}, but environments take actions from '
            '-1 to 1 here (and rescale them): divide the actions by the bound of the action space, '
            'or clip them with --clip_actions'
        )


def _clipped(actions):
    return np.clip(actions, -1 + CLIP_EPS, 1 - CLIP_EPS)


def _filtered(arrays, settings):
    take_top, threshold = settings.take_top, settings.filter_threshold
    if take_top is None and threshold is None:
        return arrays
    if 'rewards' not in arrays:
        raise DatasetError(
            f'{settings.dataset}: no rewards to filter episodes by; choose data with rewards, or '
            'leave take_top and filter_threshold out'
        )
    purpose = 'returns to filter by; leave take_top and filter_threshold out'
    check_ends(arrays, settings.dataset, _load_options(settings), purpose)
    kept = episodes.filter_returns(arrays, take_top, threshold, settings.dataset)
    if not length(kept):
        best = episodes.boundaries(arrays).returns.max(initial=-np.inf)
        raise DatasetError(
            f'{settings.dataset}: no finished episode returns {threshold} or more (the best one: '
            f'{best}); lower filter_threshold'
        )
    return kept


def check_ends(arrays: dict, source: str, options: dict, purpose: str) -> None:
    """Refuse a file of D4RL in which no episode ends: its transitions end where it does.

    Args:
        arrays: what was loaded.
        source: from where.
        options: what `load_dataset` was told.
        purpose: what the ends are wanted for, and what to do without, for the message.

    Raises:
        DatasetError: if so.
    """
    ends = episodes.episode_ends(arrays, source)
    if 'max_episode_steps' not in options or ends[:-1].any():
        return
    if not d4rl.ends_episodes(Path(source).expanduser(), options['max_episode_steps']):
        raise DatasetError(
            f'{source}: no episode ends in it (terminals and timeouts are all 0), so there are no '
            f'{purpose}, or collect it with timeouts'
        )


def prepare(data: Data, settings, keys: Sequence[str]) -> DeviceDataset | Data:
    """Rescale rewards and put what batches are to hold on the device.

    Args:
        data: from `load`.
        settings: `purerl.train.offline_to_online.Settings`.
        keys: the entries wanted. Rewards stay as they are where they are not among them.

    Raises:
        DatasetError: if the returns cannot be normalised.
    """
    if isinstance(data, MemoryEfficientReplayBuffer):
        return data
    if 'rewards' in keys:
        data = d4rl.shape_rewards(
            data, settings.env_name, settings.normalize_returns, settings.dataset
        )
    return DeviceDataset.create({key: data[key] for key in keys}, settings.device)


def first_rows(data: Data, num: int) -> dict:
    """Return `num` transitions to try an agent with."""
    if isinstance(data, MemoryEfficientReplayBuffer):
        return data.sample(num, np.random.default_rng(0))
    return trees.map(lambda array: array[np.arange(num) % len(array)], data)


# --- From the transitions to the batches ---------------------------------------------------------


def make_sampler(data: DeviceDataset | MemoryEfficientReplayBuffer, settings, seed: int, keys):
    """Make the source of a seed's batches.

    Args:
        data: from `prepare`; all seeds share it.
        settings: `purerl.train.offline_to_online.Settings`.
        seed: the seed.
        keys: the entries of the batches.

    Raises:
        RunError: if no transitions are left to train on.
    """
    if isinstance(data, MemoryEfficientReplayBuffer):
        return ImageSampler(data, settings.batch_size, seed, keys)
    if int(data.size * settings.train_ratio) < 1:
        raise RunError(
            f'train_ratio={settings.train_ratio} leaves none of the {data.size} transitions of '
            f'{settings.dataset} to train on'
        )
    return KeySampler(data, settings.batch_size, settings.train_ratio, seed)


class KeySampler:
    """Batches by the keys of ``sample_jax``; held-out ones, and online halves, by numpy's PCG64.

    The original leaves its datasets unseeded: the chain of keys is that of seed 42, whatever the
    run's seed, and the split, held-out batches and online halves differ from run to run. Here the
    latter have a stream of the run's seed each.
    """

    def __init__(self, data: DeviceDataset, batch_size: int, train_ratio: float, seed: int):
        self.key = initial_key(None)
        self.held_out_stream = np.random.default_rng(seed)
        self.mixing_stream = np.random.default_rng(seed)
        self.batch_size = batch_size
        self.train, self.held_out = data, None
        if train_ratio < 1:
            parts = episodes.split_rows(data.size, train_ratio, np.random.default_rng(seed))
            self.train, self.held_out = (data.select(rows) for rows in parts)
            self.batch()  # the original's launcher drops one

    def batch(self) -> dict:
        """Draw the next batch to train on."""
        self.key, batch = self.train.sample_next(self.key, self.batch_size)
        return batch

    def held_out_batch(self) -> dict | None:
        """Draw a batch of the transitions that are not trained on; None without such."""
        if self.held_out is None:
            return None
        idxs = self.held_out_stream.integers(self.held_out.size, size=self.batch_size)
        return self.held_out.take(idxs)

    def mixed_batch(self, online: dict, num: int) -> dict:
        """Append `num` of the transitions to train on to a batch of online ones."""
        idxs = self.mixing_stream.integers(self.train.size, size=num)
        offline = self.train.take(idxs)
        return {key: trees.map(_joined, online[key], rows) for key, rows in offline.items()}

    def state(self) -> dict:
        """Return what `set_state` needs to go on."""
        return {
            'key': self.key.numpy(),
            'held_out_stream': self.held_out_stream.bit_generator.state,
            'mixing_stream': self.mixing_stream.bit_generator.state,
        }

    def set_state(self, state: dict) -> None:
        self.key = torch.from_numpy(np.array(state['key']))
        self.held_out_stream.bit_generator.state = state['held_out_stream']
        self.mixing_stream.bit_generator.state = state['mixing_stream']


def _joined(rows, tensor):
    return torch.cat([torch.as_tensor(rows, device=tensor.device), tensor])


class ImageSampler:
    """Batches of images by numpy's PCG64 stream of the seed, all of them to train on.

    The original's iterator draws the same batches.
    """

    def __init__(self, data: MemoryEfficientReplayBuffer, batch_size: int, seed: int, keys):
        self.data = data
        self.batch_size = batch_size
        self.keys = keys
        self.stream = np.random.default_rng(seed)

    def batch(self) -> dict:
        """Draw the next batch."""
        return self.data.sample(self.batch_size, self.stream, keys=self.keys)

    def held_out_batch(self) -> None:
        """Nothing is held out."""

    def state(self) -> dict:
        return {'stream': self.stream.bit_generator.state}

    def set_state(self, state: dict) -> None:
        self.stream.bit_generator.state = state['stream']
