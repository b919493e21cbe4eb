"""OGBench's npz files, for agents of InFOM.

A file holds `observations`, `actions` and `terminals`, one row per state: an episode of T
transitions has T + 1 rows, the last of which is marked in `terminals`. `qpos`, `qvel` and
`button_states`, where present, let OGBench compute the rewards of a single-task variant.

Counterpart of ``ogbench.utils.load_dataset`` (compact_dataset=False) and of
``envs/{ogbench_utils,env_utils}.py`` of chongyi-zheng/infom @ f0356dd, which never sees a file that
is cut off: this loader refuses one.
"""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from purerl.core.files import atomic_path
from purerl.data import archives
from purerl.data.check import DatasetError, check_arrays
from purerl.envs.make import make_base
from purerl.envs.wrappers import seed_env

REQUIRED = ('observations', 'actions', 'terminals')
INFO = ('qpos', 'qvel', 'button_states')


class Names(NamedTuple):
    """What a dataset name stands for.

    Attributes:
        env_name: the gymnasium environment.
        file_stem: the file's name, without `.npz` (training) or `-val.npz` (validation).
    """

    env_name: str
    file_stem: str


def parse_name(dataset_name: str) -> Names:
    """Take a dataset name apart, as the original's ``make_env_and_datasets``.

    For example cube-single-play-singletask-task2-v0 is recorded in cube-single-play-v0.npz from
    cube-single-singletask-task2-v0; ...-play-ft-singletask-v0 is InFOM's finetuning data.

    Raises:
        DatasetError: if the name has too few parts.
    """
    parts = dataset_name.split('-')
    at = parts.index('singletask') if 'singletask' in parts else len(parts) - 1
    kind = 2 if 'ft' in parts[:at] else 1  # how many parts name the kind of data
    if len(parts) - 1 < at or at <= kind:
        raise DatasetError(
            f'{dataset_name!r} is no OGBench dataset name; one looks like cube-single-play-v0 or '
            'cube-single-play-singletask-task1-v0'
        )
    env_name = '-'.join(parts[: at - kind] + parts[at:])
    return Names(env_name, '-'.join([*parts[:at], parts[-1]]))


def load(
    path: str | os.PathLike,
    *,
    env_name: str | None = None,
    env=None,
    add_info: bool = False,
    action_clip_eps: float | None = 1e-5,
    max_size: int | None = None,
) -> dict:
    """Load one file as transitions.

    Args:
        path: an npz file.
        env_name: a single-task environment (`parse_name`): adds `rewards` and `masks` of its task,
            computed by OGBench.
        env: that environment, if there is one already; it is reset.
        add_info: keep `qpos`, `qvel` and `button_states`.
        action_clip_eps: clip actions to [-1 + eps, 1 - eps]; None leaves them.
        max_size: keep only this many transitions, from the start.

    Returns:
        observations, next_observations (N, ...; uint8 where the file's are integers, else
        float32), actions (N, A), terminals (N,; 1 at the last transition of an episode) and
        what is asked for above.

    Raises:
        DatasetError: if the file is missing, damaged, or not such a dataset.
    """
    arrays = _to_transitions(read(path), str(path))
    with _environment(env_name, env) as task_env:
        if task_env is not None:
            relabel(arrays, env_name, task_env, str(path))
    if not add_info:
        arrays = {key: value for key, value in arrays.items() if key not in INFO}
    if max_size is not None:
        arrays = {key: value[:max_size] for key, value in arrays.items()}
    return archives.clip_actions(arrays, action_clip_eps, str(path))


def load_pair(
    path: str | os.PathLike, *, env_name: str | None = None, env=None, **options
) -> tuple[dict, dict | None]:
    """Load a training file and, if it lies beside it, its `-val` file (else None).

    Takes the options of `load`, which apply to both.
    """
    path = Path(path)
    validation_path = path.with_name(f'{path.stem}-val{path.suffix}')
    with _environment(env_name, env) as task_env:
        train = load(path, env_name=env_name, env=task_env, **options)
        if not validation_path.exists():
            return train, None
        return train, load(validation_path, env_name=env_name, env=task_env, **options)


def read(path: str | os.PathLike) -> dict:
    """Read and check the arrays of a file, one row per state."""
    if not Path(path).is_file():
        raise DatasetError(
            f'{path}: no such file; check the path, download it with ogbench.download_datasets, or '
            'make it with the collector'
        )
    arrays = archives.read_npz(path, (*REQUIRED, *INFO))
    arrays = check_arrays(arrays, str(path), required=REQUIRED)
    if arrays['observations'].dtype.kind in 'ib':
        arrays['observations'] = arrays['observations'].astype(np.float32)
    return arrays


def relabel(arrays: dict, env_name: str, env, where: str = 'dataset') -> None:
    """Add the rewards and masks of a single-task environment, as OGBench computes them.

    Args:
        arrays: transitions with `qpos` (and `button_states` for scenes and puzzles); changed in
            place.
        env_name: for example cube-single-singletask-task1-v0.
        env: that environment; it is reset.
        where: the file's name, for messages.

    Raises:
        DatasetError: if OGBench cannot relabel this data for this environment.
    """
    from ogbench.relabel_utils import relabel_dataset

    try:
        relabel_dataset(env_name, env, arrays)
    except KeyError as error:
        raise DatasetError(
            f'{where}: the key {error} is missing, from which the rewards of {env_name} are '
            'computed; use the file as OGBench distributes it'
        ) from error
    except (AssertionError, ValueError) as error:
        raise DatasetError(f'{where}: OGBench has no rewards for {env_name}: {error}') from error


def save(path: str | os.PathLike, arrays: dict) -> None:
    """Write a dataset in OGBench's format, whole or not at all.

    Args:
        path: the file to write (an existing one is replaced).
        arrays: observations, actions, terminals and perhaps qpos, qvel, button_states; one row
            per state, so that each episode ends with a row for its last state, marked in
            terminals.

    Raises:
        DatasetError: if the arrays are no such dataset; nothing is written.
        OSError: if the disk is full; nothing half-written is left.
    """
    _check_last_row(check_arrays(arrays, str(path), required=REQUIRED), str(path))
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        np.savez_compressed(file, **arrays)


@contextmanager
def _environment(env_name: str | None, env):
    """Provide the environment to relabel with: the one given, or one that is closed again."""
    if env_name is None or env is not None:
        yield env
        return
    try:
        env = make_base(env_name)
    except ValueError as error:
        raise DatasetError(f'no rewards without their environment: {error}') from error
    # The task is fixed; the seed is for what else a reset draws, in mazes from a global stream.
    seed_env(env, 0)
    try:
        yield env
    finally:
        env.close()


def _to_transitions(arrays: dict, where: str) -> dict:
    _check_last_row(arrays, where)
    is_last = arrays['terminals'] > 0  # rows of last states, which have no action
    has_next = ~is_last
    if not has_next.any():
        raise DatasetError(f'{where}: every row is the end of an episode, no transitions are left')
    transitions = {key: value[has_next] for key, value in arrays.items()}
    transitions['next_observations'] = arrays['observations'][1:][has_next[:-1]]
    transitions['terminals'] = arrays['terminals'][1:][has_next[:-1]]
    return transitions


def _check_last_row(arrays, where):
    terminals = arrays['terminals']
    if terminals[-1] == 0:
        raise DatasetError(
            f"{where}: 'terminals' is 0 at the last row, index {len(terminals) - 1}: the last "
            'episode is cut off; collect or download the file again, or drop that episode'
        )
