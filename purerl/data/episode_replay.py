"""Replay buffers of whole episodes: for RRD's subsequences and IRCR's returns.

Counterparts of algorithm/replay_buffer of Stilwell-Git/Randomized-Return-Decomposition @ bc80473.
A random source is a `np.random.RandomState`, and draws are the originals', number for number: each
transition is drawn as a position in the buffer, which decides the episode, and then a position in
that episode.

Transitions are written once, where they stay, and leave with their whole episode. Those of an
unfinished episode wait (`append`) and count once it has ended (`commit`).

Deviations: what is stored is float32; an episode that is longer than the buffer is refused when it
outgrows it (the original fails with an index error).
"""

from collections.abc import Mapping

import numpy as np

_ELITE = 10  # episodes with the largest returns that IRCR keeps


class EpisodeReplay:
    """A first-in-first-out buffer of transitions that knows their episodes.

    Attributes:
        capacity: transitions of finished episodes that it holds at most.
        length: transitions that it holds.
        stored: transitions that it has ever held (the original's `step_counter`).
        episodes: episodes that it has ever held, finished ones (`ep_counter`).
        dropped: episodes that had to leave (`head_idx`).
        pending: transitions of the unfinished episode.
        bounds: smallest and largest return of the episodes at hand.
    """

    def __init__(self, example: Mapping, capacity: int, max_episode: int):
        """Make an empty buffer.

        Args:
            example: a transition: `observations`, `actions`, `rewards`, `masks`,
                `next_observations`.
            capacity: room for transitions of finished episodes.
            max_episode: room for those of the unfinished one.

        Raises:
            ValueError: if either is below one.
        """
        if capacity < 1 or max_episode < 1:
            raise ValueError(f'a replay buffer needs room, got {capacity} and {max_episode}')
        self.capacity = capacity
        self._rows = capacity + min(max_episode, capacity)
        self._arrays = {
            key: np.zeros((self._rows, *np.shape(value)), _stored_dtype(value))
            for key, value in example.items()
            if key in self._columns
        }
        # By row: the number of its episode. By that number, modulo rows: first row, length, return.
        self._episode_of = np.zeros(self._rows, np.int64)
        self._starts = np.zeros(self._rows, np.int64)
        self._lengths = np.zeros(self._rows, np.int64)
        self._returns = np.zeros(self._rows, np.float64)
        self._head = self.length = self.stored = self.episodes = self.dropped = self.pending = 0
        self._pending_return = 0.0
        self.bounds = (0.0, 0.0)

    _columns = ('observations', 'actions', 'rewards', 'masks', 'next_observations')

    # --- Filling -----------------------------------------------------------------------------

    def append(self, transition: Mapping) -> None:
        """Add a transition to the unfinished episode.

        Raises:
            ValueError: if the episode outgrows the buffer, or its reward is not finite.
        """
        if self.pending == self._rows - self.capacity:
            raise ValueError(
                f'an episode has not ended after {self.pending} steps and does not fit into the '
                'replay buffer: it needs a larger buffer or a time limit'
            )
        if not np.isfinite(transition['rewards']):
            raise ValueError(f'the reward {transition["rewards"]} is not a finite number')
        row = (self._head + self.length + self.pending) % self._rows
        for key, array in self._arrays.items():
            array[row] = transition[key]
        self._pending_return += float(transition['rewards'])
        self._append_observation(transition)
        self.pending += 1

    def commit(self) -> None:
        """End the episode: its transitions count from now on."""
        length = self.pending
        if length == 0:
            raise ValueError('an episode has at least one transition')
        number = self.episodes % self._rows
        self._starts[number] = (self._head + self.length) % self._rows
        self._lengths[number], self._returns[number] = length, self._pending_return
        rows = (self._starts[number] + np.arange(length)) % self._rows
        self._episode_of[rows] = self.episodes
        self.pending, self._pending_return = 0, 0.0
        self._commit_observations(self.episodes)
        self.length += length
        self.stored += length
        self.episodes += 1
        while self.length > self.capacity:
            self._drop()
        returns = self.returns()
        self.bounds = (float(returns.min()), float(returns.max()))

    def _drop(self):
        length = self._lengths[self.dropped % self._rows]
        self._drop_observations(self.dropped)
        self._head = int((self._head + length) % self._rows)
        self.length -= int(length)
        self.dropped += 1

    def held(self) -> np.ndarray:
        """Return the table positions of the held episodes, oldest first."""
        return np.arange(self.dropped, self.episodes) % self._rows

    def lengths(self) -> np.ndarray:
        """Return the held episodes' lengths, oldest first."""
        return self._lengths[self.held()]

    def returns(self) -> np.ndarray:
        """Return the held episodes' returns (float64), oldest first."""
        return self._returns[self.held()]

    def episode_numbers(self) -> np.ndarray:
        """Return the held transitions' episodes, oldest first."""
        return self._episode_of[(self._head + np.arange(self.length)) % self._rows]

    # --- Drawing -----------------------------------------------------------------------------

    def _draw_episode(self, stream) -> int:
        """Draw the episode (its number modulo rows) of a uniformly drawn transition."""
        position = stream.randint(self.length)
        return int(self._episode_of[(self._head + position) % self._rows]) % self._rows

    def _draw(self, batch_size: int, stream) -> tuple[np.ndarray, np.ndarray]:
        """Draw transitions; returns their episodes and their positions in them."""
        if self.length == 0:
            raise ValueError('no episode has ended yet: there is nothing to sample')
        episodes, positions = np.empty(batch_size, np.int64), np.empty(batch_size, np.int64)
        for i in range(batch_size):
            episodes[i] = episode = self._draw_episode(stream)
            positions[i] = stream.randint(self._lengths[episode])
        return episodes, positions

    def _draw_subsequence(self, size: int, stream, episode: int) -> np.ndarray:
        """Draw positions in an episode; with repetitions only if it is shorter than `size`."""
        length = int(self._lengths[episode])
        return stream.choice(length, size, replace=size > length)

    def _transitions(self, episodes: np.ndarray, positions: np.ndarray) -> dict:
        """Gather transitions; the arrays have the index arrays' (common) shape in front."""
        rows = (self._starts[episodes] + positions) % self._rows
        gathered = {key: array[rows] for key, array in self._arrays.items()}
        return {**gathered, **self._observations(episodes, positions)}

    def sample(self, batch_size: int, stream) -> dict:
        """Draw a batch of transitions.

        Args:
            batch_size: how many.
            stream: a `np.random.RandomState`.

        Returns:
            A dict of arrays (B, ...).

        Raises:
            ValueError: if no episode has ended yet.
        """
        return self._transitions(*self._draw(batch_size, stream))

    def sample_subsequences(
        self, batch_size: int, stream, rrd_batch_size: int, rrd_sample_size: int, coefficients: bool
    ) -> dict:
        """Draw a batch and subsequences for RRD's reward step.

        Args:
            batch_size: transitions in the batch.
            stream: a `np.random.RandomState`.
            rrd_batch_size: transitions in all subsequences, rounded down to a multiple of
            rrd_sample_size: transitions n in each of the K subsequences, drawn without repetition
                from one episode; with repetition if the episode is shorter.
            coefficients: whether `rrd_var_coef` is wanted.

        Returns:
            The batch, and `rrd_observations`, `rrd_next_observations`, `rrd_actions` (K, n, ...),
            `rrd_rewards` (K,), the episodes' returns divided by their lengths, and `rrd_var_coef`
            (K,): 1 - n / length, 1 for episodes shorter than n, 0 for those of one step.
        """
        batch = self.sample(batch_size, stream)
        count = rrd_batch_size // rrd_sample_size
        episodes = np.empty(count, np.int64)
        positions = np.empty((count, rrd_sample_size), np.int64)
        for i in range(count):
            episodes[i] = self._draw_episode(stream)
            positions[i] = self._draw_subsequence(rrd_sample_size, stream, int(episodes[i]))
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

    def sample_returns(self, batch_size: int, stream) -> dict:
        """Draw a batch for IRCR: with the transitions' episodes' `returns` (B,).

        0-d `return_low` and `return_high` are the bounds of the returns at hand. Of an
        `EliteReplay`, half of the batch (rounded up) is of the ten largest returns' episodes.
        """
        episodes, positions = self._draw(batch_size, stream)
        low, high = np.float32(self.bounds)
        return {
            **self._transitions(episodes, positions),
            'returns': np.float32(self._returns[episodes]),
            'return_low': np.asarray(low),
            'return_high': np.asarray(high),
        }

    # --- Observations (overridden for stacked frames) -------------------------------------------

    def _append_observation(self, transition):
        """Keep what is not in the arrays; flat observations are."""

    def _commit_observations(self, number):
        """Keep an episode's observations."""

    def _drop_observations(self, number):
        """Forget an episode's observations."""

    def _observations(self, episodes, positions) -> dict:
        return {}

    # --- Saving ------------------------------------------------------------------------------

    _COUNTERS = ('_head', 'length', 'stored', 'episodes', 'dropped', 'pending', '_pending_return')
    _TABLES = ('_starts', '_lengths', '_returns')

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs; write or copy it before the next call.

        Arrays are cut down to the rows in use, oldest first.
        """
        rows = (self._head + np.arange(self.length + self.pending)) % self._rows
        held = self.held()
        return {
            'capacity': self.capacity,
            'bounds': self.bounds,
            'counters': {name: getattr(self, name) for name in self._COUNTERS},
            'arrays': {key: array[rows] for key, array in self._arrays.items()},
            'tables': {name: getattr(self, name)[held] for name in self._TABLES},
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: if it belongs to a buffer of another capacity or other arrays.
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
        self.bounds = tuple(state['bounds'])
        for name in self._COUNTERS:
            setattr(self, name, state['counters'][name])
        rows = (self._head + np.arange(self.length + self.pending)) % self._rows
        for key, array in self._arrays.items():
            array[rows] = state['arrays'][key]
        held = self.held()
        for name in self._TABLES:
            getattr(self, name)[held] = state['tables'][name]
        for number in range(self.dropped, self.episodes):
            start, length = (x[number % self._rows] for x in (self._starts, self._lengths))
            self._episode_of[(start + np.arange(length)) % self._rows] = number


class EliteReplay(EpisodeReplay):
    """An episode buffer that also keeps copies of the ten episodes with the largest returns.

    Attributes:
        elite: those episodes, in the order in which they came in: dicts of arrays (T, ...) and
            the `return`.
        bounds: smallest and largest return of all episodes at hand, these included.
    """

    def __init__(self, example: Mapping, capacity: int, max_episode: int):
        super().__init__(example, capacity, max_episode)
        self.elite: list[dict] = []

    def commit(self) -> None:
        super().commit()
        self._update_elite((self.episodes - 1) % self._rows)
        values = [*self.bounds, *(episode['return'] for episode in self.elite)]
        self.bounds = (min(values), max(values))

    def _update_elite(self, number):
        value = float(self._returns[number])
        if len(self.elite) >= _ELITE:
            worst = int(np.argmin([episode['return'] for episode in self.elite]))
            if self.elite[worst]['return'] > value:
                return
            self.elite.pop(worst)
        rows = (self._starts[number] + np.arange(self._lengths[number])) % self._rows
        episode = {key: array[rows] for key, array in self._arrays.items()}
        self.elite.append({**episode, 'return': value})

    def elite_numbers(self) -> np.ndarray:
        """Return the elite's transitions' episodes, by their positions in `elite`."""
        return np.repeat(np.arange(len(self.elite)), [len(e['rewards']) for e in self.elite])

    def sample_returns(self, batch_size: int, stream) -> dict:
        half = batch_size // 2
        batch = super().sample_returns(half, stream)
        bounds = {key: batch.pop(key) for key in ('return_low', 'return_high')}
        numbers, picked = self.elite_numbers(), []
        for _ in range(batch_size - half):
            episode = self.elite[numbers[stream.randint(len(numbers))]]
            position = stream.randint(len(episode['rewards']))
            row = {key: episode[key][position] for key in self._arrays}
            picked.append({**row, 'returns': np.float32(episode['return'])})
        return {
            **{key: np.concatenate([batch[key], [row[key] for row in picked]]) for key in batch},
            **bounds,
        }

    def state_dict(self) -> dict:
        return {**super().state_dict(), 'elite': self.elite}

    def load_state_dict(self, state: Mapping) -> None:
        super().load_state_dict(state)
        self.elite = list(state['elite'])


def _stored_dtype(value) -> np.dtype:
    dtype = np.asarray(value).dtype
    return np.dtype(np.float32) if dtype == np.float64 else dtype
