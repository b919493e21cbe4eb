"""Replay buffers: rings of transitions that grow while an agent acts.

Counterparts of ``ReplayBuffer`` in ``utils/datasets.py`` of chongyi-zheng/infom @ f0356dd and in
``jaxrl5/data/replay_buffer.py`` of philippe-eecs/IDQL @ 7582571.

Deviations from the originals:
- InFOM's buffer counts one transition too few once it is full, cannot be filled from a Dataset, and
  fails when it is created full and then added to.
- jaxrl5's ``get_iterator`` hands out batches drawn before the latest insertions; here a batch is
  drawn when it is asked for.
- float64 spaces and examples are stored as float32.
- Frames are stacked in the order of insertion; InFOM's buffer, whose programs stack none of its
  frames, would stack neighbouring rows, in a full ring the newest below the oldest.

Parity quirk of InFOM's buffer: `next_actions` are those of the following row. At the pointer of a
full ring, between the newest and the oldest row, they are the oldest transition's, as they are the
next episode's at an episode's end; the last row of the ring repeats its own.
"""

from collections.abc import Mapping

import gymnasium
import numpy as np
import torch

from purerl.core import trees
from purerl.data import storage
from purerl.data.dataset import Dataset


def transition(observation, action, reward, terminated, truncated, next_observation) -> dict:
    """Make the entry that a buffer of `ReplayBuffer.from_spaces` takes, from a gymnasium step.

    An episode that is only cut off by a time limit is done, but keeps its mask of 1: the value
    of its last state still counts.
    """
    return {
        'observations': observation,
        'actions': action,
        'rewards': np.float32(reward),
        'masks': np.float32(0.0 if terminated else 1.0),
        'dones': bool(terminated or truncated),
        'next_observations': next_observation,
    }


class ReplayBuffer(Dataset):
    """A dataset with room for `capacity` transitions, which replaces the oldest ones when full.

    Attributes (besides those of `Dataset`):
        arrays: zero-initialised arrays (capacity, ...); rows from `size` on hold nothing yet.
        size: how many transitions it holds.
        capacity: how many it can hold.
        pointer: the row that the next transition goes to.
    """

    def __init__(
        self,
        arrays: dict,
        *,
        size: int = 0,
        name: str = 'replay buffer',
        device: torch.device | str | None = None,
        **settings,
    ):
        """Make a buffer in `arrays`, whose first `size` rows count as filled.

        Use `from_spaces`, `create` or `create_from_initial_dataset` instead.
        """
        super().__init__(arrays, name=name, **settings)
        self.arrays = trees.map(lambda array: storage.hold(array, device), self.arrays)
        self.capacity = self.size
        self.size = size
        self.pointer = size % self.capacity

    _hold = staticmethod(np.asarray)  # written to, unlike a dataset's arrays

    @classmethod
    def from_spaces(
        cls,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        capacity: int,
        next_observation_space: gymnasium.Space | None = None,
        device: torch.device | str | None = None,
    ) -> 'ReplayBuffer':
        """Make an empty buffer for an environment's transitions (see `transition`).

        Args:
            observation_space: a Box, Discrete, or a (nested) Dict of them.
            action_space: a Box or Discrete.
            capacity: the largest number of transitions.
            next_observation_space: where it differs from `observation_space`.
            device: where transitions lie and batches are gathered; None for numpy arrays.

        Raises:
            TypeError: for a space without a fixed shape.
        """
        following = observation_space if next_observation_space is None else next_observation_space
        example = {
            'observations': _zeros_of(observation_space),
            'next_observations': _zeros_of(following),
            'actions': _zeros_of(action_space),
            'rewards': np.float32(0),
            'masks': np.float32(0),
            'dones': np.bool_(False),
        }
        return cls.create(example, capacity, device)

    @classmethod
    def create(
        cls, transition: Mapping, size: int, device: torch.device | str | None = None
    ) -> 'ReplayBuffer':
        """Make an empty buffer for `size` transitions like the example `transition`.

        With a device they lie there, and batches are of tensors; augmented or normalised
        observations and stacked frames need numpy's arrays.
        """
        if size < 1:
            raise ValueError(f'a replay buffer needs room for at least one transition, got {size}')

        def zeros(example):
            example = np.asarray(example)
            dtype = np.float32 if example.dtype == np.float64 else example.dtype
            return np.zeros((size, *example.shape), dtype=dtype)

        return cls(trees.map(zeros, dict(transition)), device=device)

    @classmethod
    def create_from_initial_dataset(cls, dataset: Dataset | dict, size: int) -> 'ReplayBuffer':
        """Make a buffer for `size` transitions that starts with a copy of a dataset.

        Raises:
            ValueError: if the dataset does not fit.
        """
        arrays = dataset.arrays if isinstance(dataset, Dataset) else dataset
        filled = len(trees.leaves(arrays)[0])
        if filled > size:
            raise ValueError(
                f'the initial dataset has {filled} transitions, the buffer only room for {size}; '
                'make the buffer larger or shorten the dataset'
            )

        def copy(initial):
            buffer = np.zeros((size, *initial.shape[1:]), dtype=initial.dtype)
            buffer[:filled] = initial
            return buffer

        return cls(trees.map(copy, arrays), size=filled)

    def insert(self, transition: Mapping) -> None:
        """Add one transition (jaxrl5's ``insert``, InFOM's ``add_transition``).

        Raises:
            ValueError: if its entries or their shapes differ from the buffer's.
        """
        for buffer, value in self._pairs(transition, batched=False):
            buffer[self.pointer] = value
        self._advance(1)

    add_transition = insert

    def add_transitions(self, transitions: Mapping) -> None:
        """Add a batch of transitions, in order; each entry has a leading axis (B, ...).

        Raises:
            ValueError: if the entries or their shapes differ from the buffer's.
        """
        pairs = self._pairs(transitions, batched=True)
        count = len(pairs[0][1])
        kept = min(count, self.capacity)  # the last ones, where there are more than fit
        idxs = (np.arange(count - kept, count) + self.pointer) % self.capacity
        for buffer, value in pairs:
            buffer[idxs] = value[count - kept :]
        self._advance(count)

    def clear(self) -> None:
        """Forget all transitions."""
        self.size = self.pointer = 0

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs, without the rows not yet filled.

        Returns:
            A dict of the integers `size`, `pointer` and `capacity` and of arrays
            `arrays/<path>` of shape (size, ...). The arrays are views: write them to disk (or
            copy them) before the next insertion.
        """
        state = {'size': self.size, 'pointer': self.pointer, 'capacity': self.capacity}
        for path, buffer in trees.leaves_with_path(self.arrays):
            state['arrays/' + '/'.join(path)] = storage.to_host(buffer[: self.size])
        return state

    def load_state_dict(self, state: Mapping) -> None:
        """Take over what `state_dict` returned, bit for bit.

        Raises:
            ValueError: if it belongs to a buffer of another capacity, or with other entries,
                shapes or dtypes; the buffer is then unchanged.
        """
        size, pointer, capacity = (int(state[key]) for key in ('size', 'pointer', 'capacity'))
        if capacity != self.capacity:
            raise ValueError(
                f'the saved replay buffer has room for {capacity} transitions, this one for '
                f'{self.capacity}'
            )
        pairs = [('arrays/' + '/'.join(p), b) for p, b in trees.leaves_with_path(self.arrays)]
        names = {key for key in state if key.startswith('arrays/')}
        if names != {name for name, _ in pairs}:
            differing = sorted(names ^ {name for name, _ in pairs})
            raise ValueError(f'the saved replay buffer has other entries: {differing[0]!r} differs')
        for name, buffer in pairs:
            saved, expected = np.asarray(state[name]), (size, *buffer.shape[1:])
            if saved.shape != expected or saved.dtype != buffer.dtype:
                raise ValueError(
                    f'the saved replay buffer holds {name!r} as {saved.dtype} {saved.shape}, '
                    f'this one as {buffer.dtype} {expected}'
                )
        for name, buffer in pairs:
            buffer[:size] = state[name]
        self.size, self.pointer = size, pointer
        self._forget_episodes()

    def _frame_idxs(self, idxs):
        # By age: in a full ring the oldest transition lies at the pointer.
        oldest = self.pointer if self.size == self.capacity else 0
        ages = (np.asarray(idxs) - oldest) % self.capacity
        starts = np.unique(np.append(0, (self.terminal_locs + 1 - oldest) % self.capacity))
        first = starts[np.searchsorted(starts, ages, side='right') - 1]
        steps = [np.maximum(ages - back, first) for back in reversed(range(self.frame_stack))]
        return [(step + oldest) % self.capacity for step in steps]

    def _advance(self, count: int):
        self.pointer = (self.pointer + count) % self.capacity
        self.size = min(self.size + count, self.capacity)
        self._forget_episodes()

    def _forget_episodes(self):
        for cached in ('terminal_locs', 'initial_locs'):
            self.__dict__.pop(cached, None)

    def _pairs(self, values: Mapping, batched: bool) -> list:
        """Pair each of the buffer's arrays with what belongs into it."""
        values = dict(values)
        buffers, structure = trees.flatten(self.arrays)
        leaves, given = trees.flatten(values)
        if given != structure:
            ours, theirs = _names(self.arrays), _names(values)
            raise ValueError(
                f'{self.name}: a transition has the entries {theirs}, but the buffer holds {ours}'
            )
        leading = (len(leaves[0]),) if batched else ()
        for i, (buffer, value) in enumerate(zip(buffers, leaves, strict=True)):
            if np.shape(value) != (*leading, *buffer.shape[1:]):
                raise ValueError(
                    f'{self.name}: {_names(values)[i]!r} has shape {np.shape(value)}, '
                    f'expected {(*leading, *buffer.shape[1:])}'
                )
        return list(zip(buffers, leaves, strict=True))


def _names(arrays) -> list[str]:
    return ['/'.join(path) for path, _ in trees.leaves_with_path(arrays)]


def _zeros_of(space: gymnasium.Space):
    if isinstance(space, gymnasium.spaces.Dict):
        return {name: _zeros_of(child) for name, child in space.spaces.items()}
    if isinstance(space, gymnasium.spaces.Box | gymnasium.spaces.Discrete):
        return np.zeros(space.shape, dtype=space.dtype)
    raise TypeError(f'a replay buffer takes Box, Discrete and Dict spaces, got {space}')
