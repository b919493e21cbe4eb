"""Self-distillation of representations (DINO) for ReBRAC.

Papers: Caron et al., "Emerging properties in self-supervised vision transformers" (ICCV 2021);
Tarasov et al., "Revisiting the minimalist approach to offline reinforcement learning"
(NeurIPS 2023). Original: chongyi-zheng/infom @ f0356dd, agents/dino_rebrac.py.

Deviations: target networks are neither differentiated nor stepped by the optimiser (same results,
less work); `target_reset` returns a new agent; a missing encoder, next actions or augmented images
are reported before anything is compiled; every encoder of images works, the ResNet too.
"""

from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.infom.encoders import make_encoder
from purerl.agents.infom.networks import Actor, Param, Value
from purerl.core import nn, optim, parallel, random, trees
from purerl.core.jit import jit
from purerl.core.ops import clip, move_target, polyak, prefixed, require
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict

# The centre is not among them: its moments get its shape, which changes, by being stepped.
TARGETS = ('modules_target_critic', 'modules_target_actor', 'modules_target_encoder')


@trees.dataclass
class DINOReBRACAgent:
    """An encoder that predicts its own average's view of other noise, and ReBRAC on top of it."""

    rng: torch.Tensor
    network: TrainState
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'next_actions', 'augmentations'})
    # So that checkpoints of finetuning fit a new agent (see `target_center_update`).
    changes_shape: ClassVar[frozenset[str]] = frozenset({'modules_target_repr_center'})

    @staticmethod
    def dino_loss(target_repr, repr, target_repr_center, target_temp=0.04, temp=0.1):
        """Cross-entropy of the centred and sharpened teacher and the student, both (B, D)."""
        target_repr = target_repr.detach()
        logits = repr / temp
        target_probs = torch.softmax((target_repr - target_repr_center) / target_temp, -1)
        return -(target_probs * torch.log_softmax(logits, -1)).sum(-1).mean()

    def augment(self, batch, rng):
        """Return two views of the observations: noised vectors, or the batch's cropped images."""
        rng, noise_rng1, noise_rng2 = random.split(rng, 3)
        if self.config['encoder'] != 'mlp':
            require(batch, 'aug1_observations', 'aug2_observations')
            return batch['aug1_observations'], batch['aug2_observations']
        observations, noise_clip = batch['observations'], self.config['repr_noise_clip']
        noises1, noises2 = (
            clip(
                random.normal(noise_rng, observations.shape) * self.config['repr_noise'],
                -noise_clip,
                noise_clip,
            )
            for noise_rng in (noise_rng1, noise_rng2)
        )
        return observations + noises1, observations + noises2

    def critic_loss(self, batch, grad_params, rng):
        """ReBRAC's critic loss on fixed representations."""
        rng, sample_rng = random.split(rng)
        next_reprs = self.network.select('target_encoder')(batch['next_observations'])
        next_dist = self.network.select('target_actor')(next_reprs)
        next_actions = next_dist.mode()
        noise = clip(
            random.normal(sample_rng, next_actions.shape) * self.config['actor_noise'],
            -self.config['actor_noise_clip'],
            self.config['actor_noise_clip'],
        )
        next_actions = clip(next_actions + noise, -1, 1)

        next_qs = self.network.select('target_critic')(next_reprs, actions=next_actions)  # (2, B)
        next_q = next_qs.amin(0)
        mse = (next_actions - batch['next_actions']).square().sum(-1)
        next_q = next_q - self.config['alpha_critic'] * mse
        target_q = batch['rewards'] + self.config['discount'] * batch['masks'] * next_q

        # No gradient reaches the encoder: finetuning leaves it to its momentum.
        reprs = self.network.select('encoder')(batch['observations'])
        q = self.network.select('critic')(reprs, actions=batch['actions'], params=grad_params)
        critic_loss = (q - target_q).square().mean()
        return critic_loss, {
            'critic_loss': critic_loss,
            'q_mean': q.mean(),
            'q_max': q.max(),
            'q_min': q.min(),
        }

    def representation_loss(self, batch, grad_params, rng):
        """DINO loss of both views: each view's teacher guides the student of the same view."""
        aug1_observations, aug2_observations = self.augment(batch, rng)
        encoder = self.network.select('encoder')
        repr1 = encoder(aug1_observations, params=grad_params)
        repr2 = encoder(aug2_observations, params=grad_params)
        target_encoder = self.network.select('target_encoder')
        target_repr1 = target_encoder(aug1_observations)
        target_repr2 = target_encoder(aug2_observations)

        center = self.network.params['modules_target_repr_center']['value']
        temps = self.config['target_repr_temp'], self.config['repr_temp']
        repr_loss = (
            self.dino_loss(target_repr1, repr1, center, *temps) / 2
            + self.dino_loss(target_repr2, repr2, center, *temps) / 2
        )
        return repr_loss, {'repr_loss': repr_loss}

    def behavioral_cloning_loss(self, batch, grad_params):
        """Negative log-likelihood of the data's actions, given fixed representations."""
        reprs = self.network.select('encoder')(batch['observations'])
        dist = self.network.select('actor')(reprs, params=grad_params)
        log_prob = dist.log_prob(batch['actions'])
        bc_loss = -log_prob.mean()
        return bc_loss, {
            'bc_loss': bc_loss,
            'bc_log_prob': log_prob.mean(),
            'mse': (dist.mode() - batch['actions']).square().mean(),
        }

    def actor_loss(self, batch, grad_params, rng):
        """Negative Q, scaled if so configured, plus the behaviour-cloning penalty."""
        reprs = self.network.select('encoder')(batch['observations'])
        dist = self.network.select('actor')(reprs, params=grad_params)
        actions = dist.mode()

        # Q loss.
        qs = self.network.select('critic')(reprs, actions=actions)  # (2, B)
        q = qs.amin(0)

        # BC loss.
        mse = (actions - batch['actions']).square().sum(-1)

        actor_loss = -q.mean()
        if self.config['normalize_q_loss']:
            # Scaling by the mean magnitude makes the loss independent of the reward's scale.
            lam = (1 / q.abs().mean()).detach()
            actor_loss = lam * actor_loss
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
        """DINO and behaviour cloning; returns (loss, info)."""
        self._check_center(batch)
        rng = self.rng if rng is None else rng
        repr_loss, repr_info = self.representation_loss(batch, grad_params, rng)
        bc_loss, bc_info = self.behavioral_cloning_loss(batch, grad_params)
        return repr_loss + bc_loss, {**prefixed('repr', repr_info), **prefixed('bc', bc_info)}

    @jit(static_argnames=('full_update',))
    def finetuning_loss(self, batch, grad_params=None, full_update=True, rng=None):
        """Critic loss and, on full updates, actor loss; returns (loss, info)."""
        require(batch, 'next_actions')
        self._check_center(batch)
        rng = self.rng if rng is None else rng
        rng, actor_rng, critic_rng = random.split(rng, 3)

        loss, critic_info = self.critic_loss(batch, grad_params, critic_rng)
        info = prefixed('critic', critic_info)
        if full_update:
            actor_loss, actor_info = self.actor_loss(batch, grad_params, actor_rng)
            info.update(prefixed('actor', actor_info))
            loss = loss + actor_loss
        return loss, info

    def _check_center(self, batch):
        """Refuse batches of another size than those that the centre has moved with."""
        center = self.network.params['modules_target_repr_center']['value']
        rows = len(batch['observations'])
        if center.ndim == 2 and len(center) != rows:
            raise ValueError(
                f"the teacher's centre has moved with batches of {len(center)} and fits no others, "
                f'not {rows}: set --agent.batch_size={len(center)}'
            )

    def target_reset(self):
        """Return the agent with the target encoder equal to the online one."""
        params = self.network.params
        reset = trees.map(torch.clone, params['modules_encoder'])
        params = {**params, 'modules_target_encoder': reset}
        return self.replace(network=self.network.replace(params=params))

    def target_update(self, network, module_name):
        """Move one target network of `network`; it follows the parameters from before the step."""
        return move_target(network, self.network, module_name, self.config['tau'])

    def target_center_update(self, network, batch, rng):
        """Move the teacher's centre towards its representations.

        Parity quirk: their mean is over the two views, not over the batch, so that the centre,
        (D,) when it is made, becomes (B, D) here.
        """
        target_encoder = self.network.select('target_encoder')
        target_repr1, target_repr2 = (target_encoder(view) for view in self.augment(batch, rng))
        center = {'value': torch.stack([target_repr1, target_repr2]).mean(0)}
        center = parallel.pmean(center)
        current = network.params['modules_target_repr_center']
        moved = polyak(center, current, self.config['target_repr_center_tau'])
        return network.replace(params={**network.params, 'modules_target_repr_center': moved})

    @jit
    def pretrain(self, batch):
        """Take one step for the encoder and the cloned actor; returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.pretraining_loss(batch, grad_params, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        new_network = self.target_update(new_network, 'encoder')
        return self.replace(network=new_network, rng=new_rng), info

    @jit(static_argnames=('full_update',))
    def finetune(self, batch, full_update=True):
        """Take one step; actor and targets move only on full updates. Returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.finetuning_loss(batch, grad_params, full_update, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        if full_update:
            new_network = self.target_update(new_network, 'encoder')
            new_network = self.target_update(new_network, 'critic')
            new_network = self.target_update(new_network, 'actor')
            # Parity quirk: the next key comes from the loss's, in full updates only.
            new_rng, rng = random.split(rng)
            new_network = self.target_center_update(new_network, batch, rng)
        return self.replace(network=new_network, rng=new_rng), info

    @jit
    def sample_actions(self, observations, seed, temperature=1.0):
        """Return the policy's mode plus clipped noise, in [-1, 1]; `seed` is a key."""
        reprs = self.network.select('encoder')(observations)
        dist = self.network.select('actor')(reprs, temperature=temperature)
        actions = dist.mode()
        noise = clip(
            random.normal(seed, actions.shape) * self.config['actor_noise'] * temperature,
            -self.config['actor_noise_clip'],
            self.config['actor_noise_clip'],
        )
        return clip(actions + noise, -1, 1)

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and example batches (only their shapes matter).

        Raises:
            ValueError: if there is no `encoder`, or no such encoder.
        """
        if config['encoder'] is None:
            raise ValueError(
                "dino_rebrac trains an encoder: set encoder to 'mlp' for flat observations, or to "
                "one of images ('impala_small', ...)"
            )
        rng, init_with_output_rng, init_rng = random.split(random.key(seed), 3)

        def critic_def():
            return Value(
                hidden_dims=config['value_hidden_dims'],
                layer_norm=config['value_layer_norm'],
                num_ensembles=2,
            )

        def actor_def():
            return Actor(
                hidden_dims=config['actor_hidden_dims'],
                action_dim=ex_actions.shape[-1],
                layer_norm=config['actor_layer_norm'],
                tanh_squash=config['tanh_squash'],
                state_dependent_std=False,
                const_std=True,
                final_fc_init_scale=config['actor_fc_scale'],
            )

        encoder = make_encoder(config['encoder'])
        encoder_params = nn.init(encoder, init_with_output_rng, ex_observations)
        ex_reprs = nn.apply(encoder, encoder_params, torch.zeros(ex_observations.shape))

        network_info = {
            'critic': (critic_def(), (ex_reprs, ex_actions)),
            'target_critic': (critic_def(), (ex_reprs, ex_actions)),
            'actor': (actor_def(), (ex_reprs,)),
            'target_actor': (actor_def(), (ex_reprs,)),
            'encoder': (make_encoder(config['encoder']), (ex_observations,)),
            'target_encoder': (make_encoder(config['encoder']), (ex_observations,)),
            'target_repr_center': (Param(shape=ex_reprs.shape[1:]), ()),
        }
        network_def = nn.ModuleDict({k: v[0] for k, v in network_info.items()})
        network_args = {k: v[1] for k, v in network_info.items()}
        params = nn.init(network_def, init_rng, **network_args)
        for name in ('critic', 'actor', 'encoder'):
            params[f'modules_target_{name}'] = trees.map(torch.clone, params[f'modules_{name}'])

        network = TrainState.create(network_def, params, tx=optim.adam(config['lr']))
        return cls(rng, network=network, config=FrozenDict(config))


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'dino_rebrac',  # Name in run folders and logs.
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
            'normalize_q_loss': True,  # Whether the actor's Q is divided by its mean magnitude.
            'actor_noise': 0.2,  # Standard deviation of the action noise.
            'actor_noise_clip': 0.5,  # Bound of the action noise.
            'repr_noise': 0.5,  # Standard deviation of the noise on flat observations.
            'repr_noise_clip': 1.0,  # Bound of the noise on flat observations.
            'target_repr_center_tau': 0.1,  # Rate of the teacher's centre.
            'repr_temp': 0.1,  # Temperature of the student.
            'target_repr_temp': 0.04,  # Temperature of the teacher.
            # Encoder, to be set: 'mlp' for flat observations, 'impala_small', ... for images.
            'encoder': ml_collections.config_dict.placeholder(str),
        }
    )
