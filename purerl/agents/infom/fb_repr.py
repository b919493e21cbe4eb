"""Forward-backward representations (FB), with IQL on the inferred latent.

Paper: Touati & Ollivier, "Learning one representation to optimize all rewards" (NeurIPS 2021).
Original: chongyi-zheng/infom @ f0356dd, agents/fb_repr.py.

Deviations: target networks are neither differentiated nor stepped by the optimiser (same results,
less work); batches of any size above one are taken; settings and batches that cannot work are
refused. `sync_target_critic`, off by default, is an addition.
"""

from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.infom.encoders import GCEncoder, make_encoder
from purerl.agents.infom.networks import GCActor, GCValue
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import clip, expectile_loss, move_target, prefixed, require
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict

TARGETS = ('modules_target_critic', 'modules_target_forward_repr', 'modules_target_backward_repr')


@trees.dataclass
class ForwardBackwardRepresentationAgent:
    """Latent policies from F(s, z, a)^T B(s'), then IQL for the latent of one reward."""

    rng: torch.Tensor
    network: TrainState
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset()

    expectile_loss = staticmethod(expectile_loss)

    def value_loss(self, batch, grad_params):
        """Expectile regression of V on the smaller target Q."""
        q1, q2 = self._conditioned('target_critic', batch, actions=batch['actions'])
        q = torch.minimum(q1, q2)
        v = self._conditioned('value', batch, params=grad_params)
        value_loss = self.expectile_loss(q - v, q - v, self.config['expectile']).mean()
        return value_loss, {
            'value_loss': value_loss,
            'v_mean': v.mean(),
            'v_max': v.max(),
            'v_min': v.min(),
        }

    def critic_loss(self, batch, grad_params):
        """Squared TD error of both critics against V of the next observation."""
        inputs = (batch['next_observations'], batch['latents'])
        next_v = self.network.select('value')(*inputs, goal_encoded=True)
        q = batch['rewards'] + self.config['discount'] * batch['masks'] * next_v

        q1, q2 = self._conditioned('critic', batch, actions=batch['actions'], params=grad_params)
        critic_loss = ((q1 - q).square() + (q2 - q).square()).mean()
        return critic_loss, {
            'critic_loss': critic_loss,
            'q_mean': q.mean(),
            'q_max': q.max(),
            'q_min': q.min(),
        }

    def actor_loss(self, batch, grad_params):
        """Advantage-weighted regression on the data's actions."""
        v = self._conditioned('value', batch)
        q1, q2 = self._conditioned('critic', batch, actions=batch['actions'])
        adv = torch.minimum(q1, q2) - v
        exp_a = torch.exp(adv * self.config['alpha_awr']).clamp(max=100.0)

        dist = self._conditioned('actor', batch, params=grad_params)
        log_prob = dist.log_prob(batch['actions'])
        actor_loss = -(exp_a * log_prob).mean()
        return actor_loss, {
            'actor_loss': actor_loss,
            'adv': adv.mean(),
            'bc_log_prob': log_prob.mean(),
            'mse': (dist.mode() - batch['actions']).square().mean(),
            'std': dist.scale_diag.mean(),
        }

    def forward_backward_repr_loss(self, batch, grad_params, rng):
        """Temporal differences of F^T B over all pairs of the batch, and orthonormality of B."""
        select, config = self.network.select, self.config
        following, latents = batch['next_observations'], batch['latents']
        num = len(following)

        next_dist = select('actor')(following, latents, goal_encoded=True)
        given = (following, latents, self._policy_actions(next_dist, rng), True)
        next_forward_reprs = select('target_forward_repr')(*given)  # (2, B, d)
        next_backward_reprs = self._normalized(select('target_backward_repr')(following))
        target_occ_measures = next_forward_reprs @ next_backward_reprs.mT  # (2, B, B)
        aggregate = torch.mean if config['repr_agg'] == 'mean' else torch.amin
        target_occ_measures = aggregate(target_occ_measures, 0)

        taken = {'actions': batch['actions'], 'params': grad_params}
        forward_reprs = self._conditioned('forward_repr', batch, **taken)
        backward_reprs = self._normalized(select('backward_repr')(following, params=grad_params))
        occ_measures = forward_reprs @ backward_reprs.mT  # (2, B, B)

        off_diagonal = 1 - torch.eye(num, device=following.device)
        td_errors = occ_measures - config['discount'] * target_occ_measures
        repr_off_diag_loss = 0.5 * (td_errors * off_diagonal).square().sum(-1) / (num - 1)
        repr_diag_loss = -occ_measures.diagonal(dim1=-2, dim2=-1)
        repr_loss = (repr_diag_loss + repr_off_diag_loss).mean()

        covariance = backward_reprs @ backward_reprs.mT
        ortho_diag_loss = -2 * covariance.diagonal()
        ortho_off_diag_loss = (covariance * off_diagonal).square().sum(-1) / (num - 1)
        ortho_loss = config['orthonorm_coeff'] * (ortho_diag_loss + ortho_off_diag_loss).mean()

        return repr_loss + ortho_loss, {
            'repr_loss': repr_loss,
            'repr_diag_loss': repr_diag_loss.mean(),
            # Summed and divided a second time, as in the original.
            'repr_off_diag_loss': (repr_off_diag_loss.sum(-1) / (num - 1)).mean(),
            'ortho_loss': ortho_loss,
            'ortho_diag_loss': ortho_diag_loss.mean(),
            'ortho_off_diag_loss': ortho_off_diag_loss.mean(),
            'occ_measure_mean': occ_measures.mean(),
            'occ_measure_max': occ_measures.max(),
            'occ_measure_min': occ_measures.min(),
        }

    def forward_backward_actor_loss(self, batch, grad_params, rng=None):
        """Negative F(s, z, a)^T z plus behaviour cloning (DDPG+BC)."""
        dist = self._conditioned('actor', batch, params=grad_params)
        q_actions = self._policy_actions(dist, rng)
        forward_reprs = self._conditioned('forward_repr', batch, actions=q_actions)  # (2, B, d)
        q1, q2 = (forward_reprs * batch['latents']).sum(-1)
        q = torch.minimum(q1, q2)

        q_loss = -q.mean()
        if self.config['normalize_q_loss']:
            # Scaling by the mean magnitude makes the loss independent of the values' scale.
            q_loss = (1 / q.abs().mean()).detach() * q_loss
        log_prob = dist.log_prob(batch['actions'])
        bc_loss = -(self.config['alpha_repr'] * log_prob).mean()
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
        """Representation and actor losses at sampled latents; returns (loss, info)."""
        rng = self.rng if rng is None else rng
        rng, latent_rng, fb_repr_rng, actor_rng = random.split(rng, 4)
        if len(batch['observations']) < 2:
            raise ValueError('FB contrasts the transitions of a batch: batch_size must be above 1')
        batch = {**batch, 'latents': self.sample_latents(batch, latent_rng)}
        repr_loss, repr_info = self.forward_backward_repr_loss(batch, grad_params, fb_repr_rng)
        actor_loss, actor_info = self.forward_backward_actor_loss(batch, grad_params, actor_rng)
        info = {**prefixed('fb_repr', repr_info), **prefixed('fb_actor', actor_info)}
        return repr_loss + actor_loss, info

    @jit(static_argnames=('full_update',))
    def finetuning_loss(self, batch, grad_params=None, full_update=True, rng=None):
        """Value and critic losses and, on full updates, actor loss; returns (loss, info)."""
        require(batch, 'latents')
        value_loss, value_info = self.value_loss(batch, grad_params)
        critic_loss, critic_info = self.critic_loss(batch, grad_params)
        info = {**prefixed('value', value_info), **prefixed('critic', critic_info)}
        loss = value_loss + critic_loss
        if full_update:
            actor_loss, actor_info = self.actor_loss(batch, grad_params)
            info.update(prefixed('actor', actor_info))
            loss = loss + actor_loss
        return loss, info

    def target_update(self, network, module_name):
        """Move one target network of `network`; it follows the parameters from before the step."""
        return move_target(network, self.network, module_name, self.config['tau'])

    @jit
    def pretrain(self, batch):
        """Take one step on representations and latent policies; returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.pretraining_loss(batch, grad_params, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        new_network = self.target_update(new_network, 'forward_repr')
        new_network = self.target_update(new_network, 'backward_repr')
        return self.replace(network=new_network, rng=new_rng), info

    @jit(static_argnames=('full_update',))
    def finetune(self, batch, full_update=True):
        """Take one step of IQL; the actor's loss counts only in full updates: (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.finetuning_loss(batch, grad_params, full_update, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        new_network = self.target_update(new_network, 'critic')
        return self.replace(network=new_network, rng=new_rng), info

    @jit
    def infer_latent(self, batch):
        """Return the latent (d,) of the batch's rewards: their mean product with B(s), scaled."""
        backward_reprs = self._normalized(
            self.network.select('backward_repr')(batch['observations'])
        )
        latent = batch['rewards'] @ backward_reprs / len(batch['rewards'])
        return self._normalized(latent)

    @jit
    def sample_latents(self, batch, rng):
        """Draw latents (B, d): Gaussian directions, some replaced by B of other observations."""
        latent_rng, perm_rng, mix_rng = random.split(rng, 3)
        num = len(batch['observations'])
        latents = random.normal(latent_rng, (num, self.config['latent_dim']))
        observations = random.permutation(perm_rng, batch['observations'])
        backward_reprs = self.network.select('backward_repr')(observations)
        # Despite its name, `latent_mix_prob` is the probability of keeping the Gaussian latent.
        keep = random.uniform(mix_rng, (num, 1)) < self.config['latent_mix_prob']
        return torch.where(keep, self._normalized(latents), self._normalized(backward_reprs))

    @jit
    def sample_actions(self, observations, latents, seed, temperature=1.0):
        """Sample actions in [-1, 1]; `seed` is a key, `temperature` scales the deviations."""
        actor = self.network.select('actor')
        dist = actor(observations, latents, goal_encoded=True, temperature=temperature)
        return clip(dist.sample(seed=seed), -1, 1)

    def _conditioned(self, module_name, batch, **kwargs):
        """Run a module on the batch's observations and latents."""
        inputs = (batch['observations'], batch['latents'])
        return self.network.select(module_name)(*inputs, goal_encoded=True, **kwargs)

    def _normalized(self, x):
        """Scale vectors to the length sqrt(d)."""
        return x / x.square().sum(-1, keepdim=True).sqrt() * self.config['latent_dim'] ** 0.5

    def _policy_actions(self, dist, rng):
        return clip(dist.mode() if self.config['const_std'] else dist.sample(seed=rng), -1, 1)

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and example batches (only their shapes matter).

        Raises:
            ValueError: if `repr_agg` is unknown, or `latent_dim` below 2.
        """
        if config['latent_dim'] < 2:
            raise ValueError(f'latent_dim must be above 1, got {config["latent_dim"]}')
        if config['repr_agg'] not in ('mean', 'min'):
            raise ValueError(f'repr_agg must be mean or min, got {config["repr_agg"]!r}')
        rng, init_rng = random.split(random.key(seed))
        ex_latents = torch.ones(*ex_actions.shape[:-1], config['latent_dim'])

        def encoder():
            name = config['encoder']
            return None if name is None else GCEncoder(state_encoder=make_encoder(name))

        def value_def(num_ensembles, dims='value', norm='value', value_dim=1):
            return GCValue(
                hidden_dims=config[f'{dims}_hidden_dims'],
                value_dim=value_dim,
                layer_norm=config[f'{norm}_layer_norm'],
                num_ensembles=num_ensembles,
                gc_encoder=encoder(),
            )

        def repr_def(num_ensembles, dims):
            return value_def(num_ensembles, dims, 'fb_repr', config['latent_dim'])

        actor_def = GCActor(
            hidden_dims=config['actor_hidden_dims'],
            action_dim=ex_actions.shape[-1],
            state_dependent_std=False,
            layer_norm=config['actor_layer_norm'],
            const_std=config['const_std'],
            gc_encoder=encoder(),
        )

        critic_args = (ex_observations, ex_latents, ex_actions, True)
        network_info = {
            'value': (value_def(1), (ex_observations, ex_latents, None, True)),
            'critic': (value_def(2), critic_args),
            'forward_repr': (repr_def(2, 'forward_repr'), critic_args),
            'backward_repr': (repr_def(1, 'backward_repr'), (ex_observations,)),
            'target_critic': (value_def(2), critic_args),
            'target_forward_repr': (repr_def(2, 'forward_repr'), critic_args),
            'target_backward_repr': (repr_def(1, 'backward_repr'), (ex_observations,)),
            'actor': (actor_def, (ex_observations, ex_latents, True)),
        }
        network_def = nn.ModuleDict({k: v[0] for k, v in network_info.items()})
        network_args = {k: v[1] for k, v in network_info.items()}
        params = nn.init(network_def, init_rng, **network_args)
        # The original leaves the target critic with parameters of its own.
        synchronised = ('critic',) if config.get('sync_target_critic', False) else ()
        for name in ('forward_repr', 'backward_repr', *synchronised):
            params[f'modules_target_{name}'] = trees.map(torch.clone, params[f'modules_{name}'])

        network = TrainState.create(network_def, params, tx=optim.adam(config['lr']))
        return cls(rng, network=network, config=FrozenDict(config))


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'fb_repr',  # Name in run folders and logs.
            'lr': 3e-4,  # Learning rate.
            'batch_size': 256,  # Batch size, above 1.
            'actor_hidden_dims': (512, 512, 512, 512),  # Widths of the actor's hidden layers.
            'value_hidden_dims': (512, 512, 512, 512),  # Widths of the value's and critic's layers.
            'forward_repr_hidden_dims': (512, 512, 512, 512),  # Widths of F's hidden layers.
            'backward_repr_hidden_dims': (512, 512, 512, 512),  # Widths of B's hidden layers.
            'actor_layer_norm': False,  # Whether the actor has layer normalisation.
            'value_layer_norm': True,  # Whether value and critic have layer normalisation.
            'fb_repr_layer_norm': True,  # Whether F and B have layer normalisation.
            'latent_dim': 512,  # Size of latents and representations.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target networks.
            'expectile': 0.9,  # Expectile of the value regression.
            'actor_freq': 4,  # A full update (actor too) every so many steps of finetuning.
            'repr_agg': 'mean',  # How the two target F are combined: 'mean' or 'min'.
            'orthonorm_coeff': 1.0,  # Weight of B's orthonormality.
            'latent_mix_prob': 0.5,  # Probability that a latent is Gaussian, and not some B(s).
            'alpha_repr': 10.0,  # Weight of behaviour cloning in pretraining's DDPG+BC.
            'alpha_awr': 10.0,  # Inverse temperature of finetuning's AWR.
            'const_std': True,  # Whether the policy's standard deviation is fixed at 1.
            'normalize_q_loss': False,  # Whether pretraining's Q loss is divided by mean |Q|.
            'num_latent_inference_samples': 10_000,  # Transitions that the latent is inferred from.
            'sync_target_critic': False,  # Whether the target critic starts as a copy.
            # Encoder ('mlp', 'impala_small', ...), or None for flat observations.
            'encoder': ml_collections.config_dict.placeholder(str),
        }
    )
