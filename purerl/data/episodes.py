"""What jaxrl5 does to whole episodes: split, filter by return, normalise returns.

Counterpart of the methods of ``jaxrl5/data/dataset.py`` (philippe-eecs/IDQL @ 7582571), as
functions from a dict of arrays to a new one. Steps after the last episode's end belong to no
episode.

    arrays = episodes.filter_returns(arrays, take_top=10)
    arrays = episodes.normalize_returns(arrays)
    train, held_out = episodes.split(arrays, 0.95, np.random.default_rng(seed))

Deviation from the original: `normalize_returns` refuses data whose returns are all equal (one
episode, for instance), which the original turns into infinite rewards.
"""

from typing import NamedTuple

import numpy as np

from purerl.core import trees
from purerl.data import sampling
from purerl.data.check import DatasetError, length


class Boundaries(NamedTuple):
    """Where episodes lie, and what they returned.

    Attributes:
        starts: first index of each episode, that of an unfinished last one included.
        ends: index after the last step of each finished episode.
        returns: undiscounted return of each finished episode, summed step by step in the rewards'
            dtype (float32 as a rule), as the original sums under numpy 2.
    """

    starts: np.ndarray
    ends: np.ndarray
    returns: np.ndarray


def episode_ends(arrays: dict, name: str = 'dataset') -> np.ndarray:
    """Return whether each transition is its episode's last: (N,) bool.

    InFOM's datasets say so in `terminals`, jaxrl5's in `dones`.

    Raises:
        DatasetError: if there is neither.
    """
    ends = arrays.get('dones', arrays.get('terminals'))
    if ends is None:
        raise DatasetError(
            f"{name}: there is neither 'terminals' nor 'dones' to find episodes by; collect the "
            'data with episode ends, or go without goals, frame stacking and returns'
        )
    return ends > 0


def boundaries(arrays: dict, name: str = 'dataset') -> Boundaries:
    """Find the episodes of a dataset and sum their rewards.

    Raises:
        DatasetError: if it does not say where episodes end.
    """
    ends = np.flatnonzero(episode_ends(arrays, name)) + 1
    starts = np.concatenate([[0], ends[ends < length(arrays)]])
    rewards = arrays['rewards']
    # An accumulation is strictly sequential; np.sum adds in pairs and rounds differently.
    returns = [np.add.accumulate(rewards[i:j])[-1] for i, j in zip(starts, ends, strict=False)]
    return Boundaries(starts, ends, np.array(returns, dtype=rewards.dtype))


def filter_returns(
    arrays: dict,
    take_top: float | None = None,
    threshold: float | None = None,
    name: str = 'dataset',
) -> dict:
    """Keep the finished episodes with the highest returns.

    Args:
        take_top: keep this percentage of the episodes, or
        threshold: keep episodes that return at least this much (one of the two).
        name: the dataset's, for messages.

    Returns:
        A new dict of arrays; without rows if no episode reaches the threshold.

    Raises:
        DatasetError: if the dataset does not say where episodes end, or `take_top` finds none.
        ValueError: unless exactly one of `take_top` and `threshold` is given.
    """
    if (take_top is None) == (threshold is None):
        raise ValueError('filter_returns takes either take_top or threshold')
    starts, ends, returns = boundaries(arrays, name)
    if take_top is not None:
        _need_episodes(returns, name)
        threshold = np.percentile(returns, 100 - take_top)
    keep = np.zeros(length(arrays), dtype=bool)
    for start, end, episode_return in zip(starts, ends, returns, strict=False):
        keep[start:end] = episode_return >= threshold
    return trees.map(lambda array: array[keep], arrays)


def normalize_returns(arrays: dict, scaling: float = 1000.0, name: str = 'dataset') -> dict:
    """Divide rewards by the range of the episodes' returns and multiply them by `scaling`.

    Raises:
        DatasetError: if there is no finished episode, or all returns are equal.
    """
    returns = boundaries(arrays, name).returns
    _need_episodes(returns, name)
    span = returns.max() - returns.min()
    if span == 0:
        raise DatasetError(
            f'{name}: all {len(returns)} episodes return {returns[0]}: returns without a range '
            'cannot be normalised; use more episodes, or leave the rewards as they are'
        )
    return {**arrays, 'rewards': arrays['rewards'] / span * arrays['rewards'].dtype.type(scaling)}


def split(arrays: dict, ratio: float, rng) -> tuple[dict, dict]:
    """Shuffle transitions and split them in two.

    Args:
        ratio: share of the first part, in (0, 1).
        rng: random source, see `purerl.data.sampling`; the original's is
            ``np.random.default_rng(seed)``.

    Returns:
        Two dicts of arrays, with int(N * ratio) and the remaining rows.
    """
    return tuple(
        trees.map(lambda array, rows=rows: array[rows], arrays)
        for rows in split_rows(length(arrays), ratio, rng)
    )


def split_rows(num: int, ratio: float, rng) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the two parts of `num` transitions that `split` makes.

    Raises:
        ValueError: if `ratio` is not between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ValueError(f'ratio must lie between 0 and 1, got {ratio}')
    order = sampling.resolve(rng).permutation(num)
    first = int(num * ratio)
    return order[:first], order[first:]


def _need_episodes(returns, name):
    if len(returns) == 0:
        raise DatasetError(
            f'{name}: there is no finished episode (dones are all 0), so there are no returns; '
            'collect the data with episode ends'
        )
