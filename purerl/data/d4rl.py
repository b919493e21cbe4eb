"""D4RL's HDF5 files, for agents of jaxrl5.

The files hold `observations`, `actions`, `rewards`, `terminals` and, mostly, `timeouts`, one row
per step. `qlearning` makes transitions of them as ``d4rl.qlearning_dataset`` does
(Farama-Foundation/D4RL, version 1.1). `to_dataset` completes them as
``jaxrl5/data/d4rl_datasets.py`` does, and `shape_rewards` rescales rewards as
``examples/states/train_diffusion_offline.py`` does (philippe-eecs/IDQL @ 7582571).

Reading and writing need h5py (the extra `d4rl`).
"""

import math
import os
from pathlib import Path

import numpy as np

from purerl.core.files import atomic_path
from purerl.data import archives, episodes
from purerl.data.check import DatasetError, check_arrays

REQUIRED = ('observations', 'actions', 'rewards', 'terminals')
_JUMP = 1e-6  # distance between a next observation and the following one that ends an episode
_LOCOMOTION = ('halfcheetah', 'walker2d', 'hopper')


def load(
    path: str | os.PathLike,
    *,
    clip_to_eps: bool = True,
    eps: float = 1e-5,
    max_episode_steps: int | None = None,
    terminate_on_end: bool = False,
) -> dict:
    """Load a file as jaxrl5's ``D4RLDataset`` does.

    Args:
        path: an HDF5 file.
        clip_to_eps, eps: clip actions to [-1 + eps, 1 - eps].
        max_episode_steps: the time limit, for old files without `timeouts`.
        terminate_on_end: keep the last step of an episode that ran into the time limit (its next
            observation is then the next episode's first).

    Returns:
        Float32 arrays observations, next_observations (N, D), actions (N, A), rewards, masks (N,)
        and bool dones (N,).

    Raises:
        DatasetError: if the file is missing, damaged, or not such a dataset.
    """
    raw = check_arrays(read(path), str(path), required=REQUIRED)
    return to_dataset(
        qlearning(raw, str(path), max_episode_steps, terminate_on_end),
        clip_to_eps,
        eps,
        str(path),
    )


def read(path: str | os.PathLike) -> dict:
    """Read the per-step arrays of an HDF5 file, (N, 1) rewards and terminals as (N,)."""
    if not Path(path).is_file():
        raise DatasetError(f'{path}: no such file; check the path, or make it with the collector')
    arrays = archives.read_hdf5(path, (*REQUIRED, 'timeouts'))
    for key in ('rewards', 'terminals', 'timeouts'):
        if key in arrays and np.ndim(arrays[key]) == 2 and arrays[key].shape[1] == 1:
            arrays[key] = arrays[key][:, 0]
    return arrays


def ends_episodes(path: str | os.PathLike, max_episode_steps: int | None = None) -> bool:
    """Return whether a file says of any row that an episode ends there.

    Args:
        path, max_episode_steps: as `load` takes them.

    Raises:
        DatasetError: as `load`.
    """
    raw = read(path)
    limit = _at_time_limit(raw, str(path), max_episode_steps)
    return bool(limit.any() or (raw['terminals'] > 0).any())


def qlearning(
    raw: dict, where: str, max_episode_steps: int | None = None, terminate_on_end: bool = False
) -> dict:
    """Make transitions of consecutive rows, as ``d4rl.qlearning_dataset``.

    The next observation of a row is the following row's; rows at the time limit are left out
    (nothing follows them), and so is the last row.

    Args:
        raw: observations, actions, rewards, terminals and perhaps timeouts, (N, ...) each.
        where: the file's name, for messages.

    Returns:
        observations, actions, next_observations, rewards and terminals, at most N - 1 rows.
    """
    if len(raw['rewards']) < 2:
        raise DatasetError(f'{where}: a transition needs two rows, the file has 1; collect more')
    keep = np.ones(len(raw['rewards']) - 1, dtype=bool)
    if not terminate_on_end:
        keep = ~_at_time_limit(raw, where, max_episode_steps)[:-1]
    transitions = {key: raw[key][:-1][keep] for key in REQUIRED}
    transitions['next_observations'] = raw['observations'][1:][keep]
    if len(transitions['rewards']) == 0:
        raise DatasetError(f'{where}: every row is at the time limit, no transitions are left')
    return transitions


def to_dataset(
    transitions: dict, clip_to_eps: bool = True, eps: float = 1e-5, where: str = 'dataset'
) -> dict:
    """Complete transitions as jaxrl5's ``D4RLDataset``: clipped actions, dones, masks.

    Args:
        transitions: what `qlearning` returns.
        where: the file's name, for messages.

    Returns:
        Float32 observations, next_observations, actions, rewards and masks (1 - terminals); bool
        dones, set at terminals, where the observations jump, and at the last row. Images of
        uint8 and actions that are integers stay so.
    """
    arrays = dict(transitions)
    terminals = arrays.pop('terminals')
    continuous = arrays['actions'].dtype.kind == 'f'
    arrays = archives.clip_actions(arrays, eps if clip_to_eps else None, where)
    observations, following = arrays['observations'], arrays['next_observations']
    dtype = np.result_type(observations, np.float32)  # differences of images would wrap around
    jumps = np.subtract(observations[1:], following[:-1], dtype=dtype)
    distances = np.linalg.norm(jumps.reshape(len(jumps), math.prod(jumps.shape[1:])), axis=1)
    dones = terminals == 1.0
    dones[:-1] |= distances > _JUMP
    dones[-1] = True
    arrays['masks'] = 1.0 - terminals
    for key, value in arrays.items():
        is_image = value.dtype == np.uint8 and value.ndim > 2
        if not is_image and (key != 'actions' or continuous):
            arrays[key] = value.astype(np.float32, copy=False)
    return {**arrays, 'dones': dones}


def shape_rewards(
    arrays: dict, env_name: str, normalize_returns: bool = True, name: str = 'dataset'
) -> dict:
    """Rescale rewards by the conventions of jaxrl5's launchers.

    Args:
        env_name: a name of D4RL or gymnasium that contains, in any case, antmaze: rewards minus 1;
            halfcheetah, walker2d or hopper: returns normalised to a range of 1000; any other, and
            OGBench's single tasks: unchanged.
        normalize_returns: False leaves the locomotion rewards as they are.
        name: the dataset's, for messages.

    Returns:
        A new dict of arrays.

    Raises:
        DatasetError: if the returns cannot be normalised.
    """
    shift = reward_shift(env_name)
    if shift:
        return {**arrays, 'rewards': arrays['rewards'] + np.float32(shift)}
    if normalize_returns and is_locomotion(env_name):
        return episodes.normalize_returns(arrays, name=name)
    return arrays


def reward_shift(env_name: str) -> float:
    """Return what jaxrl5 adds to each reward of a task: -1 in antmaze, 0 elsewhere."""
    name = env_name.lower()
    # The rewards of OGBench's tasks are -1 and 0 already.
    return -1.0 if 'antmaze' in name and 'singletask' not in name else 0.0


def is_locomotion(env_name: str) -> bool:
    """Return whether jaxrl5 normalises the returns of a task."""
    return any(domain in env_name.lower() for domain in _LOCOMOTION)


def save(path: str | os.PathLike, arrays: dict) -> None:
    """Write a dataset in D4RL's format, whole or not at all.

    Args:
        path: the file to write (an existing one is replaced).
        arrays: observations, actions, rewards, terminals and, unless each episode terminates,
            timeouts; (N, ...) each, one row per step. Further arrays are stored too.

    Raises:
        DatasetError: if the arrays are no such dataset; nothing is written.
        OSError: if the disk is full; nothing half-written is left.
    """
    h5py = archives.import_h5py()
    check_arrays(arrays, str(path), required=REQUIRED)
    # Made in memory: where the disk is full, the HDF5 library does not raise but crashes.
    with h5py.File(path, 'w', driver='core', backing_store=False) as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression='gzip')
        file.flush()
        image = file.id.get_file_image()
    with atomic_path(path) as temporary:
        temporary.write_bytes(image)


def _at_time_limit(raw, where, max_episode_steps):
    """Whether each row is the last of an episode that ran into its time limit."""
    if 'timeouts' in raw:
        return raw['timeouts'] > 0
    if max_episode_steps is None:
        raise DatasetError(
            f"{where}: the key 'timeouts' is missing, so the time limit must be known: set "
            '--env_name to a registered environment with that limit (Hopper-v5), or give '
            'max_episode_steps to purerl.data.d4rl.load'
        )
    limit = np.zeros(len(raw['terminals']), dtype=bool)
    step = 0
    for i, terminal in enumerate(raw['terminals'] > 0):
        limit[i] = step == max_episode_steps - 1
        # Parity quirk: after a terminal, D4RL counts an episode's first step as its second.
        step = 0 if limit[i] else 1 if terminal else step + 1
    return limit
