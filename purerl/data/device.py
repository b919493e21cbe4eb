"""Data that lives on the device and is sampled there, by keys.

Counterpart of ``Dataset.sample_jax`` in ``jaxrl5/data/dataset.py`` (philippe-eecs/IDQL @ 7582571).
The original freezes batch size and keys at its first call; here both are arguments.
"""

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
    """

    arrays: dict

    @classmethod
    def create(cls, arrays: dict, device: torch.device | str = 'cpu') -> 'DeviceDataset':
        """Copy a (nested) dict of arrays to the device, float64 as float32."""

        def put(array):
            array = np.asarray(array)
            dtype = np.float32 if array.dtype == np.float64 else array.dtype
            return torch.tensor(array.astype(dtype, copy=False), device=device)

        return cls(trees.map(put, arrays))

    @property
    def size(self) -> int:
        return len(trees.leaves(self.arrays)[0])

    def sample(self, key: torch.Tensor, batch_size: int) -> dict:
        """Draw a batch with replacement; pure in the key.

        Args:
            key: (2,) key, used up by the draw.
            batch_size: number of transitions B, static under jit.

        Returns:
            A dict of tensors (B, ...).
        """
        idxs = random.randint(key, (batch_size,), 0, self.size, dtype=torch.int64)
        return trees.map(lambda tensor: tensor[idxs], self.arrays)

    def sample_next(self, rng: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, dict]:
        """Draw the batch that ``sample_jax`` draws in state `rng`.

        Args:
            rng: (2,) key, the state: from `initial_key`, then from the call before.

        Returns:
            The new state and the batch.
        """
        key, rng = random.split(rng).unbind(-2)  # the state is the second row, as in the original
        return rng, self.sample(key, batch_size)
