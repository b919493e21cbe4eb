"""A replay buffer for stacked images that stores each frame once.

Counterpart of ``jaxrl5/data/memory_efficient_replay_buffer.py`` of philippe-eecs/IDQL @ 7582571:
the same rows, and from the same numpy stream the same batches.

A row holds a transition and, instead of both stacks of images, the newest frame of its next
observation. The stacks are read off the rows before it: an episode begins with `num_stack` rows of
padding, which hold its first stack, and where the ring starts over its last rows are copied to the
front. Such rows, and those whose frames the pointer has just overwritten, are never drawn.

Deviations from the original:
- Frames are read around the ring's end. There the original takes wrong frames for transitions whose
  episode's padding lies on both sides of the end.
- `sample` takes indices, which the original refuses.
- Drawing from a buffer without a transition, a ring too small for one stack, and cameras whose
  `num_stack` differ are refused with a message. The original draws forever, or asserts.
- There is no iterator, whose batches would be older than the latest insertions: call `sample`.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from purerl.core import trees
from purerl.core.files import atomic_path
from purerl.data import sampling
from purerl.data.check import DatasetError
from purerl.data.replay import ReplayBuffer


class MemoryEfficientReplayBuffer(ReplayBuffer):
    """A ring of transitions whose observations hold stacked images (H, W, C, num_stack).

    Attributes (besides those of `ReplayBuffer`):
        pixel_keys: the observations' entries that are stacked images.
        num_stack: frames per observation.
        is_drawable: bool (capacity,), which rows are transitions with all of their frames.
        env_options: the options of `purerl.envs.make.make` that the transitions were made with;
            empty where nobody said so.
    """

    def __init__(self, arrays: dict, *, num_stack: int, pixel_keys: tuple[str, ...], **settings):
        """Make a buffer in `arrays`; use `from_spaces` or `load` instead."""
        super().__init__(arrays, **settings)
        if self.capacity <= num_stack:
            raise ValueError(
                f'a ring of {self.capacity} rows cannot hold a transition with {num_stack} stacked '
                f'frames; it needs at least {num_stack + 1}'
            )
        self.num_stack = num_stack
        self.pixel_keys = pixel_keys
        self.is_drawable = np.zeros(self.capacity, dtype=bool)
        self.env_options: dict = {}
        self._starts_episode = True

    @classmethod
    def from_spaces(
        cls,
        observation_space: gymnasium.spaces.Dict,
        action_space: gymnasium.Space,
        capacity: int,
        pixel_keys: Iterable[str] = ('pixels',),
    ) -> 'MemoryEfficientReplayBuffer':
        """Make an empty buffer for an environment's transitions (see `replay.transition`).

        Args:
            observation_space: a Dict with a Box (H, W, C, num_stack) for each of `pixel_keys`.
            action_space: a Box or Discrete.
            capacity: number of rows; besides transitions, each episode takes `num_stack` of them,
                and so does each time round.
            pixel_keys: the entries that are stacked images.

        Raises:
            ValueError: if there is no such entry, or the cameras' `num_stack` differ.
        """
        pixel_keys = tuple(pixel_keys)
        num_stack = _num_stack(observation_space, pixel_keys)
        frames = {key: _frame_space(observation_space[key]) for key in pixel_keys}
        others = {k: space for k, space in observation_space.items() if k not in pixel_keys}
        plain = ReplayBuffer.from_spaces(
            Dict({**others, **frames}), action_space, capacity, next_observation_space=Dict(others)
        )
        return cls(plain.arrays, num_stack=num_stack, pixel_keys=pixel_keys)

    def insert(self, transition: Mapping) -> None:
        """Add one transition; it belongs to the episode of the one before, unless that was done.

        Args:
            transition: with images (H, W, C, num_stack) in observations and next_observations.

        Raises:
            ValueError: if its entries or their shapes differ from the buffer's.
        """
        row = self._row(transition)
        stacks = {key: transition['observations'][key] for key in self.pixel_keys}
        following = {key: transition['next_observations'][key] for key in self.pixel_keys}
        self._check_stacks(stacks, following)
        if self._starts_episode:
            for i in range(self.num_stack):
                self._write(row, {key: stack[..., i] for key, stack in stacks.items()})
        elif self.pointer == 0 and self.size == self.capacity:
            self._copy_last_rows()
        newest = self.pointer
        self._write(row, {key: stack[..., -1] for key, stack in following.items()})
        self.is_drawable[newest] = True
        # These have lost a frame to the rows just written.
        self.is_drawable[(self.pointer + np.arange(self.num_stack)) % self.size] = False
        self._starts_episode = bool(transition['dones'])

    add_transition = insert

    def add_transitions(self, transitions: Mapping) -> None:
        """Add a batch of transitions, in order; each entry has a leading axis (B, ...)."""
        for i in range(len(trees.leaves(transitions['actions'])[0])):
            self.insert(trees.map(lambda array, i=i: array[i], dict(transitions)))

    def random_indices(self, num: int, rng) -> np.ndarray:
        """Draw `num` indices of transitions, with replacement, as the original's stream has them.

        Raises:
            DatasetError: if there is no transition to draw.
        """
        if not self.is_drawable.any():
            raise DatasetError(f'{self.name}: nothing to sample, it holds no transitions yet')
        source = sampling.resolve(rng)
        idxs = np.asarray(source.randint(self.size, num))
        for i in np.flatnonzero(~self.is_drawable[idxs]):
            while not self.is_drawable[idxs[i]]:
                idxs[i] = source.randint(self.size, ())
        return idxs

    def sample(
        self,
        batch_size: int,
        rng,
        idxs: np.ndarray | None = None,
        keys: Iterable[str] | None = None,
        pack: bool = False,
    ) -> dict:
        """Draw a batch of transitions, with replacement.

        Args:
            batch_size: number of transitions B.
            rng: random source, see `purerl.data.sampling`.
            idxs: (B,) indices to take instead of random ones.
            keys: the arrays wanted; None for all.
            pack: leave the images out of `next_observations`, and give observations one frame
                more, the newest of the next: (B, H, W, C, num_stack + 1). They overlap in all but
                this frame, so that there is half as much to move. Agents unpack them.

        Returns:
            A dict of arrays (B, ...), images (B, H, W, C, num_stack).

        Raises:
            ValueError: if an index is not that of a transition.
        """
        if idxs is None:
            idxs = self.random_indices(batch_size, rng)
        idxs = np.asarray(idxs)
        bad = idxs[(idxs < 0) | (idxs >= self.capacity) | ~self.is_drawable[idxs % self.capacity]]
        if bad.size:
            raise ValueError(f'{self.name}: row {bad[0]} holds no transition with all its frames')
        keys = list(self.arrays if keys is None else keys)
        batch = {key: self._take_plain(key, idxs) for key in keys}
        if 'observations' in keys:
            # (B, num_stack + 1) rows; the ring goes on at its front.
            rows = (idxs[:, None] + np.arange(-self.num_stack, 1)) % self.capacity
            for key in self.pixel_keys:
                frames = np.moveaxis(self.arrays['observations'][key][rows], 1, -1)
                batch['observations'][key] = frames if pack else frames[..., :-1]
                if 'next_observations' in keys and not pack:
                    batch['next_observations'][key] = frames[..., 1:]
        return batch

    def clear(self) -> None:
        """Forget all transitions."""
        super().clear()
        self.is_drawable[:] = False
        self._starts_episode = True

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs; see `ReplayBuffer.state_dict`."""
        return {
            **super().state_dict(),
            'is_drawable': self.is_drawable[: self.size],
            'starts_episode': self._starts_episode,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Take over what `state_dict` returned, bit for bit.

        Raises:
            ValueError: see `ReplayBuffer.load_state_dict`.
        """
        super().load_state_dict(state)
        self.is_drawable[:] = False
        self.is_drawable[: self.size] = state['is_drawable']
        if self.size < self.capacity:
            # A ring that has been made larger no longer goes on from its old end to its front.
            self.is_drawable[: self.num_stack] = False
        self._starts_episode = bool(state['starts_episode'])

    def save(self, path: str | os.PathLike) -> None:
        """Write the filled rows as a dataset that `load` reads: one safetensors file.

        Raises:
            OSError: if it cannot be written.
        """
        metadata = {
            'format': _FORMAT,
            'num_stack': str(self.num_stack),
            'pixel_keys': ','.join(self.pixel_keys),
            'env_options': json.dumps(self.env_options),
        }
        arrays = {'/'.join(names): array for names, array in trees.leaves_with_path(self.arrays)}
        arrays = {**arrays, 'is_drawable': self.is_drawable}
        # From the oldest row on, so that the file does not depend on where the ring began.
        shift = self.pointer % self.size
        for name, array in arrays.items():
            arrays[name] = np.roll(array, -shift, 0) if shift else array[: self.size]
        with atomic_path(path) as temporary:
            try:
                save_file(arrays, temporary, metadata)
            except SafetensorError as error:  # a full disk, for one
                raise OSError(str(error)) from error

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'MemoryEfficientReplayBuffer':
        """Read a dataset of images that `save` wrote; it is full.

        Raises:
            DatasetError: if the file is missing, damaged or of another kind.
        """
        metadata, tensors = _read(path)
        is_drawable = tensors.pop('is_drawable')
        arrays: dict = {'next_observations': {}}
        for name, array in tensors.items():
            *parents, leaf = name.split('/')
            node = arrays
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = array
        buffer = cls(
            arrays,
            num_stack=int(metadata['num_stack']),
            pixel_keys=tuple(metadata['pixel_keys'].split(',')),
            size=len(is_drawable),
            name=str(path),
        )
        buffer.is_drawable[:] = is_drawable
        buffer.env_options = json.loads(metadata['env_options'])
        return buffer

    def _take_plain(self, key, idxs):
        """The rows of an entry without the frames of an observation."""
        entry = self.arrays[key]
        if key == 'observations':
            entry = {name: array for name, array in entry.items() if name not in self.pixel_keys}
        return trees.map(lambda array: array[idxs], entry)

    def _row(self, transition):
        """A transition with the place of its frame left open."""
        row = dict(transition)
        for name in ('observations', 'next_observations'):
            missing = [key for key in self.pixel_keys if key not in row[name]]
            if missing:
                raise ValueError(f'{self.name}: {name} have no {missing[0]!r}')
            row[name] = {k: value for k, value in row[name].items() if k not in self.pixel_keys}
        return row

    def _check_stacks(self, *observations):
        for stacks in observations:
            for key, stack in stacks.items():
                expected = (*self.arrays['observations'][key].shape[1:], self.num_stack)
                if np.shape(stack) != expected:
                    raise ValueError(
                        f'{self.name}: {key!r} has shape {np.shape(stack)}, expected {expected}'
                    )

    def _write(self, row, frames):
        self.is_drawable[self.pointer] = False
        super().insert({**row, 'observations': {**row['observations'], **frames}})

    def _copy_last_rows(self):
        """Let the frames before the ring's front be at its front too."""
        for i in range(self.capacity - self.num_stack, self.capacity):
            row = trees.map(lambda array, i=i: array[i].copy(), self.arrays)
            self.is_drawable[self.pointer] = False
            super().insert(row)


_FORMAT = 'purerl-pixels-1'


def _read(path):
    if not Path(path).is_file():
        raise DatasetError(f'{path}: no such file; make it with experiments.collect')
    try:
        with safe_open(path, framework='np') as file:
            metadata = file.metadata() or {}
            if metadata.get('format') != _FORMAT:
                raise DatasetError(f'{path}: not a dataset of images that experiments.collect made')
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DatasetError(f'{path}: damaged or not a safetensors file ({error})') from error


def _frame_space(space: Box) -> Box:
    return Box(space.low[..., 0], space.high[..., 0], dtype=space.dtype)


def _num_stack(observation_space, pixel_keys) -> int:
    if not isinstance(observation_space, Dict) or not pixel_keys:
        raise ValueError(
            f'a buffer of images needs a Dict of observations with at least one camera, got '
            f'{observation_space} and pixel_keys={pixel_keys}'
        )
    stacks = {}
    for key in pixel_keys:
        if key not in observation_space.spaces:
            have = ', '.join(observation_space.spaces)
            raise ValueError(f'observations have no {key!r}; they have {have}')
        shape = observation_space[key].shape
        if len(shape) != 4:
            raise ValueError(
                f'{key!r} must have the shape (height, width, channels, num_stack), not {shape}'
            )
        stacks[key] = shape[-1]
    if len(set(stacks.values())) > 1:
        raise ValueError(f'all cameras must have the same number of stacked frames, not {stacks}')
    return stacks[pixel_keys[0]]
