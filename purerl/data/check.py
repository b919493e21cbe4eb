"""One checker for every dataset: what is wrong, in which file, under which key, from which row."""

import difflib
from collections.abc import Iterable

import numpy as np

from purerl.core import trees

_PER_STEP = ('rewards', 'masks', 'terminals', 'dones', 'timeouts')  # one number per transition
_FLAGS = ('terminals', 'dones', 'timeouts')  # zero or one
_AS_FLOAT = ('rewards', 'masks', 'terminals')  # float32 in every batch
ACTION_BOUND = 1.0 + 1e-4  # rounding is let through


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names the file, the key and the remedy."""


def check_arrays(
    arrays: dict, where: str, required: Iterable[str] = (), values: bool = True
) -> dict:
    """Check a dataset and cast it once to the library's dtypes.

    Args:
        arrays: dict of arrays (or nested dicts of them), time along the first axis.
        where: the file or the dataset's name, for messages.
        required: keys that must be present.
        values: also look at every number (finite, flags 0 or 1, masks in [0, 1]).

    Returns:
        A dict of the same structure: 16- and 64-bit floats as float32; rewards, masks and
        terminals as float32; dones as bool. Arrays that have the right dtype are not copied.

    Raises:
        DatasetError: at the first fault found.
    """
    _check_keys(arrays, where, required)
    cast = {}
    for key in sorted(arrays):
        cast[key] = _cast_tree(arrays[key], key, where)
    length = _check_lengths(cast, where)
    if length == 0:
        raise DatasetError(f'{where}: the dataset is empty (0 transitions); collect it again')
    _check_shapes(cast, where)
    if values:
        for path, array in trees.leaves_with_path(cast):
            check_values(array, '/'.join(path), where)
    return cast


def length(arrays: dict) -> int:
    """Return the number of rows of a checked dataset."""
    return len(trees.leaves(arrays)[0])


def check_values(array: np.ndarray, key: str, where: str) -> None:
    """Raise a DatasetError at the first row of `array` that no dataset may hold."""
    if array.dtype.kind == 'f':
        _reject_rows(~np.isfinite(array), array, key, where, 'a non-finite value')
    if key in _FLAGS:
        _reject_rows((array != 0) & (array != 1), array, key, where, 'a flag other than 0 and 1')
    if key == 'masks':
        _reject_rows((array < 0) | (array > 1), array, key, where, 'a mask outside [0, 1]')


def _check_keys(arrays, where, required):
    if not isinstance(arrays, dict):
        raise DatasetError(f'{where}: expected a dict of arrays, got {type(arrays).__name__}')
    for key in required:
        if key in arrays:
            continue
        close = difflib.get_close_matches(key, arrays, n=1, cutoff=0.75)
        hint = f'; did you mean {close[0]!r}?' if close else '.'
        have = ', '.join(sorted(arrays)) or 'nothing'
        raise DatasetError(
            f'{where}: the key {key!r} is missing (the dataset has: {have}){hint} '
            'Collect it again, or choose a loader for its format.'
        )


def _cast_tree(node, path, where):
    if isinstance(node, dict):
        return {name: _cast_tree(node[name], f'{path}/{name}', where) for name in sorted(node)}
    array = np.asarray(node)
    if array.dtype.kind not in 'fiub':
        raise DatasetError(
            f'{where}: {path!r} has dtype {array.dtype}, which is not numeric; '
            'save it as float32, uint8 or integers'
        )
    if array.ndim == 0:
        raise DatasetError(f'{where}: {path!r} is a single number; it needs one row per step')
    if path in _AS_FLOAT or array.dtype in (np.float64, np.float16, np.longdouble):
        with np.errstate(over='ignore'):  # what overflows becomes inf, which check_values names
            return array.astype(np.float32, copy=False)
    return array.astype(bool, copy=False) if path == 'dones' and _is_flags(array) else array


def _is_flags(array):
    return bool(((array == 0) | (array == 1)).all())


def _check_lengths(arrays, where):
    paths = trees.leaves_with_path(arrays)
    if not paths:
        raise DatasetError(f'{where}: the dataset has no arrays; collect it again')
    reference = next((pair for pair in paths if pair[0][0] == 'observations'), paths[0])
    expected = len(reference[1])
    for path, array in paths:
        if len(array) != expected:
            raise DatasetError(
                f'{where}: {"/".join(path)!r} has {len(array)} rows, but '
                f'{"/".join(reference[0])!r} has {expected}: they disagree from index '
                f'{min(len(array), expected)} on. The file is cut off or was written in parts; '
                'collect or download it again'
            )
    return expected


def _check_shapes(arrays, where):
    for key in _PER_STEP:
        if key in arrays and arrays[key].ndim != 1:
            raise DatasetError(
                f'{where}: {key!r} has shape {arrays[key].shape}; it must be one number per step'
            )
    if 'observations' not in arrays or 'next_observations' not in arrays:
        return
    following = dict(trees.leaves_with_path(arrays['next_observations']))
    for path, array in trees.leaves_with_path(arrays['observations']):
        if path in following and following[path].shape[1:] != array.shape[1:]:
            raise DatasetError(
                f'{where}: observations have shape {array.shape[1:]} per step, but '
                f'next_observations have {following[path].shape[1:]}; rebuild next_observations'
            )


def _reject_rows(bad, array, key, where, what):
    if not bad.any():
        return
    rows = bad.reshape(len(bad), -1)
    index = int(rows.any(axis=1).argmax())
    value = array.reshape(len(array), -1)[index, int(rows[index].argmax())]
    count = int(rows.any(axis=1).sum())
    raise DatasetError(
        f'{where}: {key!r} holds {what} ({value}) at index {index} ({count} such rows in all); '
        'remove these transitions or collect the data again'
    )
