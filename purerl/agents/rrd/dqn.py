"""Deep Q-learning (DQN), with double and dueling options, as RRD's original has it.

Papers: Mnih et al., "Human-level control through deep reinforcement learning" (Nature, 2015); van
Hasselt et al., "Deep reinforcement learning with double Q-learning" (AAAI 2016); Wang et al.,
"Dueling network architectures for deep reinforcement learning" (ICML 2016).
Original: Stilwell-Git/Randomized-Return-Decomposition @ bc80473, algorithm/basis_alg/dqn.py.

Deviations: random actions come from the agent's key; epsilon follows from the number of actions
taken instead of a running difference; flat observations are not divided by 255 (the original does
so while acting); dueling without images is refused (the original ignores it).
"""

from typing import Any, ClassVar

import ml_collections
import torch
import torch.nn.functional as F

from purerl.agents.rrd import networks
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict

_OPTIMIZERS = ('adam', 'rmsprop')


@trees.dataclass
class DQNAgent:
    """Action values with a periodically copied target, explored epsilon-greedily."""

    rng: torch.Tensor
    critic: TrainState
    target_critic: TrainState
    normalizer: networks.Normalizer | None
    updates: torch.Tensor
    acted: torch.Tensor
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'whole_episodes'})

    @classmethod
    def acts_discretely(cls, config) -> bool:
        """Whether it needs a discrete action space (and else a continuous one)."""
        return True

    def normalize(self, observations):
        """What the networks see of observations."""
        return networks.normalized(self.normalizer, observations)

    def target_values(self, batch):
        """Return the targets, (B,)."""
        following = self.normalize(batch['next_observations'])
        next_values = self.target_critic(following)  # (B, A)
        if self.config['double']:
            best = self.critic(following).argmax(-1, keepdim=True)
            next_q = next_values.gather(-1, best).squeeze(-1)
        else:
            next_q = next_values.amax(-1)
        return batch['rewards'] + self.config['gamma'] * batch['masks'] * next_q

    def critic_loss(self, batch, params):
        """Huber loss of the taken actions' values."""
        values = self.critic(self.normalize(batch['observations']), params=params)
        q = values.gather(-1, batch['actions'].long()[..., None]).squeeze(-1)
        critic_loss = F.huber_loss(q, self.target_values(batch))
        return critic_loss, {'critic_loss': critic_loss}

    @jit
    def train(self, batch):
        """One step of the critic; returns (agent, info)."""
        grads, info = torch.func.grad(lambda params: self.critic_loss(batch, params), has_aux=True)(
            self.critic.params
        )
        return self.replace(critic=self.critic.apply_gradients(grads)), info

    @jit
    def update_target(self):
        """Copy the critic into its target."""
        copied = trees.map(torch.clone, self.critic.params)
        return self.replace(target_critic=self.target_critic.replace(params=copied))

    @jit
    def update(self, batch):
        """`train`, and every `train_target` updates `update_target`; returns (agent, info)."""
        agent, info = self.train(batch)
        return networks.counted_update(agent), info

    @jit
    def update_normalizer(self, batch):
        """Count a batch's observations in, where observations are normalised."""
        return self.replace(normalizer=networks.counted(self.normalizer, batch))

    def epsilon(self):
        """Return the share of random actions after `acted` actions, 0-d."""
        start, end = self.config['eps_l'], self.config['eps_r']
        epsilon = start - self.acted * ((start - end) / self.config['eps_decay'])
        return epsilon.clamp(min=end)

    def act(self, observations, uniforms, random_actions):
        """Return `random_actions` where `uniforms` do not exceed epsilon, else the best ones."""
        best, _ = self.eval_actions(observations)
        return torch.where(uniforms <= self.epsilon(), random_actions, best)

    @jit
    def sample_actions(self, observations):
        """Choose actions epsilon-greedily; returns (actions, agent).

        Observations of several environments get the same epsilon, and count one action each.
        """
        rng, key, action_key = random.split(self.rng, 3)
        best, _ = self.eval_actions(observations)
        uniforms = random.uniform(key, best.shape)
        actions = self.act(observations, uniforms, self._random_actions(action_key, best))
        return actions, self.replace(rng=rng, acted=self.acted + best.numel())

    @jit
    def warmup_actions(self, observations):
        """Choose uniformly random actions; epsilon falls meanwhile. Returns (actions, agent)."""
        rng, key = random.split(self.rng)
        best, _ = self.eval_actions(observations)
        actions = self._random_actions(key, best)
        return actions, self.replace(rng=rng, acted=self.acted + best.numel())

    def _random_actions(self, key, like):
        num_actions = self.config['num_actions']
        return random.randint(key, like.shape, 0, num_actions, dtype=torch.int64)

    @jit
    def eval_actions(self, observations):
        """Return the best actions; returns (actions, agent)."""
        return self.critic(self.normalize(observations)).argmax(-1), self

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples.

        Args:
            seed: an integer.
            ex_observations: (1, ...); images (1, H, W, C) get the convolutional network.
            ex_actions: one-hot actions, (1, number of actions).
            config: as of `get_config`.

        Raises:
            ValueError: for an unknown optimiser, a dueling network without images, another number
                of layers, or an epsilon that takes less than a step to fall.
        """
        if config['eps_decay'] < 1:
            raise ValueError(f'eps_decay={config["eps_decay"]} must be at least 1')
        makers = {
            'adam': lambda: optim.tf_adam(config['q_lr'], eps=config['Adam_eps']),
            'rmsprop': lambda: optim.tf_rmsprop(
                config['q_lr'], decay=config['RMSProp_decay'], eps=config['RMSProp_eps']
            ),
        }
        if config['optimizer'] not in makers:
            given = config['optimizer']
            raise ValueError(f'optimizer must be {" or ".join(_OPTIMIZERS)}, got {given!r}')
        shape, num_actions = ex_observations.shape[1:], ex_actions.shape[-1]
        if config['dueling'] and len(shape) == 1:
            raise ValueError('dueling=True needs image observations')
        rng, critic_key = random.split(random.key(seed))
        if len(shape) == 1:
            networks.check_layers(config, hidden_dims=2)
            critic_def = networks.ActionValues(config['hidden_dims'], num_actions)
        else:
            networks.check_layers(config, conv_features=3)
            critic_def = networks.ImageActionValues(
                config['conv_features'], config['dense_dim'], num_actions, config['dueling']
            )
        params = nn.init(critic_def, critic_key, torch.zeros(1, *shape))
        return cls(
            rng=rng,
            critic=TrainState.create(critic_def, params, makers[config['optimizer']](), step=0),
            target_critic=TrainState.create(critic_def, trees.map(torch.clone, params), step=0),
            normalizer=networks.Normalizer.create(shape) if config['obs_normalization'] else None,
            updates=torch.tensor(0),
            acted=torch.tensor(0),
            config=FrozenDict({**config, 'num_actions': num_actions}),
        )


def get_config(optimizer: str = 'adam'):
    """Return the original's defaults, whose learning rate depends on the optimiser.

    Raises:
        ValueError: for an unknown optimiser.
    """
    if optimizer not in _OPTIMIZERS:
        raise ValueError(f'optimizer must be {" or ".join(_OPTIMIZERS)}, got {optimizer!r}')
    return ml_collections.ConfigDict(
        {
            'agent_name': 'dqn',  # Name in run folders and logs.
            'conv_features': (32, 64, 64),  # Channels of the convolutions (images).
            'dense_dim': 512,  # Width of the layer behind them.
            'hidden_dims': (256, 256),  # Widths of the hidden layers (flat observations).
            'optimizer': optimizer,  # adam or rmsprop, with TensorFlow's formulae.
            'q_lr': 2.5e-4 if optimizer == 'rmsprop' else 0.625e-4,  # Learning rate.
            'Adam_eps': 1.5e-4,  # Adam's epsilon.
            'RMSProp_decay': 0.95,  # Decay of RMSProp's mean squares ...
            'RMSProp_eps': 1e-2,  # ... and its epsilon, inside the root.
            'gamma': 0.99,  # Discount factor.
            'train_target': 8000,  # Updates between copies into the target.
            'double': False,  # Whether the online network chooses the target's action.
            'dueling': False,  # Whether the network has base and advantages (images).
            'eps_l': 1.0,  # Share of random actions at the start ...
            'eps_r': 0.01,  # ... and at the end ...
            'eps_decay': 250_000,  # ... of so many steps.
            'obs_normalization': False,  # Whether observations are normalised.
        }
    )


def get_settings(optimizer: str = 'adam') -> dict:
    """Return the original's defaults of the loop's flags for Atari games."""
    return {
        'env_name': 'Assault',
        'epochs': 10,
        'cycles': 20,
        'iterations': 500,
        'train_batches': 25,
        'test_rollouts': 5,
        'test_timesteps': 27_000,
        'batch_size': 32,
        'warmup': 30_000,
    }
