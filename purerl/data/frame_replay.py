"""A replay buffer of episodes of stacked frames, each of which is stored once.

Counterpart of algorithm/replay_buffer/atari_buffer of Stilwell-Git/Randomized-Return-Decomposition
@ bc80473; see `episode_replay`. Observations stay uint8; agents scale them.
"""

from collections.abc import Mapping

import numpy as np
import torch

from purerl.data import storage
from purerl.data.episode_replay import EpisodeReplay


class FrameReplay(EpisodeReplay):
    """An episode buffer for observations (H, W, stack), of which each step brings one frame."""

    _columns = ('actions', 'rewards', 'masks')

    def __init__(
        self,
        example: Mapping,
        capacity: int,
        max_episode: int,
        lanes: int = 1,
        device: torch.device | str | None = None,
    ):
        super().__init__(example, capacity, max_episode, lanes, device)
        self._stack = example['observations'].shape[-1]
        self._frames: dict[int, storage.Array] = {}  # by episode: (stack + T, H, W)
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(lanes)]  # of unfinished episodes

    def _append_observation(self, transition, lane):
        waiting = self._waiting[lane]
        if not waiting:
            waiting.extend(frame.copy() for frame in np.moveaxis(transition['observations'], -1, 0))
        waiting.append(transition['next_observations'][..., -1].copy())

    def _commit_observations(self, number, lane):
        self._frames[number] = storage.put(np.stack(self._waiting[lane]), self._device)
        self._waiting[lane] = []

    def _drop_observations(self, number):
        del self._frames[number]

    def _observations(self, episodes, positions) -> dict:
        # Table positions are numbers modulo the capacity, and no two held episodes share one.
        oldest = self.dropped
        numbers = oldest + (np.ravel(episodes) - oldest) % self.capacity
        stacks = []
        for number, position in zip(numbers, np.ravel(positions), strict=True):
            stacks.append(self._frames[int(number)][position : position + self._stack + 1])
        frames = storage.stack(stacks)
        frames = frames.reshape(*np.shape(positions), *frames.shape[1:])
        return {
            'observations': storage.move_last(frames[..., :-1, :, :]),
            'next_observations': storage.move_last(frames[..., 1:, :, :]),
        }

    def _draw_subsequence(self, size, source, episode):
        length = int(self._lengths[episode])
        if not isinstance(source, np.random.RandomState):
            return source.randint(length, size)
        # The original draws without repetition, drops that, and draws again with repetition.
        super()._draw_subsequence(size, source, episode)
        return np.array([source.randint(length) for _ in range(size)])

    def state_dict(self) -> dict:
        frames = {str(number): storage.to_host(x) for number, x in self._frames.items()}
        waiting = [np.stack(lane) if lane else None for lane in self._waiting]
        return {**super().state_dict(), 'frames': frames, 'waiting': waiting}

    def load_state_dict(self, state: Mapping) -> None:
        super().load_state_dict(state)
        self._frames = {
            int(number): storage.put(x, self._device) for number, x in state['frames'].items()
        }
        self._waiting = [[] if lane is None else list(lane) for lane in state['waiting']]
