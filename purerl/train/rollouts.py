"""Transitions imagined by an agent's model, for agents that need 'model_rollouts'.

Counterpart of what ``main.py`` of chongyi-zheng/infom @ f0356dd does for MBPO, draw for draw. Three
parity quirks of the original stay unless fields of the agent's config, where it has them, say
otherwise:

    model_buffer_size       The buffer holds 100 transitions, and batches are drawn from it only
                            once it holds more than a batch: never, at the default batch size.
    advance_model_rollouts  If False, all steps of a rollout start from the same observations.
    model_next_actions      'neighbours': the next actions of a batch are those of whatever comes
                            next in the buffer, in general of another rollout. 'policy': what the
                            agent does at the imagined next observation.

Deviations from the original: entries of the dataset that say nothing about a transition are left
out of the buffer (the original crashes); so do frame-stacked observations fit in.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np

from purerl.core import random, trees
from purerl.data.replay import ReplayBuffer
from purerl.train.evaluation import to_numpy
from purerl.train.seeds import stack, unstack

BUFFER_SIZE = 100
_IMAGINED = ('observations', 'actions', 'rewards', 'next_observations')
_FLAGS = ('masks', 'terminals', 'dones')


class ModelRollouts:
    """The imagined transitions of one seed.

    Attributes:
        key: key of the actions; the original's ``PRNGKey(seed)``, split before each step.
        buffer: the transitions.
    """

    def __init__(self, batch: Mapping, config: Mapping, seed: int):
        """Make an empty buffer for transitions like those of a `batch` of the data.

        Args:
            batch: dict of arrays with a leading axis, of which only shapes and dtypes matter.
            config: the agent's.
            seed: the run's.
        """
        capacity, batch_size = config.get('model_buffer_size', BUFFER_SIZE), config['batch_size']
        if capacity <= batch_size:
            warnings.warn(
                f'model_buffer_size={capacity} is not above batch_size={batch_size}: no batch will '
                'ever come from the model, as in the original; set it to 100000, say, to learn '
                'from imagined transitions',
                stacklevel=2,
            )
        example = {name: batch[name][0] for name in (*_IMAGINED, *_FLAGS) if name in batch}
        by_policy = _acts_next(config)
        if by_policy:
            example['next_actions'] = example['actions']
        self.key = random.key(seed)
        self.buffer = ReplayBuffer.create(example, capacity)
        self.buffer.return_next_actions = not by_policy

    def add_to(self, batch: dict, batch_size: int, stream) -> None:
        """Add a batch of imagined transitions (`model_observations`, ...), if there are enough."""
        if self.buffer.size > batch_size:
            for name, array in self.buffer.sample(batch_size, stream).items():
                batch[f'model_{name}'] = array

    def next_key(self):
        """Split the key and return the key of one step's actions."""
        self.key, step_key = random.split(self.key)
        return step_key

    def remember(self, transitions: Mapping) -> None:
        """Add imagined transitions, the results of `model_step`, which never end an episode."""
        ends = np.zeros_like(transitions['rewards'])
        known = {'masks': 1 - ends, **transitions}
        self.buffer.add_transitions({name: known.get(name, ends) for name in self.buffer.arrays})

    def state(self) -> dict:
        """Return everything that `set_state` needs to go on bit for bit."""
        return {'key': self.key, 'buffer': self.buffer.state_dict()}

    def set_state(self, state: Mapping) -> None:
        """Take over what `state` returned."""
        self.key = state['key']
        self.buffer.load_state_dict(state['buffer'])


def _acts_next(config: Mapping) -> bool:
    return config.get('model_next_actions', 'neighbours') == 'policy'


def model_step(agent, key, observations) -> dict:
    """Act in the agent's model.

    Args:
        agent: an agent with a model.
        key: of the actions.
        observations: (B, ...).

    Returns:
        Transitions: observations, actions, rewards and next_observations, and next_actions
        where the agent's config asks for those of the policy.
    """
    by_policy = _acts_next(agent.config)
    if by_policy:
        key, next_key = random.split(key)
    actions = agent.sample_actions(observations, seed=key, temperature=1.0)
    following = agent.predict_next_observations(observations, actions)
    transitions = {
        'observations': observations,
        'actions': actions,
        'rewards': agent.predict_rewards(observations, actions),
        'next_observations': following,
    }
    if by_policy:
        next_actions = agent.sample_actions(following, seed=next_key, temperature=1.0)
        transitions['next_actions'] = next_actions
    return transitions


def imagine(
    step: Callable, agent, rollouts: list[ModelRollouts], observations: list, config: Mapping
) -> None:
    """Let the agents of all seeds act in their models, and remember what happens.

    Args:
        step: `model_step` over all seeds (`purerl.train.seeds.over_seeds`).
        agent: the agent, or the agents of all seeds stacked.
        rollouts: one per seed.
        observations: where to start, one array (B, ...) per seed.
        config: the agent's, with `num_model_rollout_steps`.
    """
    advances = config.get('advance_model_rollouts', False)
    for _ in range(config['num_model_rollout_steps']):
        keys = stack([rollout.next_key() for rollout in rollouts])
        results = trees.map(to_numpy, step(agent, keys, stack(observations)))
        results = unstack(results, len(rollouts))
        for rollout, transitions in zip(rollouts, results, strict=True):
            rollout.remember(transitions)
        if advances:
            observations = [transitions['next_observations'] for transitions in results]
