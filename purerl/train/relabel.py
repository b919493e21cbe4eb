"""Makes the HDF5 files of InFOM's phases from ExORL's episodes.

Counterpart of ``data_gen_scripts/generate_exorl_dataset.py`` of chongyi-zheng/infom @ f0356dd.
"""

import dataclasses
from pathlib import Path

from purerl.data import exorl
from purerl.train.config import RunError, setting


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which episodes become which file."""

    env_name: str | None = setting(None, 'Task of dm_control, such as walker_flip.')
    episodes: str | None = setting(
        None,
        'Folder of episode_<index>_<length>.npz; by default where the download of ExORL puts them: '
        '~/.exorl/expl_datasets/<domain>/<algorithm>/buffer.',
    )
    algorithm: str = setting('rnd', 'What explored for the data; part of the default paths.')
    rewards: bool = setting(
        True,
        "Add the task's rewards, computed from the stored physics; --norewards makes the data of "
        'pretraining.',
    )
    skip_size: int = setting(0, 'Number of transitions to leave out at the start.', minimum=0)
    dataset_size: int = setting(
        5_000_000, 'Number of transitions to train on; whole episodes only.', minimum=1
    )
    val_size: int = setting(
        50_000,
        'Number of transitions to validate on, which follow those; 0 writes no such file.',
        minimum=0,
    )
    path: str | None = setting(
        None,
        'File to write, ending in .hdf5; by default where it is looked for: '
        '~/.exorl/data/<algorithm>_reward_labeled_<env_name>.hdf5, or without rewards '
        '<algorithm>_reward_free_<domain>.hdf5. The validation part gets _val before the ending.',
    )


def relabel(settings):
    """Aggregates episodes, and prints the paths.

    Args:
        settings: The flags.

    Returns:
        The list of paths written.

    Raises:
        RunError: If a flag is missing or wrong, a package is not installed, or a file cannot be
            written.
        DatasetError: If the episodes are missing, too few or damaged.
    """
    if settings.env_name is None:
        raise RunError('which task? --env_name=walker_flip, for one')
    files = exorl.exorl_files(settings.env_name, settings.algorithm)
    path = Path(settings.path or files['finetuning' if settings.rewards else 'pretraining'])
    path = path.expanduser()
    if path.suffix not in ('.hdf5', '.h5'):
        raise RunError(f'{path} must end in .hdf5')
    episodes = settings.episodes or exorl.episode_folder(settings.env_name, settings.algorithm)
    parts = {path: (settings.skip_size, settings.dataset_size)}
    if settings.val_size:
        validation_path = path.with_name(f'{path.stem}_val{path.suffix}')
        parts[validation_path] = (settings.skip_size + settings.dataset_size, settings.val_size)
    try:
        for part_path, (skip_size, max_size) in parts.items():
            arrays = exorl.load_episodes(
                Path(episodes).expanduser(),
                env_name=settings.env_name if settings.rewards else None,
                skip_size=skip_size,
                max_size=max_size,
                action_clip_eps=None,
            )
            exorl.save(part_path, arrays)
            print(f'wrote {part_path} ({len(arrays["masks"])} transitions)')
    except (ImportError, OSError) as error:
        raise RunError(str(error)) from error
    return list(parts)
