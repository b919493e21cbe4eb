"""Normalisation of a dataset's columns to zero mean and unit variance.

Counterpart of ``jaxrl5/normalization.py`` of philippe-eecs/IDQL @ 7582571, which no launcher of its
uses.

Deviations: a column that never changes is refused, where the original divides by zero; entries that
are nested are normalised too, where the original leaves them out with a print.
"""

from typing import NamedTuple

import numpy as np

from purerl.data.check import DatasetError


class Normalizer(NamedTuple):
    """Statistics of an entry (N, ...), each of the shape of one row.

    Attributes:
        mins, maxs: smallest and largest values, of the entry's dtype.
        means, stds: mean and standard deviation (ddof 0), float32.
    """

    mins: np.ndarray
    maxs: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> 'Normalizer':
        """Compute the statistics of an array (N, ...)."""
        values = array.astype(np.float32)
        return cls(array.min(axis=0), array.max(axis=0), values.mean(axis=0), values.std(axis=0))

    def normalize(self, x: np.ndarray) -> np.ndarray:
        """Shift and scale values to zero mean and unit variance.

        Raises:
            DatasetError: if a column never changes.
        """
        constant = np.flatnonzero(self.stds == 0)
        if constant.size:
            raise DatasetError(
                f'columns {constant[:10].tolist()} never change, so that they cannot be scaled to '
                'unit variance; leave them out'
            )
        return (x - self.means) / self.stds

    def unnormalize(self, x: np.ndarray) -> np.ndarray:
        """Undo `normalize`."""
        return x * self.stds + self.means
