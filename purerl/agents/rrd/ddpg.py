"""Deep deterministic policy gradient (DDPG) as RRD's original has it.

Paper: Lillicrap et al., "Continuous control with deep reinforcement learning" (ICLR 2016).
Original: Stilwell-Git/Randomized-Return-Decomposition @ bc80473, algorithm/basis_alg/ddpg.py.

Losses and gradients of one call use the parameters from before it. Deviations: noise comes from the
agent's key, unless the batch holds it; the normaliser's guards (see `networks.Normalizer`).
"""

from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.rrd import networks
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import polyak
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict


@trees.dataclass
class DDPGAgent:
    """A deterministic policy and one critic, each with a target, on normalised observations."""

    rng: torch.Tensor
    actor: TrainState
    target_actor: TrainState
    critic: TrainState
    target_critic: TrainState
    normalizer: networks.Normalizer | None
    updates: torch.Tensor
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'whole_episodes'})

    @classmethod
    def acts_discretely(cls, config) -> bool:
        """Whether it needs a discrete action space (and else a continuous one)."""
        return False

    def normalize(self, observations):
        """What the networks see of observations."""
        return networks.normalized(self.normalizer, observations)

    def target_values(self, batch):
        """Return the critic's targets, (B,)."""
        following = self.normalize(batch['next_observations'])
        next_actions = torch.tanh(self.target_actor(following))
        next_q = self.target_critic(following, next_actions)
        return batch['rewards'] + self.config['gamma'] * batch['masks'] * next_q

    def critic_loss(self, batch, params):
        """Squared error, and the mean of half the squared norms of all kernels and biases."""
        q = self.critic(self.normalize(batch['observations']), batch['actions'], params=params)
        critic_loss = (q - self.target_values(batch)).square().mean()
        norms = torch.stack([p.square().sum() / 2 for p in trees.leaves(params)])
        reg_loss = self.config['q_reg'] * norms.mean()
        return critic_loss + reg_loss, {'critic_loss': critic_loss, 'critic_reg_loss': reg_loss}

    def actor_loss(self, batch, params):
        """The critic's value of the policy's actions, negated."""
        observations = self.normalize(batch['observations'])
        actions = torch.tanh(self.actor(observations, params=params))
        actor_loss = -self.critic(observations, actions).mean()
        return actor_loss, {'actor_loss': actor_loss}

    @jit
    def train(self, batch):
        """One step of policy and critic, both from the same parameters; returns (agent, info)."""
        actor_grads, actor_info = torch.func.grad(
            lambda params: self.actor_loss(batch, params), has_aux=True
        )(self.actor.params)
        critic_grads, critic_info = torch.func.grad(
            lambda params: self.critic_loss(batch, params), has_aux=True
        )(self.critic.params)
        agent = self.replace(
            actor=self.actor.apply_gradients(actor_grads),
            critic=self.critic.apply_gradients(critic_grads),
        )
        return agent, {**actor_info, **critic_info}

    @jit
    def update_target(self):
        """Move both targets towards the online networks."""
        tau = 1 - self.config['polyak']
        actor = polyak(self.actor.params, self.target_actor.params, tau)
        critic = polyak(self.critic.params, self.target_critic.params, tau)
        return self.replace(
            target_actor=self.target_actor.replace(params=actor),
            target_critic=self.target_critic.replace(params=critic),
        )

    @jit
    def update(self, batch):
        """`train`, and every `train_target` updates `update_target`; returns (agent, info)."""
        agent, info = self.train(batch)
        return networks.counted_update(agent), info

    @jit
    def update_normalizer(self, batch):
        """Count a batch's observations in, where observations are normalised."""
        return self.replace(normalizer=networks.counted(self.normalizer, batch))

    def act(self, observations, noises):
        """Return the policy's actions plus `noises`, clipped to [-1, 1]."""
        actions = torch.tanh(self.actor(self.normalize(observations)))
        return (actions + noises).clamp(-1.0, 1.0)

    @jit
    def sample_actions(self, observations):
        """Sample actions for exploration; returns (actions, agent)."""
        rng, key = random.split(self.rng)
        actions = self.eval_actions(observations)[0]
        noises = random.normal(key, actions.shape) * self.config['std_act']
        return (actions + noises).clamp(-1.0, 1.0), self.replace(rng=rng)

    def warmup_actions(self, observations):
        """As `sample_actions`: the original explores by its policy from the first step."""
        return self.sample_actions(observations)

    @jit
    def eval_actions(self, observations):
        """Return the policy's actions; returns (actions, agent)."""
        return torch.tanh(self.actor(self.normalize(observations))), self

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples (only their shapes matter).

        Raises:
            ValueError: if there are not two hidden layers.
        """
        networks.check_layers(config, hidden_dims=2)
        rng, actor_key, critic_key = random.split(random.key(seed), 3)
        shape, action_dim = ex_observations.shape[1:], ex_actions.shape[-1]
        observations, actions = torch.zeros(1, *shape), torch.zeros(1, action_dim)

        actor_def = networks.Policy(config['hidden_dims'], action_dim)
        actor_params = nn.init(actor_def, actor_key, observations)
        critic_def = networks.Value(config['hidden_dims'], late_actions=True)
        critic_params = nn.init(critic_def, critic_key, observations, actions)
        copies = trees.map(torch.clone, (actor_params, critic_params))
        tx_actor, tx_critic = (optim.tf_adam(config[name]) for name in ('pi_lr', 'q_lr'))
        return cls(
            rng=rng,
            actor=TrainState.create(actor_def, actor_params, tx_actor, step=0),
            target_actor=TrainState.create(actor_def, copies[0], step=0),
            critic=TrainState.create(critic_def, critic_params, tx_critic, step=0),
            target_critic=TrainState.create(critic_def, copies[1], step=0),
            normalizer=networks.Normalizer.create(shape) if config['obs_normalization'] else None,
            updates=torch.tensor(0),
            config=FrozenDict(config),
        )


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'ddpg',  # Name in run folders and logs.
            'hidden_dims': (400, 300),  # Widths of the hidden layers.
            'pi_lr': 1e-4,  # Learning rate of the policy.
            'q_lr': 1e-3,  # Learning rate of the critic.
            'gamma': 0.99,  # Discount factor.
            'polyak': 0.999,  # Share of itself that a target keeps when it moves.
            'train_target': 2,  # Updates between moves of the targets.
            'q_reg': 1e-2,  # Weight of the critic's l2 penalty.
            'std_act': 0.1,  # Standard deviation of the exploration noise.
            'obs_normalization': True,  # Whether observations are normalised.
        }
    )
