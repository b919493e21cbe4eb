"""One entrance to all dataset formats."""

import os
from pathlib import Path

from purerl.data import binary, d4rl, exorl, minari, ogbench
from purerl.data.check import DatasetError

OGBENCH_FOLDER = '~/.ogbench/data'  # where OGBench keeps its downloads


def load_dataset(path_or_name: str | os.PathLike, **options) -> tuple[dict, dict | None]:
    """Load a dataset from the disk; nothing is downloaded.

    Args:
        path_or_name: `<file>.npz` (OGBench), `<file>.hdf5` or `.h5` (D4RL, or what InFOM makes of
            ExORL), `<domain>2_sparse.npy` (AWAC's binary Adroit data), a folder with ExORL's
            episodes or a Minari dataset; or a name: a task of dm_control, whose labelled data is in
            ~/.exorl/data (walker_flip), a file in there (rnd_reward_free_walker), an OGBench
            dataset in ~/.ogbench/data (cube-single-play-v0; single-task names get that task's
            rewards), a binary Adroit dataset in ~/.datasets/awac_data (pen-binary-v0), else a
            Minari identifier (D4RL/door/human-v2).
        **options: passed to the format's `load` (`load_pair` of OGBench and ExORL).

    Returns:
        The training arrays, and the validation arrays where the format has them (OGBench's `-val`
        file, ExORL's `_val` file), else None.

    Raises:
        DatasetError: if there is no such dataset, or it is damaged.
    """
    path = Path(path_or_name).expanduser()
    if path.suffix == '.npz':
        return ogbench.load_pair(path, **options)
    if path.suffix in ('.hdf5', '.h5'):
        if exorl.is_aggregated(path):
            return exorl.load_pair(path, **options)
        return d4rl.load(path, **options), None
    if path.suffix == '.npy':
        return binary.load(path, **options), None
    if path.is_dir():
        if exorl.holds_episodes(path):
            return exorl.load_pair(path, **options)
        return minari.load(path, **options), None
    if path.suffix or path.is_file():
        raise DatasetError(
            f'{path}: unknown dataset format {path.suffix!r}; expected .npz (OGBench), .hdf5 or '
            '.h5 (D4RL, ExORL), .npy (AWAC), or the folder of a Minari dataset or of ExORL episodes'
        )
    if '/' in str(path_or_name):
        return minari.load(str(path_or_name), **options), None
    binary_path = binary.find(str(path_or_name))
    if binary_path is not None:
        return binary.load(binary_path, **options), None
    exorl_path = exorl.find(str(path_or_name))
    if exorl_path is not None:
        return exorl.load_pair(exorl_path, **options)
    names = ogbench.parse_name(str(path_or_name))
    if 'singletask' in names.env_name:
        options = {'env_name': names.env_name, **options}
    return ogbench.load_pair(
        Path(OGBENCH_FOLDER).expanduser() / f'{names.file_stem}.npz', **options
    )
