"""Hilbert foundation policies (HILP): a metric of states, and the skills that move along it.

Paper: Park et al., "Foundation policies with Hilbert representations" (ICML 2024).
Original: chongyi-zheng/infom @ f0356dd, agents/hilp.py.

Deviations: target networks are neither differentiated nor stepped by the optimiser (same results,
less work); phi's last bias is not differentiated (its gradient is zero); `target_reset` returns a
new agent; missing goals or latents are reported before anything is compiled.
"""

import math
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.infom.encoders import GCEncoder, make_encoder
from purerl.agents.infom.networks import GCActor, GCMetricValue, GCValue
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import clip, expectile_loss, move_target, prefixed, require
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict
from purerl.data.goals import require_goals

TARGETS = ('modules_target_value', 'modules_target_skill_critic')


def least_squares(a, b):
    """Return the x of smallest norm among those that minimise ||a x - b||.

    Args:
        a: (M, N).
        b: (M,).

    Returns:
        (N,); like ``jnp.linalg.lstsq``, by singular values, of which those below
        ``eps max(M, N)`` times the largest count as zero. NaN if `a` is not finite.
    """
    # torch raises an error for such matrices, which under vmap would end the other seeds too.
    finite = a.isfinite().all()
    u, s, vt = torch.linalg.svd(torch.where(finite, a, 0.0), full_matrices=False)
    kept = (s > 0) & (s >= torch.finfo(a.dtype).eps * max(a.shape) * s[0])
    inverse = torch.where(kept, 1 / torch.where(kept, s, 1.0), 0.0)
    return torch.where(finite, vt.mT @ (inverse * (u.mT @ b)), torch.nan)


def fix_origin(params, last):
    """Detach the bias of phi's layer `last`, which cancels in every distance.

    The original's gradient of it is exactly zero. Generated code may sum in another order, and
    Adam turns the rounding that is left into full steps.
    """
    value = params['modules_value']
    layer = value['phi'][last]
    phi = {**value['phi'], last: {**layer, 'bias': layer['bias'].detach()}}
    return {**params, 'modules_value': {**value, 'phi': phi}}


def _value_info(value_loss, v):
    return {'value_loss': value_loss, 'v_mean': v.mean(), 'v_max': v.max(), 'v_min': v.min()}


@trees.dataclass
class HILPAgent:
    """Goal-reaching values -||phi(s) - phi(g)||, and IQL for the skills along directions of phi."""

    rng: torch.Tensor
    network: TrainState
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'goals'})

    expectile_loss = staticmethod(expectile_loss)

    def value_loss(self, batch, grad_params):
        """Expectile regression of the goal-conditioned values, each on its own target's.

        The weights come from target values alone, which curbs overestimation as double DQN does.
        """
        rewards, goals = batch['relabeled_rewards'], batch['value_goals']
        discount = self.config['discount'] * batch['relabeled_masks']
        target_value = self.network.select('target_value')
        next_v1, next_v2 = target_value(batch['next_observations'], goals)
        target_v1, target_v2 = target_value(batch['observations'], goals)
        q = rewards + discount * torch.minimum(next_v1, next_v2)
        adv = q - (target_v1 + target_v2) / 2

        q1, q2 = rewards + discount * next_v1, rewards + discount * next_v2
        if grad_params is not None:
            grad_params = fix_origin(grad_params, f'Dense_{len(self.config["value_hidden_dims"])}')
        v1, v2 = self.network.select('value')(batch['observations'], goals, params=grad_params)
        v = (v1 + v2) / 2
        expectile = self.config['expectile']
        value_loss = self.expectile_loss(adv, q1 - v1, expectile).mean()
        value_loss = value_loss + self.expectile_loss(adv, q2 - v2, expectile).mean()
        return value_loss, _value_info(value_loss, v)

    def skill_value_loss(self, batch, grad_params):
        """Expectile regression of the skills' V on the smaller target Q."""
        inputs = batch['observations'], batch['skills']
        target_critic = self.network.select('target_skill_critic')
        q1, q2 = target_critic(*inputs, batch['actions'], goal_encoded=True)
        q = torch.minimum(q1, q2)
        v = self.network.select('skill_value')(*inputs, goal_encoded=True, params=grad_params)
        value_loss = self.expectile_loss(q - v, q - v, self.config['expectile']).mean()
        return value_loss, _value_info(value_loss, v)

    def skill_critic_loss(self, batch, grad_params):
        """Squared TD error of both skill critics against V of the next observation."""
        next_v = self.network.select('skill_value')(
            batch['next_observations'], batch['skills'], goal_encoded=True
        )
        inputs = batch['observations'], batch['skills'], batch['actions']
        skill_critic = self.network.select('skill_critic')
        q1, q2 = skill_critic(*inputs, goal_encoded=True, params=grad_params)
        q = batch['skill_rewards'] + self.config['discount'] * batch['masks'] * next_v
        critic_loss = ((q1 - q).square() + (q2 - q).square()).mean()
        return critic_loss, {
            'critic_loss': critic_loss,
            'q_mean': q.mean(),
            'q_max': q.max(),
            'q_min': q.min(),
        }

    def skill_actor_loss(self, batch, grad_params):
        """Advantage-weighted regression (AWR) of the skills' policy."""
        inputs = batch['observations'], batch['skills']
        v = self.network.select('skill_value')(*inputs, goal_encoded=True)
        q1, q2 = self.network.select('skill_critic')(*inputs, batch['actions'], goal_encoded=True)
        adv = torch.minimum(q1, q2) - v
        exp_a = torch.exp(adv * self.config['alpha']).clamp(max=100.0)

        dist = self.network.select('skill_actor')(*inputs, goal_encoded=True, params=grad_params)
        log_prob = dist.log_prob(batch['actions'])
        actor_loss = -(exp_a * log_prob).mean()
        return actor_loss, {
            'actor_loss': actor_loss,
            'adv': adv.mean(),
            'bc_log_prob': log_prob.mean(),
            'mse': (dist.mode() - batch['actions']).square().mean(),
            'std': dist.scale_diag.mean(),
        }

    @jit
    def pretraining_loss(self, batch, grad_params=None, rng=None):
        """Losses of the metric, and of random skills with its rewards; returns (loss, info)."""
        require_goals(batch, 'value_goals')
        rng = self.rng if rng is None else rng
        rng, latent_rng = random.split(rng)
        skills, skill_rewards = self.sample_latents(batch, latent_rng)
        batch = {**batch, 'skills': skills, 'skill_rewards': skill_rewards}

        value_loss, value_info = self.value_loss(batch, grad_params)
        skill_value_loss, skill_value_info = self.skill_value_loss(batch, grad_params)
        skill_critic_loss, skill_critic_info = self.skill_critic_loss(batch, grad_params)
        skill_actor_loss, skill_actor_info = self.skill_actor_loss(batch, grad_params)
        loss = value_loss + skill_value_loss + skill_critic_loss + skill_actor_loss
        return loss, {
            **prefixed('value', value_info),
            **prefixed('skill_value', skill_value_info),
            **prefixed('skill_critic', skill_critic_info),
            **prefixed('skill_actor', skill_actor_info),
        }

    @jit(static_argnames=('full_update',))
    def finetuning_loss(self, batch, grad_params=None, full_update=True, rng=None):
        """Losses of the inferred skill with the task's rewards; returns (loss, info)."""
        require(batch, 'latents')
        batch = {**batch, 'skills': batch['latents'], 'skill_rewards': batch['rewards']}

        skill_value_loss, skill_value_info = self.skill_value_loss(batch, grad_params)
        skill_critic_loss, skill_critic_info = self.skill_critic_loss(batch, grad_params)
        info = {
            **prefixed('skill_value', skill_value_info),
            **prefixed('skill_critic', skill_critic_info),
        }
        loss = skill_value_loss + skill_critic_loss
        if full_update:
            skill_actor_loss, skill_actor_info = self.skill_actor_loss(batch, grad_params)
            info.update(prefixed('skill_actor', skill_actor_info))
            loss = loss + skill_actor_loss
        return loss, info

    def target_reset(self):
        """Return the agent with the target skill critic equal to the online one."""
        params = self.network.params
        reset = trees.map(torch.clone, params['modules_skill_critic'])
        params = {**params, 'modules_target_skill_critic': reset}
        return self.replace(network=self.network.replace(params=params))

    def target_update(self, network, module_name):
        """Move one target network of `network`; it follows the parameters from before the step."""
        return move_target(network, self.network, module_name, self.config['tau'])

    @jit
    def pretrain(self, batch):
        """Take one step for the metric and the skills; returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.pretraining_loss(batch, grad_params, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        new_network = self.target_update(new_network, 'value')
        new_network = self.target_update(new_network, 'skill_critic')
        return self.replace(network=new_network, rng=new_rng), info

    @jit(static_argnames=('full_update',))
    def finetune(self, batch, full_update=True):
        """Take one step; the actor's loss counts only in full updates. Returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.finetuning_loss(batch, grad_params, full_update, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        new_network = self.target_update(new_network, 'skill_critic')
        return self.replace(network=new_network, rng=new_rng), info

    @jit
    def infer_latent(self, batch):
        """Return the skill (latent_dim,) whose rewards fit the task's best, in least squares."""
        phis = self.get_phis(batch['next_observations']) - self.get_phis(batch['observations'])
        latent = least_squares(phis, batch['rewards'])
        return latent / torch.linalg.vector_norm(latent) * math.sqrt(self.config['latent_dim'])

    @jit
    def sample_latents(self, batch, rng):
        """Draw a skill per transition; returns skills (B, latent_dim) and their rewards (B,)."""
        shape = (len(batch['observations']), self.config['latent_dim'])
        latents = random.normal(rng, shape)
        norms = torch.linalg.vector_norm(latents, dim=1, keepdim=True)
        latents = latents / norms * math.sqrt(self.config['latent_dim'])

        phis = self.get_phis(batch['observations'])
        next_phis = self.get_phis(batch['next_observations'])
        rewards = ((next_phis - phis) * latents).sum(1)
        return latents, rewards

    @jit
    def sample_actions(self, observations, latents, seed, temperature=1.0):
        """Sample actions in [-1, 1] of skills, (B, latent_dim) or one for one observation.

        `seed` is a key, `temperature` scales the deviations.
        """
        dist = self.network.select('skill_actor')(
            observations, latents, goal_encoded=True, temperature=temperature
        )
        return clip(dist.sample(seed=seed), -1, 1)

    @jit
    def get_phis(self, observations):
        """Return phi(s), (B, latent_dim), of the first of the two values."""
        _, phis, _ = self.network.select('value')(observations, observations, info=True)
        return phis[0]

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and example batches (only their shapes matter)."""
        rng, init_rng, _ = random.split(random.key(seed), 3)
        ex_latents = torch.ones(len(ex_actions), config['latent_dim'])

        def encoder():
            return None if config['encoder'] is None else make_encoder(config['encoder'])

        def gc_encoder():
            return None if config['encoder'] is None else GCEncoder(state_encoder=encoder())

        def value_def():
            return GCMetricValue(
                hidden_dims=config['value_hidden_dims'],
                layer_norm=config['value_layer_norm'],
                latent_dim=config['latent_dim'],
                num_ensembles=2,
                encoder=encoder(),
            )

        def skill_value_def(num_ensembles):
            return GCValue(
                hidden_dims=config['value_hidden_dims'],
                layer_norm=config['value_layer_norm'],
                num_ensembles=num_ensembles,
                gc_encoder=gc_encoder(),
            )

        skill_actor_def = GCActor(
            hidden_dims=config['actor_hidden_dims'],
            action_dim=ex_actions.shape[-1],
            state_dependent_std=False,
            layer_norm=config['actor_layer_norm'],
            const_std=config['const_std'],
            gc_encoder=gc_encoder(),
        )

        skill_critic_args = (ex_observations, ex_latents, ex_actions, True)
        network_info = {
            'value': (value_def(), (ex_observations, ex_observations)),
            'target_value': (value_def(), (ex_observations, ex_observations)),
            'skill_critic': (skill_value_def(2), skill_critic_args),
            'target_skill_critic': (skill_value_def(2), skill_critic_args),
            'skill_value': (skill_value_def(1), (ex_observations, ex_latents, None, True)),
            'skill_actor': (skill_actor_def, (ex_observations, ex_latents, True)),
        }
        network_def = nn.ModuleDict({k: v[0] for k, v in network_info.items()})
        network_args = {k: v[1] for k, v in network_info.items()}
        params = nn.init(network_def, init_rng, **network_args)
        for name in ('value', 'skill_critic'):
            params[f'modules_target_{name}'] = trees.map(torch.clone, params[f'modules_{name}'])

        network = TrainState.create(network_def, params, tx=optim.adam(config['lr']))
        return cls(rng, network=network, config=FrozenDict(config))


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'hilp',  # Name in run folders and logs.
            'lr': 3e-4,  # Learning rate.
            'batch_size': 256,  # Batch size.
            'actor_hidden_dims': (512, 512, 512, 512),  # Widths of the actor's hidden layers.
            'value_hidden_dims': (512, 512, 512, 512),  # Widths of the values' and critic's layers.
            'latent_dim': 512,  # Size of phi and of a skill.
            'actor_layer_norm': False,  # Whether the actor has layer normalisation.
            'value_layer_norm': True,  # Whether values and critic have layer normalisation.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target networks.
            'expectile': 0.9,  # Expectile of the value regressions.
            'actor_freq': 4,  # In finetuning, a full update (actor too) every so many steps.
            'alpha': 10.0,  # Inverse temperature in AWR; wants tuning for each environment.
            'const_std': True,  # Whether the policy's standard deviation is fixed at 1.
            'num_latent_inference_samples': 10_000,  # Transitions from which the skill is inferred.
            # Encoder ('mlp', 'impala_small', ...), or None for flat observations.
            'encoder': ml_collections.config_dict.placeholder(str),
            # Goals; see purerl.data.goals. Only the value goals are used here.
            'relabel_reward': False,  # Whether the value goals' rewards replace the data's.
            'value_p_curgoal': 0.0,  # Probability of the current state as the value goal.
            'value_p_trajgoal': 0.625,  # Probability of a later state of the episode.
            'value_p_randomgoal': 0.375,  # Probability of a random state.
            'value_geom_sample': True,  # Whether the distance to later states is geometric.
            'value_geom_start_offset': 1,  # Keep at 1 (see purerl.data.goals).
            'actor_p_curgoal': 0.0,  # The same five for actor goals, which are drawn too.
            'actor_p_trajgoal': 1.0,
            'actor_p_randomgoal': 0.0,
            'actor_geom_sample': False,
            'actor_geom_start_offset': 1,
            'gc_negative': True,  # Rewards 0 at the goal and -1 elsewhere, instead of 1 and 0.
        }
    )
