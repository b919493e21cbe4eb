"""Twin delayed DDPG (TD3) as RRD's original has it.

Paper: Fujimoto et al., "Addressing function approximation error in actor-critic methods" (ICML
2018).
Original: Stilwell-Git/Randomized-Return-Decomposition @ bc80473, algorithm/basis_alg/td3.py.

Critic and policy learn from batches of their own. Deviations: noise comes from the agent's key,
unless the batch holds it; none is drawn for the policy's step (the original draws target noise
there, which nothing uses).
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
class TD3Agent:
    """A deterministic policy, two critics, and their targets."""

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

    def target_actions(self, batch):
        """Return the target policy's actions, smoothed by the batch's `target_noises`."""
        following = self.normalize(batch['next_observations'])
        actions = torch.tanh(self.target_actor(following))
        return (actions + batch['target_noises']).clamp(-1.0, 1.0)

    def target_values(self, batch):
        """Return the critics' targets, (B,)."""
        following = self.normalize(batch['next_observations'])
        next_q = networks.smaller(self.target_critic(following, self.target_actions(batch)))
        return batch['rewards'] + self.config['gamma'] * batch['masks'] * next_q

    def critic_loss(self, batch, params):
        """Squared errors of both critics, summed."""
        q = self.critic(self.normalize(batch['observations']), batch['actions'], params=params)
        critic_loss = (q - self.target_values(batch)).square().mean(-1).sum()
        return critic_loss, {'critic_loss': critic_loss}

    def actor_loss(self, batch, params):
        """The first critic's value of the policy's actions, negated."""
        observations = self.normalize(batch['observations'])
        actions = torch.tanh(self.actor(observations, params=params))
        actor_loss = -self.critic(observations, actions, only_first=True).mean()
        return actor_loss, {'actor_loss': actor_loss}

    @jit
    def train_critic(self, batch):
        """One step of the critics; returns (agent, info)."""
        agent, batch = self._with_noises(batch)
        grads, info = torch.func.grad(lambda params: self.critic_loss(batch, params), has_aux=True)(
            self.critic.params
        )
        return agent.replace(critic=self.critic.apply_gradients(grads)), info

    def _with_noises(self, batch):
        if 'target_noises' in batch:
            return self, batch
        rng, key = random.split(self.rng)
        noises = random.normal(key, batch['actions'].shape) * self.config['pi_t_std']
        limit = self.config['pi_t_clip']
        return self.replace(rng=rng), {**batch, 'target_noises': noises.clamp(-limit, limit)}

    @jit
    def train_actor(self, batch):
        """One step of the policy; returns (agent, info)."""
        grads, info = torch.func.grad(lambda params: self.actor_loss(batch, params), has_aux=True)(
            self.actor.params
        )
        return self.replace(actor=self.actor.apply_gradients(grads)), info

    @jit
    def update_target(self):
        """Move all targets towards the online networks."""
        tau = 1 - self.config['polyak']
        actor = polyak(self.actor.params, self.target_actor.params, tau)
        critic = polyak(self.critic.params, self.target_critic.params, tau)
        return self.replace(
            target_actor=self.target_actor.replace(params=actor),
            target_critic=self.target_critic.replace(params=critic),
        )

    @jit
    def update(self, batch, actor_batch=None):
        """One update: critics, policy if it has a batch, every `train_target` calls the targets.

        Args:
            batch: transitions for the critics.
            actor_batch: others for the policy, every `policy_delay` updates; else None.

        Returns:
            The new agent and the info of what was trained.
        """
        agent, info = self.train_critic(batch)
        if actor_batch is not None:
            agent, actor_info = agent.train_actor(actor_batch)
            info = {**info, **actor_info}
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
        critic_def = networks.TwinValue(config['hidden_dims'])
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
            'agent_name': 'td3',  # Name in run folders and logs.
            'hidden_dims': (256, 256),  # Widths of the hidden layers.
            'pi_lr': 3e-4,  # Learning rate of the policy.
            'q_lr': 3e-4,  # Learning rate of the critics.
            'gamma': 0.99,  # Discount factor.
            'polyak': 0.995,  # Share of itself that a target keeps when it moves.
            'train_target': 2,  # Updates between moves of the targets.
            'policy_delay': 2,  # Updates of the critics per update of the policy.
            'pi_t_std': 0.2,  # Standard deviation of the target policy's noise ...
            'pi_t_clip': 0.5,  # ... and the bound that it is clipped to.
            'std_act': 0.1,  # Standard deviation of the exploration noise.
            'obs_normalization': False,  # Whether observations are normalised.
        }
    )
