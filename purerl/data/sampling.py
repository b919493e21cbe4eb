"""Random sources for host-side sampling.

Whoever samples passes the source; nothing here keeps one. Four kinds are accepted:

    dataset.sample(256, np.random.RandomState(0))   # the stream after np.random.seed(0)
    dataset.sample(256, np.random.default_rng(0))   # gymnasium's np_random(0): PCG64
    dataset.sample(256, random.generator(key))      # a torch.Generator
    dataset.sample(256, key)                        # a purerl key, which one call uses up

Numpy and torch sources advance in place. A key is a value: the same key gives the same batch, so
split it between calls.
"""

import numpy as np
import torch

from purerl.core import random


class _NumpySource:
    def __init__(self, rng: np.random.RandomState | np.random.Generator):
        self._rng = rng
        legacy = isinstance(rng, np.random.RandomState)
        self._randint = rng.randint if legacy else rng.integers
        self._random = rng.random_sample if legacy else rng.random

    def randint(self, high, size):
        return self._randint(high, size=size)

    def rand(self, size=None):
        return self._random(size)

    def geometric(self, p, size):
        return self._rng.geometric(p, size=size)

    def permutation(self, n):
        index = np.arange(n)
        self._rng.shuffle(index)
        return index


class _TorchSource:
    def __init__(self, rng: torch.Generator):
        self._rng = rng

    def randint(self, high, size):
        size = size if isinstance(size, tuple) else (size,)
        draws = torch.randint(high, size, generator=self._rng, device=self._rng.device)
        return draws.cpu().numpy()

    def rand(self, size=None):
        shape = () if size is None else size
        draws = torch.rand(shape, generator=self._rng, device=self._rng.device, dtype=torch.float64)
        return draws.cpu().numpy()

    def geometric(self, p, size):
        return _geometric_from_uniform(self.rand(size), p)

    def permutation(self, n):
        return torch.randperm(n, generator=self._rng, device=self._rng.device).cpu().numpy()


class _KeySource:
    """Splits its key before every draw, so that one key feeds one call's draws."""

    def __init__(self, key: torch.Tensor):
        self._key = key

    def _next(self):
        self._key, draw_key = random.split(self._key)
        return draw_key

    def randint(self, high, size):
        size = size if isinstance(size, tuple) else (size,)
        draws = random.randint(self._next(), size, 0, high, dtype=torch.int64)
        return draws.cpu().numpy()

    def rand(self, size=None):
        shape = () if size is None else size if isinstance(size, tuple) else (size,)
        return random.uniform(self._next(), shape).cpu().numpy().astype(np.float64)

    def geometric(self, p, size):
        return _geometric_from_uniform(self.rand(size), p)

    def permutation(self, n):
        return random.permutation(self._next(), n).cpu().numpy()


_Source = _NumpySource | _TorchSource | _KeySource


def _geometric_from_uniform(u: np.ndarray, p: float) -> np.ndarray:
    """Invert the geometric distribution's CDF: the number of trials up to the first success."""
    if p >= 1.0:
        return np.ones(u.shape, dtype=np.int64)
    return np.maximum(np.ceil(np.log1p(-u) / np.log1p(-p)), 1.0).astype(np.int64)


def resolve(rng) -> _Source:
    """Give a random source the four draws that samplers use.

    Args:
        rng: a numpy RandomState or Generator, a torch.Generator, a purerl key ((2,) int64
            tensor), or what this function returned.

    Returns:
        An object with ``randint(high, size)`` (integers in [0, high)), ``rand(size=None)``
        (float64 in [0, 1)), ``geometric(p, size)`` (integers from 1) and ``permutation(n)``,
        each returning numpy values.

    Raises:
        TypeError: for anything else, None included.
    """
    if isinstance(rng, _Source):
        return rng
    if isinstance(rng, np.random.RandomState | np.random.Generator):
        return _NumpySource(rng)
    if isinstance(rng, torch.Generator):
        return _TorchSource(rng)
    if isinstance(rng, torch.Tensor) and rng.dtype == torch.int64 and tuple(rng.shape) == (2,):
        return _KeySource(rng)
    raise TypeError(
        'a random source must be a numpy RandomState, a numpy Generator, a torch.Generator or a '
        f'purerl key (int64 tensor of shape (2,)), got {type(rng).__name__}: {rng!r}'
    )
