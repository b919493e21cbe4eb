"""Temporal difference InfoNCE (TD InfoNCE) with importance sampling.

Paper: Zheng et al., "Contrastive difference predictive coding" (ICLR 2024). Original:
chongyi-zheng/infom @ f0356dd, agents/td_infonce.py, a baseline of "Intention-conditioned flow
occupancy models" (2025).

As `crl_infonce`, but the critic of later states is learnt from single transitions: the next state
is the positive example, and the target critic says which of the batch's goals are likely from there
on.

Deviations: target networks are neither differentiated nor stepped by the optimiser, and features of
observations and actions are computed once for next observations and goals (same results, less
work); encoders work (the original fails with any): the actor takes observations through its own,
as in `crl_infonce`; an unknown `logit_agg` is refused when the agent is made, and goals that are
not one per observation are; `target_reset` returns an agent instead of changing this one.
"""

import math
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.infom.encoders import make_encoder
from purerl.agents.infom.networks import Actor, GCBilinearValue, Value
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import clip, move_target, prefixed, require
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict
from purerl.data.goals import require_goals

TARGETS = ('modules_target_critic',)


@trees.dataclass
class TDInfoNCEAgent:
    """Contrastive critic by temporal differences, reward regression, DDPG+BC policy."""

    rng: torch.Tensor
    network: TrainState
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'goals', 'next_actions'})

    @staticmethod
    def cross_entropy(logits, labels):
        """Cross entropy of the softmax over the last axis."""
        return -(labels * torch.log_softmax(logits, -1)).sum(-1)

    def reward_loss(self, batch, grad_params):
        """Squared error of the predicted reward."""
        rewards = self.network.select('reward')(batch['observations'], params=grad_params)
        reward_loss = (rewards - batch['rewards']).square().mean()
        return reward_loss, {'reward_loss': reward_loss}

    def contrastive_loss(self, batch, grad_params, td_loss_type='sarsa', rng=None):
        """TD InfoNCE; the next action is the data's ('sarsa') or the policy's ('q_learning')."""
        require_goals(batch, 'value_goals')
        # The features of observations and actions are the same for next observations and goals.
        goals = torch.cat([batch['next_observations'], batch['value_goals']])
        logits = self.network.select('critic')(
            batch['observations'], goals, actions=batch['actions'], params=grad_params
        )
        next_logits, random_logits = logits.chunk(2, -1)  # (2, B, B) each
        identity = torch.eye(next_logits.shape[-1], device=logits.device)
        next_logits = identity * next_logits + (1 - identity) * random_logits
        loss1 = self.cross_entropy(next_logits, identity)

        # How likely the goals are from the next observation on.
        next_actions = self._next_actions(batch, td_loss_type, rng)
        target_critic = self.network.select('target_critic')
        w_logits = target_critic(
            batch['next_observations'], batch['value_goals'], actions=next_actions
        )
        w = torch.softmax(self._aggregated(w_logits), -1).detach()
        # Weights that sum to 1, not to B, balance the one term of loss1 with the B of loss2.
        loss2 = self.cross_entropy(random_logits, w)

        discount = self.config['discount']
        contrastive_loss = ((1 - discount) * loss1 + discount * loss2).mean()

        # Additional statistics; the critic's values are its logits.
        v, logits = next_logits, next_logits.mean(0)
        correct = logits.argmax(1) == identity.argmax(1)
        return contrastive_loss, {
            'contrastive_loss': contrastive_loss,
            'v_mean': v.mean(),
            'v_max': v.max(),
            'v_min': v.min(),
            'binary_accuracy': ((logits > 0) == identity).float().mean(),
            'categorical_accuracy': correct.float().mean(),
            'logits_pos': (logits * identity).sum() / identity.sum(),
            'logits_neg': (logits * (1 - identity)).sum() / (1 - identity).sum(),
            'logits': logits.mean(),
        }

    def _next_actions(self, batch, td_loss_type, rng):
        if td_loss_type == 'sarsa':
            require(batch, 'next_actions')
            return batch['next_actions']
        dist = self.network.select('actor')(batch['next_observations'])
        return clip(dist.mode() if self.config['const_std'] else dist.sample(seed=rng), -1, 1)

    def _aggregated(self, logits):
        return logits.mean(0) if self.config['logit_agg'] == 'mean' else logits.amin(0)

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
        logits = critic(batch['observations'], batch['actor_goals'], q_actions)  # (2, B, B)
        logits = self._aggregated(logits)
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
        """Behaviour cloning and contrastive loss; returns (loss, info)."""
        bc_loss, bc_info = self.behavioral_cloning_loss(batch, grad_params)
        critic_loss, critic_info = self.contrastive_loss(batch, grad_params, 'sarsa')
        info = {**prefixed('bc', bc_info), **prefixed('critic', critic_info)}
        return critic_loss + bc_loss, info

    @jit(static_argnames=('full_update',))
    def finetuning_loss(self, batch, grad_params=None, full_update=True, rng=None):
        """Reward and contrastive losses and, on full updates, actor loss; returns (loss, info)."""
        rng = self.rng if rng is None else rng

        reward_loss, reward_info = self.reward_loss(batch, grad_params)
        rng, critic_rng = random.split(rng)
        critic_loss, critic_info = self.contrastive_loss(
            batch, grad_params, 'q_learning', critic_rng
        )
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

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        new_network = self.target_update(new_network, 'critic')
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

    def target_reset(self):
        """Return the agent with its target critic equal to the critic, for finetuning."""
        params = self.network.params
        target = trees.map(torch.clone, params['modules_critic'])
        params = {**params, 'modules_target_critic': target}
        return self.replace(network=self.network.replace(params=params))

    def target_update(self, network, module_name):
        """Move one target network of `network`; it follows the parameters from before the step."""
        return move_target(network, self.network, module_name, self.config['tau'])

    @jit
    def sample_actions(self, observations, seed, temperature=1.0):
        """Sample actions in [-1, 1]; `seed` is a key, `temperature` scales the deviations."""
        dist = self.network.select('actor')(observations, temperature=temperature)
        return clip(dist.sample(seed=seed), -1, 1)

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and example batches (only their shapes matter).

        Raises:
            ValueError: if `logit_agg` is unknown.
        """
        if config['logit_agg'] not in ('mean', 'min'):
            raise ValueError(f'logit_agg must be mean or min, got {config["logit_agg"]!r}')
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

        def critic_def():
            return GCBilinearValue(
                hidden_dims=config['value_hidden_dims'],
                latent_dim=config['latent_dim'],
                layer_norm=config['value_layer_norm'],
                num_ensembles=2,
                value_exp=False,
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
            'reward': (reward_def, (ex_observations,)),
            'critic': (critic_def(), (ex_observations, ex_goals, ex_actions)),
            'target_critic': (critic_def(), (ex_observations, ex_goals, ex_actions)),
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
            'agent_name': 'td_infonce',  # Name in run folders and logs.
            'lr': 3e-4,  # Learning rate.
            'batch_size': 256,  # Batch size.
            'actor_hidden_dims': (512, 512, 512, 512),  # Widths of the actor's hidden layers.
            'value_hidden_dims': (512, 512, 512, 512),  # Widths of the critic's hidden layers.
            'reward_hidden_dims': (512, 512, 512, 512),  # Widths of the reward's hidden layers.
            'actor_layer_norm': False,  # Whether the actor has layer normalisation.
            'value_layer_norm': True,  # Whether the critic has layer normalisation.
            'reward_layer_norm': True,  # Whether the reward has layer normalisation.
            'latent_dim': 512,  # Size of phi and psi.
            'discount': 0.99,  # Discount factor, also of the distances at which goals are drawn.
            'actor_freq': 4,  # A full update (actor too) every so many steps.
            'tau': 0.005,  # Rate of the target network.
            'logit_agg': 'mean',  # How the two critics' logits become one: 'mean' or 'min'.
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
