"""A replay buffer of episodes of stacked frames, each of which is stored once.

Counterpart of algorithm/replay_buffer/atari_buffer of Stilwell-Git/Randomized-Return-Decomposition
@ bc80473; see `episode_replay`. Observations stay uint8; agents scale them.
"""

from collections.abc import Mapping

import numpy as np

from purerl.data.episode_replay import EpisodeReplay


class FrameReplay(EpisodeReplay):
    """An episode buffer for observations (H, W, stack), of which each step brings one frame."""

    _columns = ('actions', 'rewards', 'masks')

    def __init__(self, example: Mapping, capacity: int, max_episode: int):
        super().__init__(example, capacity, max_episode)
        self._stack = example['observations'].shape[-1]
        self._frames: dict[int, np.ndarray] = {}  # by episode: (stack + T, H, W)
        self._unfinished: list[np.ndarray] = []

    def _append_observation(self, transition):
        if self.pending == 0:
            first = np.moveaxis(transition['observations'], -1, 0)
            self._unfinished = [frame.copy() for frame in first]
        self._unfinished.append(transition['next_observations'][..., -1].copy())

    def _commit_observations(self, number):
        self._frames[number] = np.stack(self._unfinished)
        self._unfinished = []

    def _drop_observations(self, number):
        del self._frames[number]

    def _observations(self, episodes, positions) -> dict:
        # Table positions are numbers modulo rows; numbers of held episodes are below two rounds.
        oldest = self.dropped
        numbers = oldest + (np.ravel(episodes) - oldest) % self._rows
        stacks = []
        for number, position in zip(numbers, np.ravel(positions), strict=True):
            stacks.append(self._frames[int(number)][position : position + self._stack + 1])
        frames = np.moveaxis(np.stack(stacks), 1, -1)  # (N, H, W, stack + 1)
        frames = frames.reshape(*np.shape(positions), *frames.shape[1:])
        return {
            'observations': np.ascontiguousarray(frames[..., :-1]),
            'next_observations': np.ascontiguousarray(frames[..., 1:]),
        }

    def _draw_subsequence(self, size, stream, episode):
        # The original draws without repetition, drops that, and draws again with repetition.
        super()._draw_subsequence(size, stream, episode)
        length = int(self._lengths[episode])
        return np.array([stream.randint(length) for _ in range(size)])

    def state_dict(self) -> dict:
        frames = {str(number): frames for number, frames in self._frames.items()}
        return {**super().state_dict(), 'frames': frames, 'unfinished': list(self._unfinished)}

    def load_state_dict(self, state: Mapping) -> None:
        super().load_state_dict(state)
        self._frames = {int(number): frames for number, frames in state['frames'].items()}
        self._unfinished = list(state['unfinished'])
