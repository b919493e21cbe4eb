"""Implicit Q-learning (IQL), as InFOM's baseline.

Paper: Kostrikov et al., "Offline reinforcement learning with implicit Q-learning" (ICLR 2022).
Original: chongyi-zheng/infom @ f0356dd, agents/iql.py. It differs from jaxrl5's IQL in having one
optimiser, behaviour cloning as pretraining, and DDPG+BC as a second way to extract the policy.

Deviations: target networks are neither differentiated nor stepped by the optimiser (same results,
less work); an unknown `actor_loss` is refused when the agent is made.
"""

from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.infom.encoders import make_encoder
from purerl.agents.infom.networks import Actor, Value
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import clip, expectile_loss, move_target, prefixed
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict

TARGETS = ('modules_target_critic',)


@trees.dataclass
class IQLAgent:
    """Expectile regression of the value, and advantage-weighted or DDPG+BC policies."""

    rng: torch.Tensor
    network: TrainState
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset()

    expectile_loss = staticmethod(expectile_loss)

    def value_loss(self, batch, grad_params):
        """Expectile regression of V on the smaller target Q."""
        target_critic = self.network.select('target_critic')
        q1, q2 = target_critic(batch['observations'], actions=batch['actions'])
        q = torch.minimum(q1, q2)
        v = self.network.select('value')(batch['observations'], params=grad_params)
        value_loss = self.expectile_loss(q - v, q - v, self.config['expectile']).mean()
        return value_loss, {
            'value_loss': value_loss,
            'v_mean': v.mean(),
            'v_max': v.max(),
            'v_min': v.min(),
        }

    def critic_loss(self, batch, grad_params):
        """Squared TD error of both critics against V of the next observation."""
        next_v = self.network.select('value')(batch['next_observations'])
        q = batch['rewards'] + self.config['discount'] * batch['masks'] * next_v

        critic = self.network.select('critic')
        q1, q2 = critic(batch['observations'], actions=batch['actions'], params=grad_params)
        critic_loss = ((q1 - q).square() + (q2 - q).square()).mean()
        return critic_loss, {
            'critic_loss': critic_loss,
            'q_mean': q.mean(),
            'q_max': q.max(),
            'q_min': q.min(),
        }

    def behavioral_cloning_loss(self, batch, grad_params):
        """Negative log-likelihood of the data's actions, for pretraining."""
        dist = self.network.select('actor')(batch['observations'], params=grad_params)
        log_prob = dist.log_prob(batch['actions'])
        bc_loss = -log_prob.mean()
        return bc_loss, {
            'bc_loss': bc_loss,
            'bc_log_prob': log_prob.mean(),
            'mse': (dist.mode() - batch['actions']).square().mean(),
            'std': dist.scale_diag.mean(),
        }

    def actor_loss(self, batch, grad_params, rng):
        """Advantage-weighted regression (AWR) or DDPG+BC."""
        if self.config['actor_loss'] == 'awr':
            return self._awr_loss(batch, grad_params)
        return self._ddpgbc_loss(batch, grad_params, rng)

    def _awr_loss(self, batch, grad_params):
        v = self.network.select('value')(batch['observations'])
        q1, q2 = self.network.select('critic')(batch['observations'], actions=batch['actions'])
        adv = torch.minimum(q1, q2) - v
        exp_a = torch.exp(adv * self.config['alpha']).clamp(max=100.0)

        dist = self.network.select('actor')(batch['observations'], params=grad_params)
        log_prob = dist.log_prob(batch['actions'])
        actor_loss = -(exp_a * log_prob).mean()
        return actor_loss, {
            'actor_loss': actor_loss,
            'adv': adv.mean(),
            'bc_log_prob': log_prob.mean(),
            'mse': (dist.mode() - batch['actions']).square().mean(),
            'std': dist.scale_diag.mean(),
        }

    def _ddpgbc_loss(self, batch, grad_params, rng):
        dist = self.network.select('actor')(batch['observations'], params=grad_params)
        q_actions = clip(dist.mode() if self.config['const_std'] else dist.sample(seed=rng), -1, 1)
        q1, q2 = self.network.select('critic')(batch['observations'], actions=q_actions)
        q = torch.minimum(q1, q2)

        # Scaling by the mean magnitude makes the loss independent of the reward's scale.
        q_loss = -q.mean() / q.abs().mean().detach()
        log_prob = dist.log_prob(batch['actions'])
        bc_loss = -(self.config['alpha'] * log_prob).mean()
        actor_loss = q_loss + bc_loss
        return actor_loss, {
            'actor_loss': actor_loss,
            'q_loss': q_loss,
            'bc_loss': bc_loss,
            'q_mean': q.mean(),
            'q_abs_mean': q.abs().mean(),
            'bc_log_prob': log_prob.mean(),
            'mse': (dist.mode() - batch['actions']).square().mean(),
            'std': dist.scale_diag.mean(),
        }

    @jit
    def pretraining_loss(self, batch, grad_params=None, rng=None):
        """Behaviour cloning; returns (loss, info)."""
        bc_loss, bc_info = self.behavioral_cloning_loss(batch, grad_params)
        return bc_loss, prefixed('bc', bc_info)

    @jit(static_argnames=('full_update',))
    def finetuning_loss(self, batch, grad_params=None, full_update=True, rng=None):
        """Value and critic losses and, on full updates, actor loss; returns (loss, info)."""
        rng = self.rng if rng is None else rng

        value_loss, value_info = self.value_loss(batch, grad_params)
        critic_loss, critic_info = self.critic_loss(batch, grad_params)
        info = {**prefixed('value', value_info), **prefixed('critic', critic_info)}
        loss = value_loss + critic_loss
        if full_update:
            rng, actor_rng = random.split(rng)
            actor_loss, actor_info = self.actor_loss(batch, grad_params, actor_rng)
            info.update(prefixed('actor', actor_info))
            loss = loss + actor_loss
        return loss, info

    def target_update(self, network, module_name):
        """Move one target network of `network`; it follows the parameters from before the step."""
        return move_target(network, self.network, module_name, self.config['tau'])

    @jit
    def pretrain(self, batch):
        """Take one step of behaviour cloning; returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.pretraining_loss(batch, grad_params, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        return self.replace(network=new_network, rng=new_rng), info

    @jit(static_argnames=('full_update',))
    def finetune(self, batch, full_update=True):
        """Take one step; the actor's loss counts only in full updates. Returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.finetuning_loss(batch, grad_params, full_update, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        new_network = self.target_update(new_network, 'critic')
        return self.replace(network=new_network, rng=new_rng), info

    @jit
    def sample_actions(self, observations, seed, temperature=1.0):
        """Sample actions in [-1, 1]; `seed` is a key, `temperature` scales the deviations."""
        dist = self.network.select('actor')(observations, temperature=temperature)
        return clip(dist.sample(seed=seed), -1, 1)

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and example batches (only their shapes matter).

        Raises:
            ValueError: if `actor_loss` is unknown.
        """
        if config['actor_loss'] not in ('awr', 'ddpgbc'):
            raise ValueError(f'actor_loss must be awr or ddpgbc, got {config["actor_loss"]!r}')
        rng, init_rng = random.split(random.key(seed))
        action_dim = ex_actions.shape[-1]

        def encoder():
            return None if config['encoder'] is None else make_encoder(config['encoder'])

        def value_def(num_ensembles):
            return Value(
                hidden_dims=config['value_hidden_dims'],
                layer_norm=config['value_layer_norm'],
                num_ensembles=num_ensembles,
                encoder=encoder(),
            )

        actor_def = Actor(
            hidden_dims=config['actor_hidden_dims'],
            action_dim=action_dim,
            state_dependent_std=False,
            layer_norm=config['actor_layer_norm'],
            const_std=config['const_std'],
            encoder=encoder(),
        )

        network_info = {
            'value': (value_def(1), (ex_observations,)),
            'critic': (value_def(2), (ex_observations, ex_actions)),
            'target_critic': (value_def(2), (ex_observations, ex_actions)),
            'actor': (actor_def, (ex_observations,)),
        }
        network_def = nn.ModuleDict({k: v[0] for k, v in network_info.items()})
        network_args = {k: v[1] for k, v in network_info.items()}
        params = nn.init(network_def, init_rng, **network_args)
        params['modules_target_critic'] = trees.map(torch.clone, params['modules_critic'])

        network = TrainState.create(network_def, params, tx=optim.adam(config['lr']))
        return cls(rng, network=network, config=FrozenDict(config))


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'iql',  # Name in run folders and logs.
            'lr': 3e-4,  # Learning rate.
            'batch_size': 256,  # Batch size.
            'actor_hidden_dims': (512, 512, 512, 512),  # Widths of the actor's hidden layers.
            'value_hidden_dims': (512, 512, 512, 512),  # Widths of the value's and critic's layers.
            'actor_layer_norm': False,  # Whether the actor has layer normalisation.
            'value_layer_norm': True,  # Whether value and critic have layer normalisation.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target network.
            'actor_freq': 4,  # A full update (actor too) every so many steps.
            'expectile': 0.9,  # Expectile of the value regression.
            'actor_loss': 'awr',  # How the policy is extracted: 'awr' or 'ddpgbc'.
            'alpha': 10.0,  # Inverse temperature in AWR, weight of cloning in DDPG+BC.
            'const_std': True,  # Whether the policy's standard deviation is fixed at 1.
            # Encoder ('mlp', 'impala_small', ...), or None for flat observations.
            'encoder': ml_collections.config_dict.placeholder(str),
        }
    )
