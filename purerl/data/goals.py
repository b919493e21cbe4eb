"""Transitions with goals, for goal-conditioned agents.

Counterpart of ``GCDataset`` in ``utils/datasets.py`` of chongyi-zheng/infom @ f0356dd, draw for
draw.

Deviations from the original:
- With frame stacking the goals are stacked once (the original stacks them twice and fails).
- A last episode that the dataset's end cuts off ends there (the original refuses such a dataset).
- Relabelled rewards and masks are float32.
- A config that lacks a probability, or asks for geometric distances without discounting, is refused
  when the sampler is made; `p_aug` and `frame_stack` may be absent.
"""

from collections.abc import Mapping

import numpy as np

from purerl.core.ops import require
from purerl.data import sampling
from purerl.data.check import DatasetError
from purerl.data.dataset import Dataset, augment


class GCDataset:
    """Samples a dataset's transitions together with goals for the value and for the actor.

    A goal is, with the configured probabilities, the current state, a later state of the same
    episode, or a random state. The config, a mapping, has for each of `value_` and `actor_`:

        p_curgoal, p_trajgoal, p_randomgoal   probabilities, which sum to 1
        geom_sample                           later states at geometric (True) or uniform distance
        geom_start_offset                     see `sample_goals`

    and `discount` (of the geometric distance), `gc_negative` (rewards 0 at the goal and -1
    elsewhere, instead of 1 and 0) and `relabel_reward` (put them in the place of `rewards` and
    `masks`). It may have `p_aug` (probability of randomly cropping goal images, or None) and
    `frame_stack` (None, or the dataset's).
    """

    def __init__(self, dataset: Dataset, config: Mapping):
        """Prepare goal sampling.

        Raises:
            DatasetError: if the dataset has no episode ends, the config lacks an entry,
                probabilities do not sum to 1, geometric distances have no end (a discount of 1),
                or `frame_stack` differs from the dataset's.
        """
        _check_config(config)
        self.dataset = dataset
        self.config = config
        self.size = dataset.size
        self.terminal_locs = _episode_ends(dataset)
        if config.get('frame_stack') not in (None, dataset.frame_stack):
            raise DatasetError(
                f'frame_stack is {config["frame_stack"]} in the config, but '
                f'{dataset.frame_stack} in the dataset; set it on the dataset'
            )

    def sample(self, batch_size: int, rng, idxs: np.ndarray | None = None) -> dict:
        """Draw a batch of transitions with goals.

        Args:
            batch_size: number of transitions B.
            rng: random source, see `purerl.data.sampling`.
            idxs: (B,) indices to take instead of random ones.

        Returns:
            The dataset's batch, and `value_goals`, `actor_goals` (observations),
            `relabeled_rewards` and `relabeled_masks` ((B,), by whether the current state is the
            value goal).
        """
        source, config = sampling.resolve(rng), self.config
        if idxs is None:
            idxs = self.dataset.random_indices(batch_size, source)
        batch = self.dataset.sample(batch_size, source, idxs)
        value_goal_idxs = self.sample_goals(idxs, 'value', source)
        actor_goal_idxs = self.sample_goals(idxs, 'actor', source)
        batch['value_goals'] = self.dataset.get_observations(value_goal_idxs)
        batch['actor_goals'] = self.dataset.get_observations(actor_goal_idxs)

        successes = (idxs == value_goal_idxs).astype(np.float32)
        batch['relabeled_masks'] = 1.0 - successes
        batch['relabeled_rewards'] = successes - (1.0 if config['gc_negative'] else 0.0)
        if config['relabel_reward']:
            batch['masks'] = batch['relabeled_masks']
            batch['rewards'] = batch['relabeled_rewards']
        p_aug = config.get('p_aug')
        if p_aug is not None and source.rand() < p_aug:
            augment(batch, ['value_goals', 'actor_goals'], source)
        return batch

    def sample_goals(self, idxs: np.ndarray, kind: str, rng) -> np.ndarray:
        """Draw a goal for each index.

        Parity quirk of the original's ``sample_goals``: `geom_start_offset` arrives in the place
        of another argument (a number of goals). So geometric distances start at 1 whatever the
        offset, and with uniform distances an offset above 1 crosses all indices with all
        distances: (B, B) goals.

        Args:
            idxs: (B,) indices of the current states.
            kind: 'value' or 'actor'.
            rng: random source.

        Returns:
            Indices of the goals, (B,), or (B, B) as above.
        """
        source, config, batch_size = sampling.resolve(rng), self.config, len(idxs)
        p_curgoal, p_trajgoal = config[f'{kind}_p_curgoal'], config[f'{kind}_p_trajgoal']
        random_goal_idxs = self.dataset.random_indices(batch_size, source)
        final_idxs = self.terminal_locs[np.searchsorted(self.terminal_locs, idxs)]
        if config[f'{kind}_geom_sample']:
            distances = source.geometric(1 - config['discount'], batch_size)
            trajectory_goal_idxs = np.minimum(idxs + distances, final_idxs)
        else:
            fractions = source.rand(batch_size)  # in [0, 1)
            first, final = np.minimum(idxs + 1, final_idxs), final_idxs
            if config[f'{kind}_geom_start_offset'] > 1:
                first, final = first[:, None], final[:, None]
            goal_steps = first * fractions + final * (1 - fractions)
            trajectory_goal_idxs = np.round(goal_steps).astype(np.int64)
        # Whether the goal is the current state is decided last: condition on its not being so.
        take_trajectory = source.rand(batch_size) < p_trajgoal / (1.0 - p_curgoal + 1e-6)
        goal_idxs = np.where(take_trajectory, trajectory_goal_idxs, random_goal_idxs)
        return np.where(source.rand(batch_size) < p_curgoal, idxs, goal_idxs)

    def normalize_observations(self, observations=None):
        """Call `Dataset.normalize_observations`."""
        return self.dataset.normalize_observations(observations)


def require_goals(batch: dict, name: str) -> None:
    """Check that a batch holds one goal for each observation.

    Args:
        batch: what an agent was given.
        name: 'value_goals' or 'actor_goals'.

    Raises:
        ValueError: if there are none, or another number (see `GCDataset.sample_goals`).
    """
    require(batch, name)
    goals, observations = tuple(batch[name].shape), tuple(batch['observations'].shape)
    if goals != observations:
        kind = name.removesuffix('_goals')
        raise ValueError(
            f'{name} have shape {goals}, observations {observations}, but each observation needs '
            f'one goal; {kind}_geom_start_offset above 1 gives more where {kind}_geom_sample is '
            'False: set it to 1'
        )


def _check_config(config: Mapping) -> None:
    kinds = ('value', 'actor')
    probabilities = {
        kind: [f'{kind}_p_{goal}goal' for goal in ('cur', 'traj', 'random')] for kind in kinds
    }
    distances = [f'{kind}_geom_{name}' for kind in kinds for name in ('sample', 'start_offset')]
    shared = ['discount', 'gc_negative', 'relabel_reward']
    needed = [*probabilities['value'], *probabilities['actor'], *distances, *shared]
    missing = [name for name in needed if name not in config]
    if missing:
        raise DatasetError(f'the config lacks {", ".join(missing)}, by which goals are drawn')
    for kind, names in probabilities.items():
        total = sum(config[name] for name in names)
        if not np.isclose(total, 1.0):
            raise DatasetError(f'{" + ".join(names)} must be 1, not {total}')
        if config[f'{kind}_geom_sample'] and not config['discount'] < 1:
            raise DatasetError(
                f'{kind}_geom_sample draws goals at distances that a discount of '
                f'{config["discount"]} makes endless: set discount below 1, or '
                f'{kind}_geom_sample to False'
            )


def _episode_ends(dataset: Dataset) -> np.ndarray:
    ends = dataset.terminal_locs
    if len(ends) == 0:
        raise DatasetError(
            f'{dataset.name}: no episode ends (terminals are all 0), so there are no later states '
            "of the same episode to take goals from; collect the data with 'terminals', or choose "
            'an agent without goals'
        )
    if ends[-1] != dataset.size - 1:
        ends = np.append(ends, dataset.size - 1)
    return ends
