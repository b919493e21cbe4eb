"""Where a replay buffer keeps its rows: in numpy arrays, or on a device.

Both are read and written by numpy's indices, which are drawn on the CPU either way; a
`DeviceArray` is read as tensors, so that a batch never leaves the device.
"""

from collections.abc import Sequence

import numpy as np
import torch

Array = np.ndarray | torch.Tensor


class DeviceArray:
    """An array on a device.

    Attributes:
        tensor: the tensor that holds it.
        dtype: numpy's name of its dtype.
    """

    def __init__(self, array: np.ndarray, device: torch.device | str):
        """Put an array there."""
        self.dtype = array.dtype
        self.tensor = torch.from_numpy(array).to(device)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, rows) -> torch.Tensor:
        return self.tensor[self._on_device(rows)]

    def __setitem__(self, rows, values) -> None:
        values = torch.as_tensor(np.asarray(values, self.dtype))
        self.tensor[self._on_device(rows)] = values.to(self.tensor.device)

    def _on_device(self, rows):
        if isinstance(rows, slice | int):
            return rows
        return torch.as_tensor(np.asarray(rows), device=self.tensor.device)


def hold(array: np.ndarray, device: torch.device | str | None) -> np.ndarray | DeviceArray:
    """Return an array to keep rows in: as it is, or on a device where one is given."""
    return array if device is None else DeviceArray(array, device)


def put(rows: np.ndarray, device: torch.device | str | None) -> Array:
    """Return rows as a `DeviceArray` would be read there; what is no array stays as it is."""
    is_there = device is None or not isinstance(rows, np.ndarray)
    return rows if is_there else torch.from_numpy(rows).to(device)


def to_host(rows: Array) -> np.ndarray:
    """Return rows as a numpy array."""
    return rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows


def stack(rows: Sequence[Array]) -> Array:
    """Stack rows along a new leading axis."""
    return torch.stack(rows) if isinstance(rows[0], torch.Tensor) else np.stack(rows)


def move_last(frames: Array) -> Array:
    """Return frames (..., F, H, W) as contiguous images (..., H, W, F)."""
    if isinstance(frames, torch.Tensor):
        return frames.movedim(-3, -1).contiguous()
    return np.ascontiguousarray(np.moveaxis(frames, -3, -1))


def concatenate(first: Array, second: Array) -> Array:
    """Join two arrays of one kind along their leading axes."""
    return (torch.cat if isinstance(first, torch.Tensor) else np.concatenate)([first, second])
