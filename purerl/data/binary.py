"""The sparse Adroit datasets of AWAC, which jaxrl5 calls binary: door, pen, relocate.

Counterpart of ``jaxrl5/data/binary_datasets.py`` (philippe-eecs/IDQL @ 7582571). A dataset is a
pair of .npy files that hold pickled arrays of dicts, one per trajectory:

    pen2_sparse.npy      demonstrations: observations are dicts with `state_observation`, and
                         rewards have one entry too many
    pen_bc_sparse4.npy   rollouts of a cloned policy: plain arrays, rewards and terminals (T, 1)

Deviations from the original:
- The files are read by an unpickler that makes arrays and plain containers only.
- They are looked up in `FOLDER`, which the original names in a comment, not in its authors' own.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from purerl.core.checkpoint import CheckpointError
from purerl.core.flax_io import load_safe_pickle
from purerl.data import d4rl
from purerl.data.check import DatasetError, check_arrays

FOLDER = '~/.datasets/awac_data'
KEYS = ('observations', 'next_observations', 'actions', 'rewards', 'terminals')
_DEMONSTRATIONS, _ROLLOUTS = '2_sparse.npy', '_bc_sparse4.npy'
_TRAINING_SHARE = 0.9  # of the trajectories of each file, from the start (rlkit's split)


def find(name: str) -> Path | None:
    """Return the file of demonstrations of a name such as pen-binary-v0; None for other names."""
    domain, _, rest = name.partition('-')
    if not rest.startswith('binary'):
        return None
    return Path(FOLDER).expanduser() / f'{domain}{_DEMONSTRATIONS}'


def load(path: str | os.PathLike, *, include_bc_data: bool = True, **options) -> dict:
    """Load a dataset as jaxrl5's ``BinaryDataset`` does.

    Args:
        path: the file of demonstrations, ``<domain>2_sparse.npy``; the other one,
            ``<domain>_bc_sparse4.npy``, lies beside it.
        include_bc_data: append the cloned policy's rollouts.
        **options: see `to_dataset`.

    Returns:
        Float32 arrays observations, next_observations (N, D), actions (N, A), rewards, masks (N,)
        and bool dones (N,).

    Raises:
        DatasetError: if a file is missing, damaged, not such a dataset, or refers to anything but
            arrays and plain containers.
    """
    path = Path(path)
    if not path.name.endswith(_DEMONSTRATIONS):
        raise DatasetError(
            f'{path}: the demonstrations of a binary dataset are in a file '
            f'<domain>{_DEMONSTRATIONS}, and this is none; use it for other data in .npz'
        )
    rollouts = path.with_name(path.name.removesuffix(_DEMONSTRATIONS) + _ROLLOUTS)
    return to_dataset(
        _read(path), _read(rollouts) if include_bc_data else None, str(path), **options
    )


def to_dataset(
    demonstrations: Sequence[dict],
    rollouts: Sequence[dict] | None,
    where: str = 'binary dataset',
    *,
    clip_to_eps: bool = True,
    eps: float = 1e-5,
    remove_terminals: bool = True,
) -> dict:
    """Join the training trajectories of both kinds.

    Args:
        demonstrations: trajectories as ``<domain>2_sparse.npy`` holds them.
        rollouts: as ``<domain>_bc_sparse4.npy`` does; None for none.
        where: the file's name, for messages.
        clip_to_eps, eps: clip actions to [-1 + eps, 1 - eps].
        remove_terminals: let no state end the task: all masks are 1.

    Returns:
        What `load` returns.
    """
    parts = [_join(demonstrations, _demonstration, where)]
    if rollouts is not None:
        parts.append(_join(rollouts, _rollout, f'{where} (rollouts)'))
    try:
        transitions = {key: np.concatenate([part[key] for part in parts]) for key in KEYS}
    except ValueError as error:
        raise DatasetError(f'{where}: the two files do not belong together ({error})') from error
    arrays = d4rl.to_dataset(transitions, clip_to_eps, eps, where)
    if remove_terminals:
        arrays['masks'] = np.ones_like(arrays['masks'])
    return arrays


def _join(trajectories: Sequence[dict], arrange: Callable, where: str) -> dict:
    """Put the training trajectories one after the other."""
    used = int(_TRAINING_SHARE * len(trajectories))
    if not used:
        raise DatasetError(f'{where}: of {len(trajectories)} trajectories none is left to train on')
    try:
        rows = [arrange(trajectory) for trajectory in trajectories[:used]]
        arrays = {
            key: np.concatenate([row[key] for row in rows]).astype(np.float32) for key in KEYS
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DatasetError(
            f'{where}: no trajectories as AWAC published them ({type(error).__name__}: {error}); '
            'download the file again'
        ) from error
    return check_arrays(arrays, where, required=KEYS)


def _demonstration(trajectory: dict) -> dict:
    def states(key):
        return np.vstack([step['state_observation'] for step in trajectory[key]])

    return {
        'observations': states('observations'),
        'next_observations': states('next_observations'),
        'actions': np.vstack(list(trajectory['actions'])),
        'rewards': _column(trajectory['rewards'])[:-1],  # as rlkit, which drops the extra entry
        'terminals': _column(trajectory['terminals']),
    }


def _rollout(trajectory: dict) -> dict:
    columns = {key: _column(trajectory[key]) for key in ('rewards', 'terminals')}
    return {**{key: np.asarray(trajectory[key]) for key in KEYS}, **columns}


def _column(values) -> np.ndarray:
    """Return (T,) values, from (T,) or (T, 1)."""
    return np.asarray(values).reshape(len(values))


def _read(path: Path) -> list:
    """Return the trajectories of a .npy file."""
    if not path.is_file():
        raise DatasetError(f'{path}: no such file; it belongs to the data that AWAC published')
    try:
        with path.open('rb') as file:
            version = np.lib.format.read_magic(file)
            readers = {1: np.lib.format.read_array_header_1_0}
            shape, _, dtype = readers.get(version[0], np.lib.format.read_array_header_2_0)(file)
            if not dtype.hasobject or len(shape) != 1:
                raise ValueError(f'it holds an array {shape} of {dtype}, not of trajectories')
            return load_safe_pickle(file, objects=True)
    except (CheckpointError, OSError, ValueError) as error:
        raise DatasetError(
            f'{path}: not a readable file of trajectories ({error}); download it again'
        ) from error
