"""Episodes that have not ended yet, of one or several environments at a time.

Replay buffers of whole episodes keep them here until they end. A lane is one of the environments.
"""

from collections.abc import Mapping

import numpy as np

_LARGEST = float(np.finfo(np.float32).max)


class UnfinishedEpisodes:
    """One unfinished episode per lane."""

    def __init__(self, lanes: int, limit: int, advice: str):
        """Start with empty ones.

        Args:
            lanes: how many environments there are.
            limit: how many transitions an episode can have.
            advice: ends the message about an episode that has more.

        Raises:
            ValueError: if there is no lane.
        """
        if lanes < 1:
            raise ValueError(f'a replay buffer needs at least one lane, got {lanes}')
        self._limit, self._advice = limit, advice
        self._episodes: list[list[dict]] = [[] for _ in range(lanes)]
        self._returns = [0.0] * lanes

    @property
    def pending(self) -> int:
        """How many transitions there are in all lanes."""
        return sum(map(len, self._episodes))

    def append(self, transition: Mapping, lane: int) -> None:
        """Add a transition, whose arrays must stay as they are until the episode has ended.

        Raises:
            ValueError: if the episode has too many, or a number is not finite: the reward, as the
                float32 that is stored, or an observation.
        """
        episode, reward = self._episodes[lane], float(transition['rewards'])
        if len(episode) == self._limit:
            raise ValueError(f'an episode has not ended after {len(episode)} steps{self._advice}')
        if not abs(reward) <= _LARGEST:  # nor NaN
            raise ValueError(
                f'the reward {transition["rewards"]} is not a finite number of float32'
            )
        # An observation is the one before's next, but for an episode's first.
        for key in ('next_observations',) if episode else ('observations', 'next_observations'):
            values = transition.get(key)
            if values is not None and not np.isfinite(values).all():
                raise ValueError(f'the observation {values} has numbers that are not finite')
        episode.append(dict(transition))
        self._returns[lane] += reward

    def take(self, lane: int) -> tuple[dict, float]:
        """End an episode: return its transitions, arrays (T, ...), and its return.

        Raises:
            ValueError: if it has no transitions.
        """
        if not self._episodes[lane]:
            raise ValueError('an episode has at least one transition')
        taken = _stacked(self._episodes[lane]), self._returns[lane]
        self._episodes[lane], self._returns[lane] = [], 0.0
        return taken

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs."""
        episodes = [_stacked(episode) for episode in self._episodes]
        return {'episodes': episodes, 'returns': list(self._returns)}

    def load_state_dict(self, state: Mapping) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: if it is of another number of lanes.
        """
        if len(state['episodes']) != len(self._episodes):
            raise ValueError(
                f'the saved replay buffer has {len(state["episodes"])} unfinished episodes, this '
                f'one {len(self._episodes)}'
            )
        self._episodes = [_rows(episode) for episode in state['episodes']]
        self._returns = list(state['returns'])


def _stacked(episode: list[dict]) -> dict:
    """Turn transitions into arrays (T, ...); no transitions into no arrays."""
    return {key: np.stack([row[key] for row in episode]) for key in (episode[0] if episode else ())}


def _rows(arrays: Mapping) -> list[dict]:
    """Undo `_stacked`."""
    count = len(arrays['rewards']) if arrays else 0
    return [{key: array[i] for key, array in arrays.items()} for i in range(count)]
