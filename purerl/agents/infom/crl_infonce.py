"""Contrastive RL with InfoNCE and importance sampling (CRL + IS).

Papers: Eysenbach et al., "Contrastive learning as goal-conditioned reinforcement learning"
(NeurIPS 2022); Zheng et al., "Intention-conditioned flow occupancy models" (2025), where it is a
baseline. Original: chongyi-zheng/infom @ f0356dd, agents/crl_infonce.py.

The critic tells the states that follow a state and action from those of the rest of the batch. Its
ratios weigh the predicted rewards of later states: their mean is Q up to a constant.

Deviations: an unknown `contrastive_loss` is refused when the agent is made; goals that are not one
per observation are refused.
"""

import math
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.infom.encoders import make_encoder
from purerl.agents.infom.networks import Actor, GCBilinearValue, Value
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import clip, prefixed
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict
from purerl.data.goals import require_goals


@trees.dataclass
class CRLInfoNCEAgent:
    """Contrastive critic of discounted future states, reward regression, DDPG+BC policy."""

    rng: torch.Tensor
    network: TrainState
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'goals'})

    @staticmethod
    def cross_entropy(logits, labels):
        """Cross entropy of the softmax over the last axis."""
        return -(labels * torch.log_softmax(logits, -1)).sum(-1)

    def reward_loss(self, batch, grad_params):
        """Squared error of the predicted reward."""
        rewards = self.network.select('reward')(batch['observations'], params=grad_params)
        reward_loss = (rewards - batch['rewards']).square().mean()
        return reward_loss, {'reward_loss': reward_loss}

    def contrastive_loss(self, batch, grad_params):
        """InfoNCE: each goal belongs to the observation and action of its row."""
        require_goals(batch, 'value_goals')
        v, phi, psi = self.network.select('critic')(
            batch['observations'],
            batch['value_goals'],
            actions=batch['actions'],
            info=True,
            params=grad_params,
        )
        logits = phi @ psi.mT / phi.shape[-1] ** 0.5  # (2, B, B): one positive pair in each row
        identity = torch.eye(logits.shape[-1], device=logits.device)

        contrastive_loss = self.cross_entropy(logits, identity)
        if self.config['contrastive_loss'] == 'forward_infonce':
            penalty = torch.logsumexp(logits, -1).square()
            contrastive_loss = contrastive_loss + self.config['logsumexp_penalty_coeff'] * penalty
        else:
            contrastive_loss = contrastive_loss + self.cross_entropy(logits.mT, identity)
        contrastive_loss = contrastive_loss.mean()

        # Additional statistics.
        logits = logits.mean(0)
        binary_correct = logits.diagonal() > logits.roll(1, -1).diagonal()
        categorical_correct = logits.argmax(1) == identity.argmax(1)
        return contrastive_loss, {
            'contrastive_loss': contrastive_loss,
            'v_mean': v.mean(),
            'v_max': v.max(),
            'v_min': v.min(),
            'binary_accuracy': binary_correct.float().mean(),
            'categorical_accuracy': categorical_correct.float().mean(),
            'logits_pos': (logits * identity).sum() / identity.sum(),
            'logits_neg': (logits * (1 - identity)).sum() / (1 - identity).sum(),
            'logits': logits.mean(),
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

    def actor_loss(self, batch, grad_params, rng=None):
        """DDPG+BC; Q is the reward of a later state, weighed by how likely it is to follow."""
        require_goals(batch, 'actor_goals')
        dist = self.network.select('actor')(batch['observations'], params=grad_params)
        q_actions = clip(dist.mode() if self.config['const_std'] else dist.sample(seed=rng), -1, 1)
        critic = self.network.select('critic')
        ratios = critic(batch['observations'], batch['actor_goals'], q_actions)  # (2, B, B)
        # The critic exponentiates its logits; this gives them back, but for very small ones.
        logits1, logits2 = torch.maximum(ratios, ratios.new_full((), 1e-6)).log()
        logits = torch.minimum(logits1, logits2)
        num_goals = logits.shape[-1]
        log_ratios = logits.diagonal() - torch.logsumexp(logits, -1) + math.log(num_goals)

        rewards = self.network.select('reward')(batch['actor_goals'])
        q = torch.exp(log_ratios) * rewards

        q_loss = -q.mean()
        if self.config['normalize_q_loss']:
            # Scaling by the mean magnitude makes the loss independent of the reward's scale.
            lam = (1 / q.abs().mean()).detach()
            q_loss = lam * q_loss
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
        """Contrastive loss and behaviour cloning; returns (loss, info)."""
        critic_loss, critic_info = self.contrastive_loss(batch, grad_params)
        bc_loss, bc_info = self.behavioral_cloning_loss(batch, grad_params)
        info = {**prefixed('critic', critic_info), **prefixed('bc', bc_info)}
        return critic_loss + bc_loss, info

    @jit(static_argnames=('full_update',))
    def finetuning_loss(self, batch, grad_params=None, full_update=True, rng=None):
        """Reward and contrastive losses and, on full updates, actor loss; returns (loss, info)."""
        rng = self.rng if rng is None else rng

        reward_loss, reward_info = self.reward_loss(batch, grad_params)
        critic_loss, critic_info = self.contrastive_loss(batch, grad_params)
        info = {**prefixed('reward', reward_info), **prefixed('critic', critic_info)}
        loss = reward_loss + critic_loss
        if full_update:
            rng, actor_rng = random.split(rng)
            actor_loss, actor_info = self.actor_loss(batch, grad_params, actor_rng)
            info.update(prefixed('actor', actor_info))
            loss = loss + actor_loss
        return loss, info

    @jit
    def pretrain(self, batch):
        """Take one step on the critic and the actor; returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.pretraining_loss(batch, grad_params, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn)
        return self.replace(network=new_network, rng=new_rng), info

    @jit(static_argnames=('full_update',))
    def finetune(self, batch, full_update=True):
        """Take one step; the actor's loss counts only in full updates. Returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.finetuning_loss(batch, grad_params, full_update, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn)
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
            ValueError: if `contrastive_loss` is unknown.
        """
        if config['contrastive_loss'] not in ('forward_infonce', 'symmetric_infonce'):
            raise ValueError(
                'contrastive_loss must be forward_infonce or symmetric_infonce, '
                f'got {config["contrastive_loss"]!r}'
            )
        rng, init_rng = random.split(random.key(seed))
        ex_goals = ex_observations
        action_dim = ex_actions.shape[-1]

        def encoder():
            return None if config['encoder'] is None else make_encoder(config['encoder'])

        reward_def = Value(
            hidden_dims=config['reward_hidden_dims'],
            layer_norm=config['reward_layer_norm'],
            encoder=encoder(),
        )
        critic_def = GCBilinearValue(
            hidden_dims=config['value_hidden_dims'],
            latent_dim=config['latent_dim'],
            layer_norm=config['value_layer_norm'],
            num_ensembles=2,
            value_exp=True,
            state_encoder=encoder(),
            goal_encoder=encoder(),
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
            'critic': (critic_def, (ex_observations, ex_goals, ex_actions)),
            'actor': (actor_def, (ex_observations,)),
            'reward': (reward_def, (ex_observations,)),
        }
        network_def = nn.ModuleDict({k: v[0] for k, v in network_info.items()})
        network_args = {k: v[1] for k, v in network_info.items()}
        params = nn.init(network_def, init_rng, **network_args)

        network = TrainState.create(network_def, params, tx=optim.adam(config['lr']))
        return cls(rng, network=network, config=FrozenDict(config))


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'crl_infonce',  # Name in run folders and logs.
            'lr': 3e-4,  # Learning rate.
            'batch_size': 256,  # Batch size.
            'actor_hidden_dims': (512, 512, 512, 512),  # Widths of the actor's hidden layers.
            'value_hidden_dims': (512, 512, 512, 512),  # Widths of the critic's hidden layers.
            'reward_hidden_dims': (512, 512, 512, 512),  # Widths of the reward's hidden layers.
            'latent_dim': 512,  # Size of phi and psi.
            'actor_layer_norm': False,  # Whether the actor has layer normalisation.
            'value_layer_norm': True,  # Whether the critic has layer normalisation.
            'reward_layer_norm': True,  # Whether the reward has layer normalisation.
            'discount': 0.99,  # Discount factor, of the distances at which goals are drawn.
            'actor_freq': 4,  # A full update (actor too) every so many steps.
            'contrastive_loss': 'forward_infonce',  # Or 'symmetric_infonce'.
            'logsumexp_penalty_coeff': 0.01,  # Weight of forward InfoNCE's logsumexp penalty.
            'normalize_q_loss': True,  # Whether Q is divided by its mean magnitude.
            'alpha': 0.1,  # Weight of behaviour cloning in the actor's loss.
            'const_std': True,  # Whether the policy's standard deviation is fixed at 1.
            # Encoder ('mlp', 'impala_small', ...), or None for flat observations.
            'encoder': ml_collections.config_dict.placeholder(str),
            # Goals (see purerl.data.goals).
            'relabel_reward': False,  # Whether rewards and masks are those of reaching the goal.
            'value_p_curgoal': 0.0,  # Probability that the value's goal is the current state,
            'value_p_trajgoal': 1.0,  # a later state of the same episode,
            'value_p_randomgoal': 0.0,  # or any state.
            'value_geom_sample': True,  # Whether later states' distances are geometric or uniform.
            'value_geom_start_offset': 0,  # Without effect at 0 and 1: see purerl.data.goals.
            'actor_p_curgoal': 0.0,  # Probability that the actor's goal is the current state,
            'actor_p_trajgoal': 1.0,  # a later state of the same episode,
            'actor_p_randomgoal': 0.0,  # or any state.
            'actor_geom_sample': False,  # Whether later states' distances are geometric or uniform.
            'actor_geom_start_offset': 0,  # Without effect at 0 and 1: see purerl.data.goals.
            'gc_negative': True,  # Goal rewards: 0 at the goal and -1 elsewhere, or 1 and 0.
        }
    )
