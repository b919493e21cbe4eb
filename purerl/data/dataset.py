"""Offline transitions in memory: normalisation, frame stacking, image augmentation, batches.

Counterpart of ``utils/datasets.py`` of chongyi-zheng/infom @ f0356dd. Given the numpy
``RandomState(s)``, the batches are those that the original draws after ``np.random.seed(s)``.
jaxrl5's ``Dataset.sample`` (philippe-eecs/IDQL @ 7582571) is the same call with
``np.random.default_rng(s)``; what jaxrl5 does to whole episodes is in `purerl.data.episodes`, goals
are in `purerl.data.goals`, data on a GPU in `purerl.data.device`.

Deviations from the original:
- The random source is an argument.
- Frames are stacked when a batch is drawn, instead of once for the whole dataset: the batches are
  the same, without `frame_stack` copies of the data in memory.
- Data is cast to float32 once. The original keeps float64 results until JAX truncates them.
- 'bounded' images are rescaled in floating point; the original's uint8 product wraps around.
- A last episode that is cut off is not stacked with frames of the episode before it.
- `observation_min` and `observation_max` are absent from batches, instead of None, as long as
  `normalize_observations` has not run.
"""

import warnings
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from purerl.core import trees
from purerl.data import sampling
from purerl.data.check import DatasetError, check_arrays, length
from purerl.data.episodes import episode_ends

CROP_PADDING = 3  # pixels, in every original
_ROWS_AT_ONCE = 65536  # bounds the float64 intermediates when images are normalised


def random_crop(images: np.ndarray, crop_from: np.ndarray, padding: int) -> np.ndarray:
    """Shift images by cropping them from a copy padded with its edge pixels.

    Args:
        images: (B, H, W, C), any dtype.
        crop_from: (B, 2) or (B, 3) integers, the crop's first row and column in the padded image,
            each from 0 to 2 * padding.
        padding: pixels added on each side.

    Returns:
        Images of the same shape and dtype.
    """
    height, width = images.shape[1:3]
    shift = np.clip(np.asarray(crop_from)[:, :2], 0, 2 * padding) - padding
    # Reading beyond the edge is reading the edge: no padded copy is needed.
    rows = np.clip(np.arange(height) + shift[:, :1], 0, height - 1)  # (B, H)
    columns = np.clip(np.arange(width) + shift[:, 1:], 0, width - 1)  # (B, W)
    batch = np.arange(len(images))[:, None, None]
    return images[batch, rows[:, :, None], columns[:, None, :]]


def augment(batch: dict, keys: Iterable[str], source, prefix: str = '') -> None:
    """Randomly crop the image arrays under `keys`, all by the same shifts.

    Args:
        batch: dict of arrays, changed in place; what is no image is passed on as it is.
        keys: entries to augment.
        source: a resolved random source (`sampling.resolve`).
        prefix: put before the names of the results ('' replaces the entries).
    """
    keys = list(keys)
    # Drawn for vectors too, as in the original.
    crop_from = source.randint(2 * CROP_PADDING + 1, (length(batch[keys[0]]), 2))

    def crop(array):
        return random_crop(array, crop_from, CROP_PADDING) if array.ndim == 4 else array

    for key in keys:
        batch[prefix + key] = trees.map(crop, batch[key])


def normalize(observations, mean, var, high, low, kind: str, epsilon: float = 1e-8):
    """Normalise observations with a dataset's statistics.

    Args:
        observations: array (..., *observation shape).
        mean, var, high, low: statistics, each of the observation's shape.
        kind: 'none'; 'normal': zero mean, unit variance; 'bounded': [low, high] to [-1, 1].

    Returns:
        The observations as float32, or themselves for 'none'. A dimension with high = low gives
        NaN under 'bounded', as in the original.

    Raises:
        ValueError: for another kind.
    """
    if kind == 'none':
        return observations
    if kind == 'normal':
        return _float32((observations - mean) / np.sqrt(var + epsilon))
    if kind == 'bounded':
        if np.asarray(observations).dtype.kind in 'iu':
            observations, high, low = _float32(observations), _float32(high), _float32(low)
        with np.errstate(invalid='ignore', divide='ignore'):
            return _float32(2 * (observations - low) / (high - low) - 1.0)
    raise ValueError(f"obs_norm_type must be 'none', 'normal' or 'bounded', got {kind!r}")


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


class Dataset:
    """Transitions to sample from.

    Attributes:
        arrays: dict of read-only arrays (N, ...), observations possibly a nested dict.
        size: the number of transitions N.
        obs_norm_type: 'none', 'normal' or 'bounded'; see `normalize_observations`.
        frame_stack: how many frames make an observation, concatenated along the last axis (frames
            before the start of an episode repeat its first); None for one.
        p_aug: probability that a batch's images are randomly cropped; None for never.
        num_aug: how many augmented copies (`aug1_observations`, ...) a batch gets.
        inplace_aug: augment the observations themselves instead of adding copies.
        return_next_actions: add `next_actions`. At an episode's end these are the next
            episode's first action, as in the original.
        obs_mean, obs_var, obs_max, obs_min: statistics of the raw observations, and
        normalized_obs_max, normalized_obs_min: their bounds after normalisation; None until
            `normalize_observations` has run.
    """

    _hold = staticmethod(_read_only)

    def __init__(
        self,
        arrays: dict,
        *,
        name: str = 'dataset',
        obs_norm_type: str = 'none',
        frame_stack: int | None = None,
        p_aug: float | None = None,
        num_aug: int = 1,
        inplace_aug: bool = False,
        return_next_actions: bool = False,
    ):
        """Take over `arrays` without copying those that have the right dtype.

        Raises:
            DatasetError: if there are no observations, no rows, or lengths that disagree.
        """
        checked = check_arrays(arrays, name, required=('observations',), values=False)
        self.arrays = trees.map(self._hold, checked)
        self.size = length(self.arrays)
        self.name = name
        self.obs_norm_type = obs_norm_type
        self.frame_stack = frame_stack
        self.p_aug = p_aug
        self.num_aug = num_aug
        self.inplace_aug = inplace_aug
        self.return_next_actions = return_next_actions
        self.obs_mean = self.obs_var = self.obs_max = self.obs_min = None
        self.normalized_obs_max = self.normalized_obs_min = None

    def __getitem__(self, key: str):
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __len__(self) -> int:
        return self.size

    @cached_property
    def terminal_locs(self) -> np.ndarray:
        """Indices of the last transition of each episode (see `episodes.episode_ends`)."""
        return np.flatnonzero(episode_ends(self.arrays, self.name))

    @cached_property
    def initial_locs(self) -> np.ndarray:
        """Indices of the first transition of each episode that `terminal_locs` lists."""
        return np.concatenate([[0], self.terminal_locs[:-1] + 1])

    def normalize_observations(self, observations=None):
        """Compute statistics and normalise the whole dataset, or normalise given observations.

        Args:
            observations: array (..., *observation shape) to normalise with the statistics that
                are already there; None to compute them and to replace the dataset's
                `observations` and `next_observations` (call this once).

        Returns:
            The normalised observations.

        Raises:
            DatasetError: if the statistics were to be computed twice, or used before that.
        """
        if observations is not None:
            self._need_statistics(True, 'normalize_observations() has to run first')
            return self._normalize(observations)
        self._need_statistics(False, 'the observations are normalised already')
        raw = self.arrays['observations']
        self.obs_mean, self.obs_var = np.mean(raw, axis=0), np.var(raw, axis=0)
        self.obs_max, self.obs_min = np.max(raw, axis=0), np.min(raw, axis=0)
        self._warn_of_constants()
        self.normalized_obs_max = self._normalize(self.obs_max)
        self.normalized_obs_min = self._normalize(self.obs_min)
        for key in ('observations', 'next_observations'):
            if key in self.arrays:
                self.arrays[key] = self._hold(self._normalize_rows(self.arrays[key]))
        return self.arrays['observations']

    def random_indices(self, num: int, rng) -> np.ndarray:
        """Draw `num` indices in [0, size), with replacement."""
        if self.size == 0:
            raise DatasetError(f'{self.name}: nothing to sample, it holds no transitions yet')
        return sampling.resolve(rng).randint(self.size, num)

    def sample(
        self,
        batch_size: int,
        rng,
        idxs: np.ndarray | None = None,
        keys: Iterable[str] | None = None,
    ) -> dict:
        """Draw a batch of transitions, with replacement.

        Args:
            batch_size: number of transitions B.
            rng: random source, see `purerl.data.sampling`.
            idxs: (B,) indices to take instead of random ones.
            keys: the arrays wanted; None for all. Augmentation needs observations and
                next_observations among them.

        Returns:
            A dict of arrays (B, ...); besides the dataset's own entries `observation_min` and
            `observation_max` (observation shape, after normalisation, without stacking) where
            statistics exist, `next_actions` and augmented copies where asked for.
        """
        source = sampling.resolve(rng)
        if idxs is None:
            idxs = self.random_indices(batch_size, source)
        batch = self._take(idxs, self.arrays if keys is None else keys)
        if self.p_aug is not None and source.rand() < self.p_aug:
            self._augment(batch, source)
        return batch

    def get_observations(self, idxs: np.ndarray):
        """Return the observations at `idxs`, frames stacked where `frame_stack` is set."""
        observations = self.arrays['observations']
        if self.frame_stack is None:
            return trees.map(lambda array: array[idxs], observations)
        return _concatenate(self._frames(idxs))

    def _take(self, idxs, keys):
        batch = {key: trees.map(lambda array: array[idxs], self.arrays[key]) for key in keys}
        if self.frame_stack is not None:
            frames = self._frames(idxs)
            if 'observations' in batch:
                batch['observations'] = _concatenate(frames)
            if 'next_observations' in batch:
                frames = [*frames[1:], batch['next_observations']]
                batch['next_observations'] = _concatenate(frames)
        if self.normalized_obs_min is not None:
            batch['observation_min'] = self.normalized_obs_min
            batch['observation_max'] = self.normalized_obs_max
        if self.return_next_actions:
            batch['next_actions'] = self.arrays['actions'][np.minimum(idxs + 1, self.size - 1)]
        return batch

    def _frames(self, idxs):
        """The last `frame_stack` observations up to `idxs`, oldest first."""
        observations = self.arrays['observations']
        steps = self._frame_idxs(idxs)
        return [trees.map(lambda array, at=at: array[at], observations) for at in steps]

    def _frame_idxs(self, idxs):
        """The rows of those observations, a list of (B,) arrays."""
        # The original's list lacks the start of an episode that is cut off by the dataset's end.
        starts = np.append(self.initial_locs, self.terminal_locs[-1:] + 1)
        first = starts[np.searchsorted(starts, idxs, side='right') - 1]
        return [np.maximum(idxs - back, first) for back in reversed(range(self.frame_stack))]

    def _augment(self, batch, source):
        keys = ('observations', 'next_observations')
        if self.inplace_aug:
            augment(batch, keys, source)
            return
        for i in range(self.num_aug):
            augment(batch, keys, source, f'aug{i + 1}_')

    def _normalize(self, observations):
        return normalize(
            observations,
            self.obs_mean,
            self.obs_var,
            self.obs_max,
            self.obs_min,
            self.obs_norm_type,
        )

    def _normalize_rows(self, array):
        if self.obs_norm_type == 'none':
            return array
        result = np.empty(array.shape, dtype=np.float32)
        for start in range(0, len(array), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            result[rows] = self._normalize(array[rows])
        return result

    def _need_statistics(self, wanted: bool, message: str):
        if (self.obs_mean is not None) != wanted:
            raise DatasetError(f'{self.name}: {message}')

    def _warn_of_constants(self):
        constant = np.flatnonzero(self.obs_max == self.obs_min)
        if self.obs_norm_type == 'bounded' and constant.size:
            warnings.warn(
                f'{self.name}: observation dimensions {constant[:10].tolist()} never change, so '
                "'bounded' normalisation makes them NaN, as in the original; "
                "use obs_norm_type='normal' or leave these dimensions out",
                stacklevel=3,
            )


def _float32(array) -> np.ndarray:
    return np.asarray(array).astype(np.float32, copy=False)


def _concatenate(frames):
    return trees.map(lambda *arrays: np.concatenate(arrays, axis=-1), *frames)
