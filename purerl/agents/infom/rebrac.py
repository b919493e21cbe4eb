"""Revisited behavior-regularized actor-critic (ReBRAC).

Paper: Tarasov et al., "Revisiting the minimalist approach to offline reinforcement learning"
(NeurIPS 2023). Original: chongyi-zheng/infom @ f0356dd, agents/rebrac.py.

Deviations: target networks are neither differentiated nor stepped by the optimiser (same results,
less work).
"""

from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.infom.encoders import make_encoder
from purerl.agents.infom.networks import Actor, Value
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import clip, move_target, prefixed, require
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict

TARGETS = ('modules_target_critic', 'modules_target_actor')


@trees.dataclass
class ReBRACAgent:
    """TD3+BC with layer normalisation and separate penalties for the actor and the critic."""

    rng: torch.Tensor
    network: TrainState
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'next_actions'})

    def critic_loss(self, batch, grad_params, rng):
        """Squared TD error against the penalised, noised target policy."""
        rng, sample_rng = random.split(rng)
        next_dist = self.network.select('target_actor')(batch['next_observations'])
        next_actions = next_dist.mode()
        noise = clip(
            random.normal(sample_rng, next_actions.shape) * self.config['actor_noise'],
            -self.config['actor_noise_clip'],
            self.config['actor_noise_clip'],
        )
        next_actions = clip(next_actions + noise, -1, 1)

        target_critic = self.network.select('target_critic')
        next_qs = target_critic(batch['next_observations'], actions=next_actions)  # (2, B)
        next_q = next_qs.amin(0)
        mse = (next_actions - batch['next_actions']).square().sum(-1)
        next_q = next_q - self.config['alpha_critic'] * mse
        target_q = batch['rewards'] + self.config['discount'] * batch['masks'] * next_q

        critic = self.network.select('critic')
        q = critic(batch['observations'], actions=batch['actions'], params=grad_params)
        critic_loss = (q - target_q).square().mean()
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
        }

    def actor_loss(self, batch, grad_params, rng):
        """Scaled negative Q plus the behaviour-cloning penalty."""
        dist = self.network.select('actor')(batch['observations'], params=grad_params)
        actions = dist.mode()

        # Q loss.
        qs = self.network.select('critic')(batch['observations'], actions=actions)  # (2, B)
        q = qs.amin(0)

        # BC loss.
        mse = (actions - batch['actions']).square().sum(-1)

        # Scaling by the mean magnitude makes the loss independent of the reward's scale.
        lam = (1 / q.abs().mean()).detach()
        actor_loss = -(lam * q).mean()
        bc_loss = (self.config['alpha_actor'] * mse).mean()
        total_loss = actor_loss + bc_loss
        return total_loss, {
            'total_loss': total_loss,
            'actor_loss': actor_loss,
            'bc_loss': bc_loss,
            'std': dist.stddev().mean(),
            'mse': mse.mean(),
        }

    @jit
    def pretraining_loss(self, batch, grad_params=None, rng=None):
        """Behaviour cloning; returns (loss, info)."""
        bc_loss, bc_info = self.behavioral_cloning_loss(batch, grad_params)
        return bc_loss, prefixed('bc', bc_info)

    @jit(static_argnames=('full_update',))
    def finetuning_loss(self, batch, grad_params=None, full_update=True, rng=None):
        """Critic loss and, on full updates, actor loss; returns (loss, info)."""
        require(batch, 'next_actions')
        rng = self.rng if rng is None else rng
        rng, actor_rng, critic_rng = random.split(rng, 3)

        loss, critic_info = self.critic_loss(batch, grad_params, critic_rng)
        info = prefixed('critic', critic_info)
        if full_update:
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
        """Take one step; actor and targets move only on full updates. Returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.finetuning_loss(batch, grad_params, full_update, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        if full_update:
            new_network = self.target_update(new_network, 'critic')
            new_network = self.target_update(new_network, 'actor')
        return self.replace(network=new_network, rng=new_rng), info

    @jit
    def sample_actions(self, observations, seed, temperature=1.0):
        """Return the policy's mode plus clipped noise, in [-1, 1]; `seed` is a key."""
        dist = self.network.select('actor')(observations, temperature=temperature)
        actions = dist.mode()
        noise = clip(
            random.normal(seed, actions.shape) * self.config['actor_noise'] * temperature,
            -self.config['actor_noise_clip'],
            self.config['actor_noise_clip'],
        )
        return clip(actions + noise, -1, 1)

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and example batches (only their shapes matter)."""
        rng, init_rng = random.split(random.key(seed))
        action_dim = ex_actions.shape[-1]

        def encoder():
            return None if config['encoder'] is None else make_encoder(config['encoder'])

        def critic_def():
            return Value(
                hidden_dims=config['value_hidden_dims'],
                layer_norm=config['value_layer_norm'],
                num_ensembles=2,
                encoder=encoder(),
            )

        def actor_def():
            return Actor(
                hidden_dims=config['actor_hidden_dims'],
                action_dim=action_dim,
                layer_norm=config['actor_layer_norm'],
                tanh_squash=config['tanh_squash'],
                state_dependent_std=False,
                const_std=True,
                final_fc_init_scale=config['actor_fc_scale'],
                encoder=encoder(),
            )

        network_info = {
            'critic': (critic_def(), (ex_observations, ex_actions)),
            'target_critic': (critic_def(), (ex_observations, ex_actions)),
            'actor': (actor_def(), (ex_observations,)),
            'target_actor': (actor_def(), (ex_observations,)),
        }
        network_def = nn.ModuleDict({k: v[0] for k, v in network_info.items()})
        network_args = {k: v[1] for k, v in network_info.items()}
        params = nn.init(network_def, init_rng, **network_args)
        params['modules_target_critic'] = trees.map(torch.clone, params['modules_critic'])
        params['modules_target_actor'] = trees.map(torch.clone, params['modules_actor'])

        network = TrainState.create(network_def, params, tx=optim.adam(config['lr']))
        return cls(rng, network=network, config=FrozenDict(config))


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'rebrac',  # Name in run folders and logs.
            'lr': 3e-4,  # Learning rate.
            'batch_size': 256,  # Batch size.
            'actor_hidden_dims': (512, 512, 512, 512),  # Widths of the actor's hidden layers.
            'value_hidden_dims': (512, 512, 512, 512),  # Widths of the critic's hidden layers.
            'actor_layer_norm': False,  # Whether the actor has layer normalisation.
            'value_layer_norm': True,  # Whether the critic has layer normalisation.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target networks.
            'tanh_squash': True,  # Whether actions are squashed by tanh.
            'actor_fc_scale': 0.01,  # Initialisation scale of the actor's last layer.
            'alpha_actor': 0.0,  # Weight of behaviour cloning in the actor's loss.
            'alpha_critic': 0.0,  # Weight of the action distance in the critic's target.
            'actor_freq': 4,  # A full update (actor and targets) every so many steps.
            'actor_noise': 0.2,  # Standard deviation of the action noise.
            'actor_noise_clip': 0.5,  # Bound of the action noise.
            # Encoder ('mlp', 'impala_small', ...), or None for flat observations.
            'encoder': ml_collections.config_dict.placeholder(str),
        }
    )
