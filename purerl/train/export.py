"""The transitions that an online run has gathered, as a dataset in D4RL's format.

A run that is still far from its end gives what D4RL calls a medium-replay dataset: everything that
an agent went through until it was mediocre.
"""

import sys
from pathlib import Path

import numpy as np

from purerl.data import d4rl
from purerl.train.config import RunError
from purerl.train.load_run import load_run


def export_replay(
    run: str | Path,
    path: str | Path,
    step: int | None = None,
    trained_seed: int | None = None,
    num_transitions: int | None = None,
) -> list[Path]:
    """Write a run's replay buffer to a file.

    Args:
        run: folder of a run of `experiments.online`, or of `experiments.offline_to_online` that
            has come online.
        path: the file to write, ending in `.hdf5`.
        step: step of the run's checkpoint, whose buffer is written; None for the latest.
        trained_seed: which of the run's seeds; None for the first.
        num_transitions: write only this many, the oldest ones; None for all.

    Returns:
        A list with the path written.

    Raises:
        RunError: if there is no such run, or it has no replay buffer of plain vectors.
        ValueError: if an argument is not as described.
        CheckpointError: if there is no such checkpoint.
    """
    if Path(path).suffix != '.hdf5':
        raise ValueError(f"{path} must end in '.hdf5': a replay buffer is written in D4RL's format")
    trained = load_run(run, step)
    trained_seed = trained.seeds[0] if trained_seed is None else trained_seed
    if trained_seed not in trained.seeds:
        seeds = ', '.join(map(str, trained.seeds))
        raise ValueError(f'{run} has trained the seeds {seeds}, not {trained_seed}')
    states = trained.state if isinstance(trained.state, list) else []
    state = states[trained.seeds.index(trained_seed)]['buffer'] if states else None
    # An offline run has none; those of experiments.rrd hold episodes, in another arrangement.
    if not (state or {}).get('size'):
        raise RunError(
            f'{run} has no replay buffer that can be exported; runs of experiments.online have one'
        )
    arrays = to_d4rl(state)
    if trained.flags['loop'] == 'offline_to_online':  # which stores shifted rewards
        arrays['rewards'] = arrays['rewards'] - d4rl.reward_shift(trained.flags['env_name'])
    held = len(arrays['rewards'])
    if num_transitions is not None and num_transitions > held:
        print(
            f'warning: the replay buffer holds {held} transitions, fewer than '
            f'num_transitions={num_transitions}',
            file=sys.stderr,
        )
    d4rl.save(path, {key: array[:num_transitions] for key, array in arrays.items()})
    return [Path(path)]


def to_d4rl(state: dict) -> dict:
    """Arrange a replay buffer as D4RL's files hold transitions.

    Args:
        state: `ReplayBuffer.state_dict`'s result.

    Returns:
        A dict of arrays observations, actions, next_observations, rewards and the booleans
        terminals and timeouts, from the oldest transition to the latest.

    Raises:
        RunError: if observations are dicts.
    """
    size = int(state['size'])
    start = int(state['pointer']) if size == int(state['capacity']) else 0
    order = (np.arange(size) + start) % size

    def column(key):
        if f'arrays/{key}' not in state:
            raise RunError(f'the replay buffer has no array of {key}: only vectors are exported')
        return np.asarray(state[f'arrays/{key}'])[order]

    actions = np.clip(column('actions'), -1, 1)  # as the environment took them
    ends = column('dones').astype(bool)
    terminals = column('masks') == 0
    return {
        **{key: column(key) for key in ('observations', 'next_observations', 'rewards')},
        'actions': actions,
        'terminals': terminals,
        'timeouts': ends & ~terminals,
    }
