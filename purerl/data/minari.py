"""Minari datasets (https://minari.farama.org), as transitions.

Needs minari (the extra `minari`).
"""

import os
from pathlib import Path

import numpy as np
from gymnasium.spaces import Box

from purerl.core import trees
from purerl.data import archives
from purerl.data.check import DatasetError, check_arrays


def load(name_or_path: str | os.PathLike, *, action_clip_eps: float | None = None) -> dict:
    """Load a local Minari dataset; nothing is downloaded.

    Args:
        name_or_path: a dataset's identifier (D4RL/door/human-v2), looked up where minari keeps its
            datasets, or a dataset's folder.
        action_clip_eps: clip actions to [-1 + eps, 1 - eps]; None leaves them.

    Returns:
        observations, next_observations (N, ..., nested dicts for Dict spaces), actions (N, A),
        rescaled from a bounded action space to [-1, 1] (as `purerl.envs.make` does to
        environments), rewards, masks (1 - terminated) and terminals (1 at the last transition of an
        episode), (N,) each.

    Raises:
        DatasetError: if the dataset is missing, damaged, or holds spaces that are no arrays.
    """
    where = str(name_or_path)
    try:
        dataset = _open(name_or_path)
        parts = [_to_transitions(episode, where) for episode in dataset.iterate_episodes()]
    except (DatasetError, ImportError):
        raise
    except Exception as error:  # minari's storages let any error of their file formats through
        raise DatasetError(
            f'{where}: minari cannot read the dataset ({type(error).__name__}: {error}); check its '
            f'name, or fetch it again with: minari download {where}'
        ) from error
    if not parts:
        raise DatasetError(f'{where}: the dataset has no episodes; collect or download it again')
    arrays = trees.map(lambda *episodes: np.concatenate(episodes), *parts)
    arrays = check_arrays(arrays, where, required=('observations', 'actions', 'rewards'))
    arrays['actions'] = _rescaled(arrays['actions'], dataset.action_space)
    return archives.clip_actions(arrays, action_clip_eps, where)


def _open(name_or_path):
    try:
        import minari
    except ImportError as error:
        raise ImportError("Minari datasets need minari: pip install 'purerl[minari]'") from error
    path = Path(name_or_path)
    if path.is_dir():
        return minari.MinariDataset(path / 'data' if (path / 'data').is_dir() else path)
    return minari.load_dataset(str(name_or_path))


def _rescaled(actions, space):
    """Actions of a bounded space as actions from -1 to 1."""
    if not isinstance(space, Box) or not space.is_bounded():
        return actions
    if (space.low == -1).all() and (space.high == 1).all():
        return actions
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return (2 * (actions - low) / (high - low) - 1).astype(np.float32)


def _to_transitions(episode, where: str) -> dict:
    """Turn an episode of T steps, with its T + 1 observations, into T transitions."""
    steps = len(episode.rewards)
    for path, array in trees.leaves_with_path(episode.observations):
        if not isinstance(array, np.ndarray) or len(array) != steps + 1:
            raise DatasetError(
                f'{where}: {"/".join(("observations", *path))!r} of episode {episode.id} is no '
                f'array of {steps + 1} rows; flatten the observation space, or collect it again'
            )
    if not isinstance(episode.actions, np.ndarray):
        raise DatasetError(f"{where}: 'actions' is no array; flatten the action space")
    ends = np.zeros(steps, dtype=np.float32)
    ends[-1:] = 1.0
    return {
        'observations': trees.map(lambda array: array[:-1], episode.observations),
        'next_observations': trees.map(lambda array: array[1:], episode.observations),
        'actions': episode.actions,
        'rewards': np.asarray(episode.rewards, dtype=np.float32),
        'masks': 1.0 - np.asarray(episode.terminations, dtype=np.float32),
        'terminals': ends,
    }
