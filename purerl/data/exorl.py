"""ExORL's episodes, and the HDF5 files that InFOM makes of them.

An episode is a file `episode_<index>_<length>.npz` with `observation`, `action`, `reward`,
`discount` and `physics`, one row per state: the first row's action, reward and discount belong to
no transition. A folder of them becomes transitions by `load_episodes`, with the rewards of any
task of the domain, which are computed from `physics`. `save` writes these to an HDF5 file, which
`load_file` reads.

Counterpart of ``data_gen_scripts/{dataset_aggregator,generate_exorl_dataset}.py`` and of
``get_dataset`` in ``envs/dmc_utils.py`` of chongyi-zheng/infom @ f0356dd.

Deviations from the original:
- `max_size` shortens the validation data too; the original shortens the training data twice.
- An episode is refused if its rows are not as many as its name says, or its numbers not finite.
- HDF5 files hold float32 throughout (the original's rewards are float64, cast when loaded).

HDF5 needs h5py, rewards need dm_control (the extra `dmc`).
"""

import errno
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from purerl.core.files import atomic_path
from purerl.data import archives
from purerl.data.check import DatasetError, check_arrays, check_values
from purerl.envs import dmc

FOLDER = '~/.exorl/data'  # where InFOM keeps the HDF5 files
EPISODE_FOLDER = '~/.exorl/expl_datasets'  # where it keeps ExORL's downloads
REQUIRED = ('observations', 'actions', 'next_observations', 'terminals', 'masks')
_EPISODE = ('observation', 'action', 'discount')
_EPISODE_NAME = re.compile(r'.+_(\d+)_(\d+)\.npz')
_FILE_NAME = re.compile(r'\w+_reward_(free|labeled)_\w+')


def exorl_files(
    env_name: str, algorithm: str = 'rnd', folder: str | os.PathLike | None = None
) -> dict[str, Path]:
    """Name the HDF5 files of both phases, as the original's ``get_dataset``.

    Args:
        env_name: a task of dm_control, such as walker_flip.
        algorithm: what explored for the data.
        folder: where the files are; `FOLDER` by default.

    Returns:
        The paths 'pretraining' (the domain's reward-free data) and 'finetuning' (the task's
        labelled data). The validation data beside them end in `_val.hdf5`.

    Raises:
        DatasetError: if the name is not one of dm_control's.
    """
    folder = Path(FOLDER if folder is None else folder).expanduser()
    return {
        'pretraining': folder / f'{algorithm}_reward_free_{_domain(env_name)}.hdf5',
        'finetuning': folder / f'{algorithm}_reward_labeled_{env_name}.hdf5',
    }


def episode_folder(env_name: str, algorithm: str = 'rnd') -> Path:
    """Return the folder that ExORL's download has the episodes of a task's domain in."""
    return Path(EPISODE_FOLDER).expanduser() / _domain(env_name) / algorithm / 'buffer'


def find(name: str) -> Path | None:
    """Find an HDF5 file by the name of a task (its labelled data) or by its own, without ending.

    Returns:
        Its path in `FOLDER`, whether it exists or not; None where the name is of neither form.
    """
    if dmc.is_dmc(name):
        return exorl_files(name)['finetuning']
    if _FILE_NAME.fullmatch(name):
        return Path(FOLDER).expanduser() / f'{name}.hdf5'
    return None


def holds_episodes(path: str | os.PathLike) -> bool:
    """Whether a folder has episodes of ExORL in it."""
    return any(_EPISODE_NAME.fullmatch(file.name) for file in Path(path).glob('*.npz'))


def is_aggregated(path: str | os.PathLike) -> bool:
    """Whether a file is one that `save` or InFOM wrote, rather than D4RL's HDF5."""
    try:
        with archives.import_h5py().File(path, 'r') as file:
            return 'masks' in file and 'next_observations' in file
    except OSError:
        return False


def load_pair(
    path: str | os.PathLike,
    *,
    val_size: int | None = None,
    skip_size: int = 0,
    max_size: int | None = None,
    env_name: str | None = None,
    action_clip_eps: float | None = 1e-5,
) -> tuple[dict, dict | None]:
    """Load training and validation data.

    Args:
        path: an HDF5 file, with or without a `_val` file beside it; or a folder of episodes.
        val_size: of a folder: validate on so many transitions, which follow those to train on;
            None for no validation data.
        skip_size, max_size, env_name, action_clip_eps: see `load_episodes` and `load_file`.

    Returns:
        The training arrays, and the validation arrays or None.

    Raises:
        DatasetError: if there is no such dataset, it is damaged, or an option does not apply.
    """
    path = Path(path)
    if path.is_dir():
        options = {'env_name': env_name, 'action_clip_eps': action_clip_eps}
        train = load_episodes(path, skip_size=skip_size, max_size=max_size, **options)
        if val_size is None:
            return train, None
        if max_size is None:
            raise DatasetError(f'{path}: with val_size, max_size has to say where training ends')
        return train, load_episodes(
            path, skip_size=skip_size + max_size, max_size=val_size, **options
        )
    if skip_size or val_size is not None or env_name is not None:
        raise DatasetError(
            f'{path}: skip_size, val_size and env_name are for folders of episodes; an HDF5 file '
            'holds neither episodes nor the physics that rewards are computed from'
        )
    options = {'max_size': max_size, 'action_clip_eps': action_clip_eps}
    validation_path = path.with_name(f'{path.stem}_val{path.suffix}')
    train = load_file(path, **options)
    if not validation_path.exists():
        return train, None
    return train, load_file(validation_path, **options)


def load_file(
    path: str | os.PathLike,
    *,
    max_size: int | None = None,
    action_clip_eps: float | None = 1e-5,
) -> dict:
    """Load an HDF5 file that `save` or InFOM wrote.

    Args:
        path: the file.
        max_size: read only this many transitions, from the start.
        action_clip_eps: clip actions to [-1 + eps, 1 - eps]; None leaves them.

    Returns:
        Float32 arrays observations, next_observations (N, D), actions (N, A), terminals (N,; 1 at
        the last transition of an episode), masks (N,) and, where it has them, rewards (N,).

    Raises:
        DatasetError: if the file is missing, damaged, or not such a dataset.
    """
    if not Path(path).is_file():
        raise DatasetError(
            f"{path}: no such file; check the path, or make it of ExORL's episodes with "
            'experiments.relabel'
        )
    arrays = archives.read_hdf5(path, (*REQUIRED, 'rewards'), max_size)
    arrays = check_arrays(arrays, str(path), required=REQUIRED)
    return archives.clip_actions(arrays, action_clip_eps, str(path))


def load_episodes(
    folder: str | os.PathLike,
    *,
    env_name: str | None = None,
    skip_size: int = 0,
    max_size: int | None = None,
    action_clip_eps: float | None = 1e-5,
) -> dict:
    """Load a folder of episodes as transitions.

    Args:
        folder: has `episode_<index>_<length>.npz`, taken in the order of their names.
        env_name: a task of the domain: adds `rewards` of it. None leaves rewards out.
        skip_size: leave out the episodes within the first so many transitions.
        max_size: leave out the episodes that end after `skip_size + max_size` transitions. Only
            whole episodes are taken.
        action_clip_eps: clip actions to [-1 + eps, 1 - eps]; None leaves them.

    Returns:
        Arrays as `load_file` returns them.

    Raises:
        DatasetError: if there are no such episodes, one is damaged, or there is no such task.
        ImportError: if rewards are wanted and dm_control is not installed.
    """
    paths = _select(Path(folder), skip_size, max_size)
    reward = None if env_name is None else _reward_function(env_name)
    parts = []
    for path in tqdm(paths, desc=str(folder), disable=None):
        episode = _read_episode(path, with_physics=reward is not None)
        parts.append(_transitions(episode))
        if reward is not None:
            rewards = _relabel(episode['physics'][1:], reward, path)
            parts[-1]['rewards'] = rewards.astype(np.float32)
    arrays = {key: np.concatenate([part.pop(key) for part in parts]) for key in list(parts[0])}
    arrays = check_arrays(arrays, str(folder), required=REQUIRED)
    return archives.clip_actions(arrays, action_clip_eps, str(folder))


def save(path: str | os.PathLike, arrays: dict) -> None:
    """Write transitions to an HDF5 file, whole or not at all.

    Args:
        path: the file to write (an existing one is replaced).
        arrays: what `load_episodes` returns.

    Raises:
        DatasetError: if the arrays are no such dataset; nothing is written.
        OSError: if the disk is full; nothing half-written is left.
    """
    h5py = archives.import_h5py()
    checked = check_arrays(arrays, str(path), required=REQUIRED)
    with atomic_path(path) as temporary:
        # Where the disk is full, the HDF5 library does not raise but crashes.
        needed = sum(array.nbytes for array in checked.values()) + (1 << 20)
        if shutil.disk_usage(temporary.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with h5py.File(temporary, 'w') as file:
            for key, array in checked.items():
                file.create_dataset(key, data=array)


def save_episodes(folder: str | os.PathLike, episodes: Iterable[dict]) -> None:
    """Write episodes in ExORL's format.

    Args:
        folder: is made if need be, and must not hold episodes yet.
        episodes: dicts of observation (T + 1, D), action (T + 1, A), reward, discount (T + 1, 1)
            and physics (T + 1, S); the first row's action, reward and discount are no
            transition's.

    Raises:
        DatasetError: if the folder holds episodes.
        OSError: if the disk is full; no episode is left half-written.
    """
    folder = Path(folder).expanduser()
    if holds_episodes(folder):
        raise DatasetError(f'{folder} holds episodes already; choose another folder, or empty it')
    for index, episode in enumerate(episodes):
        name = f'episode_{index:06d}_{len(episode["observation"]) - 1}.npz'
        with atomic_path(folder / name) as temporary, open(temporary, 'wb') as file:
            np.savez_compressed(file, **episode)


def _domain(env_name):
    name = dmc.split_name(env_name)
    if name is None:
        raise DatasetError(
            f'{env_name!r} is no task of dm_control; one looks like walker_flip or '
            'point_mass_maze_reach_top_left'
        )
    return name[0]


def _select(folder, skip_size, max_size):
    """Return the episodes that end after `skip_size` and not after `skip_size + max_size`."""
    end = float('inf') if max_size is None else skip_size + max_size
    chosen, size = [], 0
    for path in sorted(folder.glob('*.npz'), key=str):
        named = _EPISODE_NAME.fullmatch(path.name)
        if named is None:
            raise DatasetError(
                f'{path}: not the name of an ExORL episode, which is episode_<index>_<length>.npz; '
                'move it elsewhere'
            )
        size += int(named[2])
        if skip_size < size <= end:
            chosen.append(path)
        if size > end:
            break
    if not chosen:
        raise DatasetError(
            f'{folder}: no whole episode from transition {skip_size} on'
            + (f' among the next {max_size}' if max_size is not None else '')
            + f' (the folder was read up to transition {size}); check the path and the sizes, '
            'download ExORL, or collect episodes with experiments.collect'
        )
    return chosen


def _read_episode(path, with_physics):
    arrays = archives.read_npz(path, (*_EPISODE, 'physics') if with_physics else _EPISODE)
    physics = arrays.get('physics')
    episode = check_arrays(arrays, str(path), required=_EPISODE)
    if with_physics and physics is None:
        raise DatasetError(
            f"{path}: the key 'physics' is missing, from which rewards are computed; choose "
            'episodes with physics, or load them without rewards'
        )
    if physics is not None:
        episode['physics'] = physics  # in double precision
    length = int(_EPISODE_NAME.fullmatch(path.name)[2])
    if len(episode['observation']) != length + 1:
        raise DatasetError(
            f'{path}: {len(episode["observation"])} rows, but an episode of the {length} '
            f'transitions in its name has {length + 1}: it is cut off from index '
            f'{len(episode["observation"])} on, or renamed; collect or download it again'
        )
    episode['discount'] = episode['discount'].reshape(length + 1, -1)[:, 0]
    _check_discounts(episode['discount'], path)
    return episode


def _check_discounts(discounts, path):
    try:
        check_values(discounts, 'masks', str(path))
    except DatasetError as error:
        raise DatasetError(str(error).replace("'masks'", "'discount'")) from None


def _transitions(episode):
    masks = episode['discount'][1:]
    terminals = 1.0 - masks
    terminals[-1] = 1.0
    return {
        'observations': episode['observation'][:-1],
        'actions': episode['action'][1:],
        'next_observations': episode['observation'][1:],
        'terminals': terminals,
        'masks': masks,
    }


def _reward_function(env_name):
    try:
        return dmc.reward_function(env_name)
    except ValueError as error:
        raise DatasetError(f'no rewards without their task: {error}') from error


def _relabel(states, reward, path):
    rewards = np.empty(len(states))
    for i, state in enumerate(states):
        try:
            rewards[i] = reward(state)
        except ValueError as error:
            raise DatasetError(
                f"{path}: 'physics' at index {i + 1} is no state of this task's simulation "
                f"({error}); choose a task of the data's domain"
            ) from error
    return rewards
