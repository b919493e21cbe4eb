"""Replay buffers of whole episodes: for RRD's subsequences and IRCR's returns.

Counterparts of algorithm/replay_buffer of Stilwell-Git/Randomized-Return-Decomposition @ bc80473.
Each transition is drawn as a position in the buffer, which decides the episode, and then a position
in that episode. Random sources are those of `purerl.data.sampling`; with a `np.random.RandomState`
the draws are the originals', number for number, with others those of a batch come all at once.

Transitions of an unfinished episode wait (`append`). When it has ended (`commit`) they are written
once, where they stay, and leave with their whole episode. Several environments can fill a buffer
side by side: each has a lane of its own, in which its episodes wait.

Deviations: what is stored is float32; an episode that is longer than the buffer is refused when it
outgrows it (the original fails with an index error).
"""

from collections.abc import Mapping

import numpy as np
import torch

from purerl.core import trees
from purerl.data import sampling, storage
from purerl.data.unfinished_episodes import UnfinishedEpisodes

_ELITE = 10  # episodes with the largest returns that IRCR keeps


class EpisodeReplay:
    """A first-in-first-out buffer of transitions that knows their episodes.

    Attributes:
        capacity: transitions of finished episodes that it holds at most.
        length: transitions that it holds.
        stored: transitions that it has ever held (the original's `step_counter`).
        episodes: episodes that it has ever held, finished ones (`ep_counter`).
        dropped: episodes that had to leave (`head_idx`).
        bounds: smallest and largest return of the episodes at hand.
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
            example: a transition: `observations`, `actions`, `rewards`, `masks`,
                `next_observations`.
            capacity: room for transitions of finished episodes.
            max_episode: room for those of an unfinished one.
            lanes: environments that fill it side by side.
            device: where finished episodes lie and batches are gathered; None for numpy arrays.

        Raises:
            ValueError: if one of them is below one.
        """
        if capacity < 1 or max_episode < 1:
            raise ValueError(f'a replay buffer needs room, got {capacity} and {max_episode}')
        self.capacity = capacity
        self._device = device
        self._arrays = {
            key: storage.hold(np.zeros((capacity, *np.shape(value)), _stored_dtype(value)), device)
            for key, value in example.items()
            if key in self._columns
        }
        # By row: its episode's number. By that number, modulo capacity: first row, length, return.
        self._episode_of = np.zeros(capacity, np.int64)
        self._starts = np.zeros(capacity, np.int64)
        self._lengths = np.zeros(capacity, np.int64)
        self._returns = np.zeros(capacity, np.float64)
        self._head = self.length = self.stored = self.episodes = self.dropped = 0
        advice = ' and does not fit into the replay buffer: it needs a larger one or a time limit'
        self._unfinished = UnfinishedEpisodes(lanes, min(max_episode, capacity), advice)
        self.bounds = (0.0, 0.0)

    _columns = ('observations', 'actions', 'rewards', 'masks', 'next_observations')

    # --- Filling -----------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """How many transitions the unfinished episodes have."""
        return self._unfinished.pending

    def append(self, transition: Mapping, lane: int = 0) -> None:
        """Add a transition to the unfinished episode of a lane.

        Raises:
            ValueError: if the episode outgrows the buffer, or its reward or observations are not
                finite.
        """
        self._unfinished.append({key: transition[key] for key in self._arrays}, lane)
        self._append_observation(transition, lane)

    def commit(self, lane: int = 0) -> None:
        """End a lane's episode: its transitions count from now on.

        Raises:
            ValueError: if it has none.
        """
        transitions, total = self._unfinished.take(lane)
        length = len(transitions['rewards'])
        while self.length + length > self.capacity:
            self._drop()
        number = self.episodes % self.capacity
        rows = (self._head + self.length + np.arange(length)) % self.capacity
        self._starts[number], self._lengths[number], self._returns[number] = rows[0], length, total
        self._episode_of[rows] = self.episodes
        for key, array in self._arrays.items():
            array[rows] = transitions[key]
        self._commit_observations(self.episodes, lane)
        self.length += length
        self.stored += length
        self.episodes += 1
        returns = self.returns()
        self.bounds = (float(returns.min()), float(returns.max()))

    def _drop(self):
        length = self._lengths[self.dropped % self.capacity]
        self._drop_observations(self.dropped)
        self._head = int((self._head + length) % self.capacity)
        self.length -= int(length)
        self.dropped += 1

    def held(self) -> np.ndarray:
        """Return the table positions of the held episodes, oldest first."""
        return np.arange(self.dropped, self.episodes) % self.capacity

    def lengths(self) -> np.ndarray:
        """Return the held episodes' lengths, oldest first."""
        return self._lengths[self.held()]

    def returns(self) -> np.ndarray:
        """Return the held episodes' returns (float64), oldest first."""
        return self._returns[self.held()]

    def episode_numbers(self) -> np.ndarray:
        """Return the held transitions' episodes, oldest first."""
        return self._episode_of[(self._head + np.arange(self.length)) % self.capacity]

    # --- Drawing -----------------------------------------------------------------------------

    def _episode_at(self, positions):
        """Return the episodes (their numbers modulo capacity) of positions in the buffer."""
        return self._episode_of[(self._head + positions) % self.capacity] % self.capacity

    def _draw(self, batch_size: int, source) -> tuple[np.ndarray, np.ndarray]:
        """Draw transitions; returns their episodes and their positions in them."""
        if self.length == 0:
            raise ValueError('no episode has ended yet: there is nothing to sample')
        return _draw_transitions(batch_size, source, self.length, self._episode_at, self._lengths)

    def _draw_subsequence(self, size: int, source, episode: int) -> np.ndarray:
        """Draw positions in an episode; with repetitions only if it is shorter than `size`."""
        length = int(self._lengths[episode])
        if isinstance(source, np.random.RandomState):
            return source.choice(length, size, replace=size > length)
        return source.randint(length, size) if size > length else source.permutation(length)[:size]

    def _transitions(self, episodes: np.ndarray, positions: np.ndarray) -> dict:
        """Gather transitions; the arrays have the index arrays' (common) shape in front."""
        rows = (self._starts[episodes] + positions) % self.capacity
        gathered = {key: array[rows] for key, array in self._arrays.items()}
        return {**gathered, **self._observations(episodes, positions)}

    def sample(self, batch_size: int, rng) -> dict:
        """Draw a batch of transitions.

        Args:
            batch_size: how many.
            rng: random source, see `purerl.data.sampling`.

        Returns:
            A dict of arrays (B, ...); tensors, what lies on a device.

        Raises:
            ValueError: if no episode has ended yet.
        """
        return self._transitions(*self._draw(batch_size, _source(rng)))

    def sample_subsequences(
        self, batch_size: int, rng, rrd_batch_size: int, rrd_sample_size: int, coefficients: bool
    ) -> dict:
        """Draw a batch and subsequences for RRD's reward step.

        Args:
            batch_size: transitions in the batch.
            rng: random source, see `purerl.data.sampling`.
            rrd_batch_size: room for the subsequences' transitions: K = rrd_batch_size // n.
            rrd_sample_size: transitions n in each of the K subsequences, drawn without repetition
                from one episode; with repetition if the episode is shorter.
            coefficients: whether `rrd_var_coef` is wanted.

        Returns:
            The batch, and `rrd_observations`, `rrd_next_observations`, `rrd_actions` (K, n, ...),
            `rrd_rewards` (K,), the episodes' returns divided by their lengths, and `rrd_var_coef`
            (K,): 1 - n / length, 1 for episodes shorter than n, 0 for those of one step.
        """
        source = _source(rng)
        batch = self.sample(batch_size, source)
        count = rrd_batch_size // rrd_sample_size
        episodes = np.empty(count, np.int64)
        positions = np.empty((count, rrd_sample_size), np.int64)
        for i in range(count):
            episodes[i] = self._episode_at(_draw_integer(source, self.length))
            positions[i] = self._draw_subsequence(rrd_sample_size, source, int(episodes[i]))
        drawn = self._transitions(np.broadcast_to(episodes[:, None], positions.shape), positions)
        lengths = self._lengths[episodes]
        batch |= {
            f'rrd_{key}': drawn[key] for key in ('observations', 'next_observations', 'actions')
        }
        batch['rrd_rewards'] = np.float32(self._returns[episodes] / lengths)
        if coefficients:
            share = np.where(rrd_sample_size <= lengths, 1 - rrd_sample_size / lengths, 1.0)
            batch['rrd_var_coef'] = np.float32(np.where(lengths > 1, share, 0.0))
        return batch

    def sample_returns(self, batch_size: int, rng) -> dict:
        """Draw a batch for IRCR: with the transitions' episodes' `returns` (B,).

        0-d `return_low` and `return_high` are the bounds of the returns at hand. Of an
        `EliteReplay`, half of the batch (rounded up) is of the ten largest returns' episodes.
        """
        episodes, positions = self._draw(batch_size, _source(rng))
        low, high = np.float32(self.bounds)
        return {
            **self._transitions(episodes, positions),
            'returns': np.float32(self._returns[episodes]),
            'return_low': np.asarray(low),
            'return_high': np.asarray(high),
        }

    # --- Observations (overridden for stacked frames) -------------------------------------------

    def _append_observation(self, transition, lane):
        """Keep what is not in the arrays; flat observations are."""

    def _commit_observations(self, number, lane):
        """Keep an episode's observations."""

    def _drop_observations(self, number):
        """Forget an episode's observations."""

    def _observations(self, episodes, positions) -> dict:
        return {}

    # --- Saving ------------------------------------------------------------------------------

    _COUNTERS = ('_head', 'length', 'stored', 'episodes', 'dropped')
    _TABLES = ('_starts', '_lengths', '_returns')

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs; write or copy it before the next call.

        Arrays are cut down to the rows in use, oldest first.
        """
        rows, held = (self._head + np.arange(self.length)) % self.capacity, self.held()
        if self.length == 0:
            rows = held = slice(0)  # unlike what no rows pick, arrays with strides, to be saved
        return {
            'capacity': self.capacity,
            'bounds': self.bounds,
            'unfinished': self._unfinished.state_dict(),
            'counters': {name: getattr(self, name) for name in self._COUNTERS},
            'arrays': {key: storage.to_host(array[rows]) for key, array in self._arrays.items()},
            'tables': {name: getattr(self, name)[held] for name in self._TABLES},
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: if it belongs to a buffer of another capacity, other arrays or lanes.
        """
        if state['capacity'] != self.capacity:
            raise ValueError(
                f'the saved replay buffer has room for {state["capacity"]} transitions, this one '
                f'for {self.capacity}'
            )
        shapes = {key: array.shape[1:] for key, array in self._arrays.items()}
        saved = {key: array.shape[1:] for key, array in state['arrays'].items()}
        if saved != shapes:
            raise ValueError(f'the saved replay buffer holds {saved}, this one {shapes}')
        self._unfinished.load_state_dict(state['unfinished'])
        self.bounds = tuple(state['bounds'])
        for name in self._COUNTERS:
            setattr(self, name, state['counters'][name])
        rows = (self._head + np.arange(self.length)) % self.capacity
        for key, array in self._arrays.items():
            array[rows] = state['arrays'][key]
        held = self.held()
        for name in self._TABLES:
            getattr(self, name)[held] = state['tables'][name]
        self._episode_of[rows] = np.repeat(np.arange(self.dropped, self.episodes), self.lengths())


class EliteReplay(EpisodeReplay):
    """An episode buffer that also keeps copies of the ten episodes with the largest returns.

    Attributes:
        elite: those episodes, in the order in which they came in: dicts of arrays (T, ...) and
            the `return`.
        bounds: smallest and largest return of all episodes at hand, these included.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.elite: list[dict] = []

    def commit(self, lane: int = 0) -> None:
        super().commit(lane)
        self._update_elite((self.episodes - 1) % self.capacity)
        values = [*self.bounds, *(episode['return'] for episode in self.elite)]
        self.bounds = (min(values), max(values))

    def _update_elite(self, number):
        value = float(self._returns[number])
        if len(self.elite) >= _ELITE:
            worst = int(np.argmin([episode['return'] for episode in self.elite]))
            if self.elite[worst]['return'] > value:
                return
            self.elite.pop(worst)
        rows = (self._starts[number] + np.arange(self._lengths[number])) % self.capacity
        episode = {key: array[rows] for key, array in self._arrays.items()}
        self.elite.append({**episode, 'return': value})

    def elite_numbers(self) -> np.ndarray:
        """Return the elite's transitions' episodes, by their positions in `elite`."""
        return np.repeat(np.arange(len(self.elite)), [len(e['rewards']) for e in self.elite])

    def sample_returns(self, batch_size: int, rng) -> dict:
        source, half = _source(rng), batch_size // 2
        batch = super().sample_returns(half, source)
        bounds = {key: batch.pop(key) for key in ('return_low', 'return_high')}
        numbers = self.elite_numbers()
        lengths = np.array([len(episode['rewards']) for episode in self.elite])
        drawn = _draw_transitions(
            batch_size - half, source, len(numbers), numbers.__getitem__, lengths
        )
        picked = [(self.elite[number], position) for number, position in zip(*drawn, strict=True)]
        rows = {
            key: storage.stack([episode[key][position] for episode, position in picked])
            for key in self._arrays
        }
        rows['returns'] = np.float32([episode['return'] for episode, _ in picked])
        return {
            **{key: storage.concatenate(batch[key], rows[key]) for key in batch},
            **bounds,
        }

    def state_dict(self) -> dict:
        return {**super().state_dict(), 'elite': trees.map(storage.to_host, self.elite)}

    def load_state_dict(self, state: Mapping) -> None:
        super().load_state_dict(state)
        self.elite = [
            {key: storage.put(value, self._device) for key, value in episode.items()}
            for episode in state['elite']
        ]


def _stored_dtype(value) -> np.dtype:
    dtype = np.asarray(value).dtype
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _source(rng):
    """Return a random source to draw from; a `RandomState` as it is, the others resolved."""
    return rng if isinstance(rng, np.random.RandomState) else sampling.resolve(rng)


def _draw_integer(source, high: int) -> int:
    if isinstance(source, np.random.RandomState):
        return source.randint(high)
    return int(source.randint(high, ()))


def _draw_transitions(num: int, source, total: int, episode_at, lengths: np.ndarray):
    """Draw `num` of `total` transitions.

    Args:
        episode_at: maps positions among them, one or an array, to episodes.
        lengths: the episodes' lengths.

    Returns:
        The episodes, and positions in them, two arrays (num,).
    """
    if not isinstance(source, np.random.RandomState):
        episodes = episode_at(source.randint(total, num))
        positions = (source.rand(num) * lengths[episodes]).astype(np.int64)
        return episodes, np.minimum(positions, lengths[episodes] - 1)  # products may round up
    episodes, positions = np.empty(num, np.int64), np.empty(num, np.int64)
    for i in range(num):
        episodes[i] = episode = episode_at(source.randint(total))
        positions[i] = source.randint(lengths[episode])
    return episodes, positions
