"""Randomized return decomposition (RRD) around a base algorithm.

Paper: Ren et al., "Learning long-term reward redistribution via randomized return decomposition"
(ICLR 2022).
Original: Stilwell-Git/Randomized-Return-Decomposition @ bc80473, algorithm/rrd.py.

The base agent is a field, which is handed the same batches with predicted rewards. Rewards are
predicted, and the base is trained, with the reward network from before the step.
"""

from typing import Any, ClassVar

import torch

from purerl.agents.rrd import networks
from purerl.agents.rrd.bases import AroundBase, base_class, base_config, base_settings
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict


@trees.dataclass
class RRDAgent(AroundBase):
    """A base agent and a reward network that explains episodes' returns."""

    base: Any
    reward: TrainState
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'whole_episodes', 'subsequences'})

    def predict(self, batch, prefix: str = '', params=None):
        """Return the rewards that the network gives to transitions, of any leading axes."""
        observations = self.base.normalize(batch[f'{prefix}observations'])
        following = self.base.normalize(batch[f'{prefix}next_observations'])
        actions = batch[f'{prefix}actions']
        if self.acts_discretely(self.config):
            choices = torch.arange(self.base.config['num_actions'], device=actions.device)
            actions = (actions[..., None] == choices).to(torch.float32)
        lead = actions.shape[:-1]
        flat = [x.flatten(0, len(lead) - 1) for x in (observations, actions, following)]
        return self.reward(*flat, params=params).unflatten(0, lead)

    def reward_loss(self, batch, params):
        """Squared error of subsequences' mean rewards, minus its variance with bias correction.

        `rrd_rewards` (K,) are the episodes' returns divided by their lengths, `rrd_observations`
        (K, n, ...) and so on the subsequences, `rrd_var_coef` (K,) the share of the variance that
        sampling without replacement leaves.
        """
        predicted = self.predict(batch, 'rrd_', params)  # (K, n)
        reward_loss = (predicted.mean(1) - batch['rrd_rewards']).square().mean()
        info = {'reward_loss': reward_loss}
        if not self.config['rrd_bias_correction']:
            return reward_loss, info
        variance = self.variances(predicted) * batch['rrd_var_coef'] / predicted.shape[1]
        info['reward_variance'] = variance.mean()
        return reward_loss - info['reward_variance'], info

    def variances(self, predicted):
        """Unbiased variance of each subsequence's predicted rewards, (K,)."""
        deviations = predicted - predicted.mean(1, keepdim=True)
        return deviations.square().sum(1) / (predicted.shape[1] - 1)

    def _relabelled(self, batch):
        """The batch that the base sees, with predicted rewards."""
        kept = {key: value for key, value in batch.items() if not key.startswith('rrd_')}
        return {**kept, 'rewards': self.predict(batch)}

    @jit
    def train_reward(self, batch):
        """One step of the reward network; returns (agent, info)."""
        grads, info = torch.func.grad(lambda params: self.reward_loss(batch, params), has_aux=True)(
            self.reward.params
        )
        return self.replace(reward=self.reward.apply_gradients(grads)), info

    @jit
    def train(self, batch):
        """One step of the base on predicted rewards, and of the reward network."""
        base, info = self.base.train(self._relabelled(batch))
        agent, reward_info = self.train_reward(batch)
        return agent.replace(base=base), {**info, **reward_info}

    @jit
    def train_critic(self, batch):
        """As `train`, for a base whose policy learns from batches of its own."""
        base, info = self.base.train_critic(self._relabelled(batch))
        agent, reward_info = self.train_reward(batch)
        return agent.replace(base=base), {**info, **reward_info}

    @jit
    def train_actor(self, batch):
        """One step of the base's policy."""
        base, info = self.base.train_actor(batch)
        return self.replace(base=base), info

    @jit
    def update(self, batch, *actor_batch):
        """One update of base and reward network; arguments as the base's, returns (agent, info)."""
        base, info = self.base.update(self._relabelled(batch), *actor_batch)
        agent, reward_info = self.train_reward(batch)
        return agent.replace(base=base), {**info, **reward_info}

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples, as its base does.

        Raises:
            ValueError: for an unknown base, a subsequence too short, or a reward network that has
                not two hidden layers.
        """
        base = base_class(config).create(seed, ex_observations, ex_actions, config)
        size = config['rrd_sample_size']
        if size < 1 or (config['rrd_bias_correction'] and size < 2):
            raise ValueError(
                f'rrd_sample_size={size} is too short: a subsequence has at least one transition, '
                'with rrd_bias_correction two'
            )
        if config['rrd_batch_size'] < size:
            raise ValueError(
                f'rrd_batch_size={config["rrd_batch_size"]} has no room for a subsequence of '
                f'rrd_sample_size={size}'
            )
        shape, action_dim = ex_observations.shape[1:], ex_actions.shape[-1]
        if len(shape) == 1:
            networks.check_layers(config, reward_hidden_dims=2)
            reward_def = networks.Reward(config['reward_hidden_dims'])
        else:
            reward_def = networks.ImageReward(
                config['conv_features'], config['dense_dim'], action_dim
            )
        example = torch.zeros(1, *shape)
        # Apart from the base's keys: the same seed gives the same base without RRD.
        key = random.fold_in(random.key(seed), 1)
        params = nn.init(reward_def, key, example, torch.zeros(1, action_dim), example)
        tx = optim.tf_adam(config['r_lr'])
        return cls(
            base=base,
            reward=TrainState.create(reward_def, params, tx, step=0),
            config=FrozenDict(config),
        )


def get_config(basis_alg: str = 'sac'):
    """Return the original's defaults around a base: its config and the fields added here."""
    config = base_config(basis_alg, 'rrd')
    images = config.basis_alg == 'dqn'
    config.r_lr = 3e-4  # Learning rate of the reward network.
    config.reward_hidden_dims = (256, 256)  # Its hidden layers (flat observations).
    # Transitions that a reward step sees, and those of them from one episode.
    config.rrd_batch_size = 32 if images else 256
    config.rrd_sample_size = 32 if images else 64
    config.rrd_bias_correction = False  # Whether the loss is corrected for the sample's variance.
    return config


def get_settings(basis_alg: str = 'sac') -> dict:
    """Return the original's defaults of the loop's flags, where they depend on the base."""
    return base_settings(basis_alg)
