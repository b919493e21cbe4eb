"""What the loaders share: arrays out of npz and HDF5 files, actions kept off their bounds."""

import os
import warnings
import zipfile
import zlib
from collections.abc import Iterable

import numpy as np

from purerl.data.check import ACTION_BOUND, DatasetError


def read_npz(path: str | os.PathLike, keys: Iterable[str]) -> dict:
    """Read those of `keys` that an npz file has.

    Raises:
        DatasetError: if the file is damaged or holds pickled objects; the message names the key.
    """
    arrays, key = {}, None
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in keys:
                if key in file:
                    arrays[key] = file[key]
    # RuntimeError and NotImplementedError: zipfile takes damaged headers for encryption and such.
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        at = f' at key {key!r}' if key else ''
        raise DatasetError(
            f'{path}: not a readable npz file{at} ({error}); it is cut off or damaged, so collect '
            'or download it again'
        ) from error
    return arrays


def read_hdf5(path: str | os.PathLike, keys: Iterable[str], max_size: int | None = None) -> dict:
    """Read those of `keys` that an HDF5 file has, of each the first `max_size` rows or all.

    Raises:
        DatasetError: if the file is damaged.
        ImportError: if h5py is not installed.
    """
    h5py = import_h5py()
    arrays = {}
    try:
        with h5py.File(path, 'r') as file:
            for key in keys:
                if isinstance(file.get(key), h5py.Dataset):
                    arrays[key] = file[key][()] if max_size is None else file[key][:max_size]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f'{path}: not a readable HDF5 file ({error}); it is cut off or damaged, so make or '
            'download it again'
        ) from error
    return arrays


def import_h5py():
    """Return the module h5py.

    Raises:
        ImportError: if it is not installed; the message says what to do.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 datasets need h5py: pip install 'purerl[d4rl]'") from error
    return h5py


def clip_actions(arrays: dict, eps: float | None, where: str) -> dict:
    """Return a dataset with its actions, unless they are integers, clipped to [-1 + eps, 1 - eps].

    A warning says so where more than rounding is lost.

    Args:
        arrays: with `actions`.
        eps: distance from the bounds; None leaves the actions as they are.
        where: the dataset's name, for the warning.
    """
    actions = arrays['actions']
    if eps is None or actions.dtype.kind != 'f':
        return arrays
    largest = np.abs(actions).max(initial=0)
    if largest > ACTION_BOUND:
        warnings.warn(
            f'{where}: actions reach {largest:.4g} and are clipped to 1, which environments take '
            'here for their bound; divide them by the bound of the action space',
            stacklevel=3,
        )
    return {**arrays, 'actions': np.clip(actions, -1 + eps, 1 - eps)}
