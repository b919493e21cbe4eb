"""A replay buffer of single transitions, filled episode by episode.

Counterpart of algorithm/replay_buffer/mujoco_buffer/transition_buffer.py of
Stilwell-Git/Randomized-Return-Decomposition @ bc80473; see `episode_replay`.
"""

from collections.abc import Mapping

import numpy as np

from purerl.data.replay import ReplayBuffer


class TransitionReplay:
    """A `ReplayBuffer` that an episode's transitions enter once it has ended.

    Attributes:
        buffer: the finished episodes' transitions.
        stored: transitions that it has ever held.
        episodes: episodes that it has ever held.
    """

    def __init__(self, example: Mapping, capacity: int, max_episode: int):
        """Make an empty buffer for transitions like `example`; `max_episode` bounds an episode."""
        self.buffer = ReplayBuffer.create(example, capacity)
        self.stored = self.episodes = 0
        self._max_episode = max_episode
        self._waiting: list[dict] = []

    @property
    def length(self) -> int:
        """How many transitions it holds."""
        return self.buffer.size

    @property
    def pending(self) -> int:
        """How many transitions the unfinished episode has."""
        return len(self._waiting)

    def append(self, transition: Mapping) -> None:
        """Add a transition to the unfinished episode.

        Raises:
            ValueError: if the episode has too many, or the reward is not finite.
        """
        if self.pending == self._max_episode:
            raise ValueError(
                f'an episode has not ended after {self.pending} steps: it needs a time limit'
            )
        if not np.isfinite(transition['rewards']):
            raise ValueError(f'the reward {transition["rewards"]} is not a finite number')
        self._waiting.append(dict(transition))

    def commit(self) -> None:
        """End the episode: its transitions count from now on."""
        for transition in self._waiting:
            self.buffer.insert(transition)
        self.stored += self.pending
        self.episodes += 1
        self._waiting = []

    def sample(self, batch_size: int, stream) -> dict:
        """Draw a batch with repetitions.

        Args:
            batch_size: how many transitions.
            stream: a `np.random.RandomState`.

        Returns:
            A dict of arrays (B, ...).

        Raises:
            ValueError: if no episode has ended yet.
        """
        if self.length == 0:
            raise ValueError('no episode has ended yet: there is nothing to sample')
        return self.buffer.sample(batch_size, stream)

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs; write or copy it before the next call."""
        waiting = {
            key: np.stack([np.asarray(transition[key]) for transition in self._waiting])
            for key in (self.buffer.arrays if self._waiting else ())
        }
        return {
            'buffer': self.buffer.state_dict(),
            'stored': self.stored,
            'episodes': self.episodes,
            'waiting': waiting,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: if it belongs to a buffer of another capacity or with other entries.
        """
        self.buffer.load_state_dict(state['buffer'])
        self.stored, self.episodes = state['stored'], state['episodes']
        waiting = state['waiting']
        count = len(waiting['rewards']) if waiting else 0
        self._waiting = [{key: array[i] for key, array in waiting.items()} for i in range(count)]
