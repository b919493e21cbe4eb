"""A replay buffer of single transitions, filled episode by episode.

Counterpart of algorithm/replay_buffer/mujoco_buffer/transition_buffer.py of
Stilwell-Git/Randomized-Return-Decomposition @ bc80473; see `episode_replay`.
"""

from collections.abc import Mapping

import torch

from purerl.data.replay import ReplayBuffer
from purerl.data.unfinished_episodes import UnfinishedEpisodes


class TransitionReplay:
    """A `ReplayBuffer` that an episode's transitions enter once it has ended.

    Attributes:
        buffer: the finished episodes' transitions.
        stored: transitions that it has ever held.
        episodes: episodes that it has ever held.
    """

    def __init__(
        self,
        example: Mapping,
        capacity: int,
        max_episode: int,
        lanes: int = 1,
        device: torch.device | str | None = None,
    ):
        """Make an empty buffer.

        Args:
            example: a transition.
            capacity: room for transitions of finished episodes.
            max_episode: room for those of an unfinished one.
            lanes: environments that fill it side by side.
            device: where finished episodes lie and batches are gathered; None for numpy arrays.

        Raises:
            ValueError: if there is no room or no lane.
        """
        self.buffer = ReplayBuffer.create(example, capacity, device)
        self.stored = self.episodes = 0
        self._unfinished = UnfinishedEpisodes(lanes, max_episode, ': it needs a time limit')

    @property
    def length(self) -> int:
        """How many transitions it holds."""
        return self.buffer.size

    @property
    def pending(self) -> int:
        """How many transitions the unfinished episodes have."""
        return self._unfinished.pending

    def append(self, transition: Mapping, lane: int = 0) -> None:
        """Add a transition to the unfinished episode of a lane.

        Raises:
            ValueError: if the episode has too many, or its reward or observations are not finite.
        """
        self._unfinished.append(transition, lane)

    def commit(self, lane: int = 0) -> None:
        """End a lane's episode: its transitions count from now on.

        Raises:
            ValueError: if it has none.
        """
        transitions, _ = self._unfinished.take(lane)
        self.buffer.add_transitions(transitions)
        self.stored += len(transitions['rewards'])
        self.episodes += 1

    def sample(self, batch_size: int, rng) -> dict:
        """Draw a batch with repetitions.

        Args:
            batch_size: how many transitions.
            rng: random source, see `purerl.data.sampling`.

        Returns:
            A dict of arrays (B, ...); of tensors on a device.

        Raises:
            ValueError: if no episode has ended yet.
        """
        if self.length == 0:
            raise ValueError('no episode has ended yet: there is nothing to sample')
        return self.buffer.sample(batch_size, rng)

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs; write or copy it before the next call."""
        return {
            'buffer': self.buffer.state_dict(),
            'stored': self.stored,
            'episodes': self.episodes,
            'unfinished': self._unfinished.state_dict(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: if it belongs to a buffer of another capacity, with other entries or lanes.
        """
        self.buffer.load_state_dict(state['buffer'])
        self._unfinished.load_state_dict(state['unfinished'])
        self.stored, self.episodes = state['stored'], state['episodes']
