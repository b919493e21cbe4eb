"""Data that lives on the device and is sampled there, by keys.

Counterpart of ``Dataset.sample_jax`` in ``jaxrl5/data/dataset.py`` (philippe-eecs/IDQL @ 7582571).
The original freezes batch size and keys at its first call; here both are arguments.

    rng = initial_key(None)
    rng, batch = dataset.sample_next(rng, 512)
"""

from typing import Any

import numpy as np
import torch

from purerl.core import random, trees


def initial_key(seed: int | None) -> torch.Tensor:
    """Return the key that ``sample_jax`` starts from: seeds 0 and None become 42, as there."""
    return random.key(seed or 42)


@trees.dataclass
class DeviceDataset:
    """A dataset of tensors; a pytree, so that jit and vmap take it as an argument.

    Attributes:
        arrays: (nested) dict of tensors (N, ...).
        rows: (M,) int64 indices of the transitions that belong to this part of the data; None for
            all of them.
    """

    arrays: dict
    rows: Any = None

    @classmethod
    def create(cls, arrays: dict, device: torch.device | str = 'cpu') -> 'DeviceDataset':
        """Put a (nested) dict of arrays on the device, float64 as float32.

        On the CPU writeable arrays are not copied.
        """

        def put(array):
            array = np.asarray(array)
            dtype = np.float32 if array.dtype == np.float64 else array.dtype
            writeable = np.require(array.astype(dtype, copy=False), requirements=('C', 'W'))
            return torch.from_numpy(writeable).to(device)

        return cls(trees.map(put, arrays))

    @property
    def size(self) -> int:
        """The number of transitions of this part."""
        return len(trees.leaves(self.arrays)[0] if self.rows is None else self.rows)

    def select(self, rows: np.ndarray) -> 'DeviceDataset':
        """Return the part of the data that some of its rows make; the arrays are shared.

        Args:
            rows: (M,) indices in [0, size).
        """
        rows = torch.as_tensor(rows, dtype=torch.int64, device=trees.leaves(self.arrays)[0].device)
        return self.replace(rows=rows if self.rows is None else self.rows[rows])

    def take(self, idxs: torch.Tensor | np.ndarray) -> dict:
        """Return the transitions at indices in [0, size), as a dict of tensors (B, ...)."""
        idxs = torch.as_tensor(idxs, device=trees.leaves(self.arrays)[0].device)
        idxs = idxs if self.rows is None else self.rows.index_select(0, idxs)
        return trees.map(lambda tensor: tensor.index_select(0, idxs), self.arrays)

    def sample(self, key: torch.Tensor, batch_size: int) -> dict:
        """Draw a batch with replacement; pure in the key.

        Args:
            key: (2,) key, used up by the draw.
            batch_size: number of transitions B, static under jit.

        Returns:
            A dict of tensors (B, ...).
        """
        return self.take(random.randint(key, (batch_size,), 0, self.size, dtype=torch.int64))

    def sample_next(self, rng: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, dict]:
        """Draw the batch that ``sample_jax`` draws in state `rng`.

        Args:
            rng: (2,) key, the state: from `initial_key`, then from the call before.

        Returns:
            The new state and the batch.
        """
        key, rng = random.split(rng).unbind(-2)  # the state is the second row, as in the original
        return rng, self.sample(key, batch_size)
