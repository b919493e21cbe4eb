"""Transitions imagined by an agent's model, for agents that need 'model_rollouts'.

Counterpart of what ``main.py`` of chongyi-zheng/infom @ f0356dd does for MBPO. Parity quirks of the
original: the buffer holds 100 transitions, and batches are drawn from it only once it holds more
than a batch; a rollout of several steps starts each of them from the same observations; the next
actions of a batch are those of unrelated neighbours. The config fields `model_buffer_size` and
`advance_model_rollouts`, where an agent has them, lift the first two.
"""

from collections.abc import Callable, Mapping

import numpy as np

from purerl.core import random
from purerl.data.replay import ReplayBuffer
from purerl.train.evaluation import to_numpy
from purerl.train.seeds import stack, unstack

BUFFER_SIZE = 100


class ModelRollouts:
    """The imagined transitions of one seed.

    Attributes:
        key: key of the actions; the original's ``PRNGKey(seed)``, split before each step.
        buffer: the transitions.
    """

    def __init__(self, arrays: Mapping, config: Mapping, seed: int):
        """Make an empty buffer for transitions like those of a dataset's `arrays`."""
        example = {name: array[0] for name, array in arrays.items()}
        self.key = random.key(seed)
        self.buffer = ReplayBuffer.create(example, config.get('model_buffer_size', BUFFER_SIZE))
        self.buffer.return_next_actions = True

    def add_to(self, batch: dict, batch_size: int, stream) -> None:
        """Add a batch of imagined transitions (`model_observations`, ...), if there are enough."""
        if self.buffer.size > batch_size:
            for name, array in self.buffer.sample(batch_size, stream).items():
                batch[f'model_{name}'] = array

    def next_key(self):
        """Split the key and return the key of one step's actions."""
        self.key, step_key = random.split(self.key)
        return step_key

    def remember(self, observations, actions, rewards, next_observations) -> None:
        """Add imagined transitions, which never end an episode."""
        known = {
            'observations': observations,
            'actions': actions,
            'rewards': rewards,
            'next_observations': next_observations,
            'masks': np.ones_like(rewards),
        }
        ends = np.zeros_like(rewards)
        self.buffer.add_transitions({name: known.get(name, ends) for name in self.buffer.arrays})

    def state(self) -> dict:
        return {'key': self.key, 'buffer': self.buffer.state_dict()}

    def set_state(self, state: Mapping) -> None:
        self.key = state['key']
        self.buffer.load_state_dict(state['buffer'])


def model_step(agent, key, observations):
    """Act in the agent's model; returns (actions, rewards, next observations)."""
    actions = agent.sample_actions(observations, seed=key, temperature=1.0)
    rewards = agent.predict_rewards(observations, actions)
    return actions, rewards, agent.predict_next_observations(observations, actions)


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
    num = len(rollouts)
    for _ in range(config['num_model_rollout_steps']):
        keys = stack([rollout.next_key() for rollout in rollouts])
        results = unstack([to_numpy(x) for x in step(agent, keys, stack(observations))], num)
        for rollout, start, result in zip(rollouts, observations, results, strict=True):
            rollout.remember(start, *result)
        if config.get('advance_model_rollouts', False):
            observations = [following for _, _, following in results]
