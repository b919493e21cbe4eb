"""Intention-conditioned flow occupancy models (InFOM).

Paper: Zheng et al., "Intention-conditioned flow occupancy models" (2025). Original:
chongyi-zheng/infom @ f0356dd, agents/infom.py.

Deviations: target networks are neither differentiated nor stepped by the optimiser, and a vector
field's conditioning inputs pass its first layer once per integration instead of once per step
(same results, less work); encoders may have any width; `target_reset` returns the agent; an encoder
together with `clip_flow_goals`, missing observation bounds and unknown settings are refused.
"""

from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.infom.encoders import encoding_dim, make_encoder
from purerl.agents.infom.networks import Actor, IntentionEncoder, Value, VectorField
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import clip, expectile_loss, polyak, prefixed, require
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict

TARGETS = ('modules_target_critic_vf', 'modules_target_critic_vf_encoder')


@trees.dataclass
class InFOMAgent:
    """Flow matching of future observations given intentions, and Q-learning on samples of it."""

    rng: torch.Tensor
    network: TrainState
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'next_actions'})

    expectile_loss = staticmethod(expectile_loss)

    def reward_loss(self, batch, grad_params):
        """Squared error of the reward model, on encodings that it does not shape."""
        observations = self._encode('critic_vf_encoder', batch['observations'])
        reward_preds = self.network.select('reward')(observations, params=grad_params)
        reward_loss = (reward_preds - batch['rewards']).square().mean()
        return reward_loss, {'reward_loss': reward_loss}

    def critic_loss(self, batch, grad_params, rng):
        """Expectile regression of Q on the mean reward of sampled future observations."""
        num_goals, actions = self.config['num_flow_goals'], batch['actions']
        observations = self._encode('critic_vf_encoder', batch['observations'])

        rng, noise_rng, latent_rng = random.split(rng, 3)
        noises = random.normal(noise_rng, (num_goals, *observations.shape))
        if self.config['critic_latent_type'] == 'prior':
            latents = random.normal(latent_rng, (len(actions), self.config['latent_dim']))
        else:
            infer = self.network.select('intention_encoder')
            latent_dist = infer(batch['next_observations'], batch['next_actions'])
            latents = latent_dist.sample(seed=latent_rng)
        flow_goals = self.compute_fwd_flow_goals(
            noises, observations, actions, latents, self.goal_bounds(batch)
        )  # (num_goals, B, O)

        future_rewards = self.network.select('reward')(flow_goals)
        target_q = 1.0 / (1 - self.config['discount']) * future_rewards.mean(0)
        critic = self.network.select('critic')
        qs = critic(batch['observations'], actions, params=grad_params)  # (2, B)
        adv = target_q - qs
        critic_loss = self.expectile_loss(adv, adv, self.config['expectile']).mean()

        q = self._aggregate(qs)
        info = {'critic_loss': critic_loss, 'q_mean': q.mean(), 'q_max': q.max(), 'q_min': q.min()}
        return critic_loss, info

    def flow_occupancy_loss(self, batch, grad_params, rng):
        """SARSA squared flow matching of the occupancy model, and the intentions' KL term."""
        actions, next_actions = batch['actions'], batch['next_actions']
        observations = self._encode('critic_vf_encoder', batch['observations'], grad_params)
        next_observations = self._encode('target_critic_vf_encoder', batch['next_observations'])

        # The intention is inferred from the next transition.
        rng, latent_rng = random.split(rng)
        infer = self.network.select('intention_encoder')
        latent_dist = infer(batch['next_observations'], next_actions, params=grad_params)
        latents = latent_dist.sample(seed=latent_rng)
        means, log_stds = latent_dist.mode(), torch.log(latent_dist.stddev())
        kl_loss = -0.5 * (1 + 2 * log_stds - means.square() - torch.exp(2 * log_stds)).mean()

        rng, time_rng, current_noise_rng, future_noise_rng = random.split(rng, 4)
        times = random.uniform(time_rng, (len(actions),))
        t = times[..., None]
        critic_vf = self.network.select('critic_vf')

        # Flow to the current observation: as the flow's end, not as a condition, it trains the
        # image encoder.
        current_noises = random.normal(current_noise_rng, observations.shape)
        noisy_observations = t * observations + (1 - t) * current_noises
        conditions = observations.detach(), actions, latents
        current_vf_pred = critic_vf(noisy_observations, times, *conditions, params=grad_params)
        current_vf_target = (observations - current_noises).detach()
        current_loss = (current_vf_target - current_vf_pred).square().mean(-1)

        # Flow to the next observation's future, bootstrapped from the target field.
        future_noises = random.normal(future_noise_rng, observations.shape)
        target_conditions = next_observations, next_actions, latents.detach()
        flow_future_observations = self.compute_fwd_flow_goals(
            future_noises, *target_conditions, self.goal_bounds(batch), use_target_network=True
        )
        noisy_futures = t * flow_future_observations + (1 - t) * future_noises
        target_critic_vf = self.network.select('target_critic_vf')
        future_vf_target = target_critic_vf(noisy_futures, times, *target_conditions)
        conditions = observations.detach(), actions, latents.detach()
        future_vf_pred = critic_vf(noisy_futures, times, *conditions, params=grad_params)
        future_loss = (future_vf_target - future_vf_pred).square().mean(-1)

        discount = self.config['discount']
        flow_matching_loss = ((1 - discount) * current_loss + discount * future_loss).mean()
        neg_elbo_loss = flow_matching_loss + self.config['kl_weight'] * kl_loss
        return neg_elbo_loss, {
            'neg_elbo_loss': neg_elbo_loss,
            'flow_matching_loss': flow_matching_loss,
            'kl_loss': kl_loss,
            'flow_future_obs_max': flow_future_observations.max(),
            'flow_future_obs_min': flow_future_observations.min(),
            'current_flow_matching_loss': current_loss.mean(),
            'future_flow_matching_loss': future_loss.mean(),
        }

    def behavioral_cloning_loss(self, batch, grad_params):
        """Negative log-likelihood of the data's actions, for pretraining."""
        dist = self.network.select('actor')(batch['observations'], params=grad_params)
        log_prob, info = self._likelihood(dist, batch)
        bc_loss = -log_prob.mean()
        return bc_loss, {'bc_loss': bc_loss, **info}

    def actor_loss(self, batch, grad_params, rng):
        """DDPG+BC: negative Q plus behaviour cloning."""
        dist = self.network.select('actor')(batch['observations'], params=grad_params)
        q_actions = clip(dist.mode() if self.config['const_std'] else dist.sample(seed=rng), -1, 1)
        qs = self.network.select('critic')(batch['observations'], actions=q_actions)
        q = self._aggregate(qs)
        q_loss = -q.mean()
        if self.config['normalize_q_loss']:
            lam = (1 / q.abs().mean()).detach()
            q_loss = lam * q_loss

        log_prob, info = self._likelihood(dist, batch)
        bc_loss = -(self.config['alpha'] * log_prob).mean()
        actor_loss = q_loss + bc_loss
        info.update(actor_loss=actor_loss, q_loss=q_loss, bc_loss=bc_loss)
        info.update(q_mean=q.mean(), q_abs_mean=q.abs().mean())
        return actor_loss, info

    def _likelihood(self, dist, batch):
        log_prob = dist.log_prob(batch['actions'])
        mse = (dist.mode() - batch['actions']).square().mean()
        info = {'bc_log_prob': log_prob.mean(), 'mse': mse, 'std': dist.scale_diag.mean()}
        return log_prob, info

    def compute_fwd_flow_goals(
        self, noises, observations, actions, latents, bounds, times=None, use_target_network=False
    ):
        """Return goals (..., O) to which the field carries `noises` (..., O) between two `times`.

        Leading axes broadcast; `times` are 0 and 1 if None. Nothing differentiates through it.
        """
        name = f'modules_{"target_" if use_target_network else ""}critic_vf'
        critic_vf = getattr(self.network.model_def, name)
        params = critic_vf.condition(self.network.params[name], observations, actions, latents)
        return critic_vf.integrate(params, noises, self.config['num_flow_steps'], bounds, times)

    def goal_bounds(self, batch):
        """Return bounds of the flow's goals, just within those of the data; () for none."""
        if not self.config['clip_flow_goals']:
            return ()
        require(batch, 'observation_min', 'observation_max')
        bounds, size = batch['observation_min'].shape[-1], batch['observations'].shape[-1]
        if bounds != size:  # bounds are those of one frame
            raise ValueError(
                f'observations of {size} values have bounds of {bounds}: with stacked frames set '
                'clip_flow_goals=False'
            )
        return batch['observation_min'] + 1e-5, batch['observation_max'] - 1e-5

    def _encode(self, name, observations, grad_params=None):
        if self.config['encoder'] is None:
            return observations
        return self.network.select(name)(observations, params=grad_params)

    def _aggregate(self, qs):
        return qs.mean(0) if self.config['q_agg'] == 'mean' else qs.amin(0)

    @jit
    def pretraining_loss(self, batch, grad_params=None, rng=None):
        """Occupancy model and behaviour cloning; returns (loss, info)."""
        require(batch, 'next_actions')
        rng = self.rng if rng is None else rng
        rng, flow_occupancy_rng = random.split(rng)

        flow_loss, flow_info = self.flow_occupancy_loss(batch, grad_params, flow_occupancy_rng)
        bc_loss, bc_info = self.behavioral_cloning_loss(batch, grad_params)
        info = {**prefixed('flow_occupancy', flow_info), **prefixed('bc', bc_info)}
        return flow_loss + bc_loss, info

    @jit(static_argnames=('full_update',))
    def finetuning_loss(self, batch, grad_params=None, full_update=True, rng=None):
        """All losses but cloning; the actor's on full updates only. Returns (loss, info)."""
        require(batch, 'next_actions')
        rng = self.rng if rng is None else rng
        rng, critic_rng, flow_occupancy_rng, actor_rng = random.split(rng, 4)

        reward_loss, reward_info = self.reward_loss(batch, grad_params)
        critic_loss, critic_info = self.critic_loss(batch, grad_params, critic_rng)
        flow_loss, flow_info = self.flow_occupancy_loss(batch, grad_params, flow_occupancy_rng)
        info = {**prefixed('reward', reward_info), **prefixed('critic', critic_info)}
        info.update(prefixed('flow_occupancy', flow_info))
        loss = reward_loss + critic_loss + flow_loss
        if full_update:
            actor_loss, actor_info = self.actor_loss(batch, grad_params, actor_rng)
            info.update(prefixed('actor', actor_info))
            loss = loss + actor_loss
        return loss, info

    def target_reset(self):
        """Return the agent with targets that are copies of the online networks."""
        copies = self._targets(lambda online, target: trees.map(torch.clone, online))
        return self.replace(network=self.network.replace(params={**self.network.params, **copies}))

    def target_update(self, network):
        """Move the targets of `network`; they follow the parameters from before the step."""
        moved = self._targets(lambda online, target: polyak(online, target, self.config['tau']))
        return network.replace(params={**network.params, **moved})

    def _targets(self, rule):
        params = self.network.params
        return {
            target: rule(params[target.replace('target_', '')], params[target])
            for target in TARGETS
            if target in params
        }

    @jit
    def pretrain(self, batch):
        """Take one step on the occupancy model and the actor; returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.pretraining_loss(batch, grad_params, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        return self.replace(network=self.target_update(new_network), rng=new_rng), info

    @jit(static_argnames=('full_update',))
    def finetune(self, batch, full_update=True):
        """Take one step; the actor's loss counts only in full updates. Returns (agent, info)."""
        new_rng, rng = random.split(self.rng)

        def loss_fn(grad_params):
            return self.finetuning_loss(batch, grad_params, full_update, rng=rng)

        new_network, info = self.network.apply_loss_fn(loss_fn, frozen=TARGETS)
        return self.replace(network=self.target_update(new_network), rng=new_rng), info

    @jit
    def sample_actions(self, observations, seed, temperature=1.0):
        """Sample actions in [-1, 1]; `seed` is a key, `temperature` scales the deviations."""
        dist = self.network.select('actor')(observations, temperature=temperature)
        return clip(dist.sample(seed=seed), -1, 1)

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and example batches (only their shapes matter).

        Raises:
            ValueError: if a setting is unknown, or does not fit the others or the observations.
        """
        _check_config(config)
        obs_dim = encoding_dim(config['encoder'], ex_observations)
        size, action_dim = ex_actions.shape
        rng, init_rng, _ = random.split(random.key(seed), 3)
        if config['encoder'] is not None:
            rng, _ = random.split(rng)

        def encoder():
            return None if config['encoder'] is None else make_encoder(config['encoder'])

        def layers(name):
            return {kind: config[f'{name}_{kind}'] for kind in ('hidden_dims', 'layer_norm')}

        def critic_vf_def():
            return VectorField(obs_dim, **layers('value'))

        critic_def = Value(num_ensembles=2, encoder=encoder(), **layers('value'))
        intention_encoder_def = IntentionEncoder(
            latent_dim=config['latent_dim'], encoder=encoder(), **layers('intention_encoder')
        )
        actor_options = {'const_std': config['const_std'], 'encoder': encoder()}
        actor_def = Actor(action_dim=action_dim, **actor_options, **layers('actor'))
        reward_def = Value(**layers('reward'))

        ex_goals, ex_latents = torch.ones(size, obs_dim), torch.ones(size, config['latent_dim'])
        vf_args = (ex_goals, ex_actions[..., 0], ex_goals, ex_actions, ex_latents)
        network_info = {
            'critic': (critic_def, (ex_observations, ex_actions)),
            'critic_vf': (critic_vf_def(), vf_args),
            'target_critic_vf': (critic_vf_def(), vf_args),
            'intention_encoder': (intention_encoder_def, (ex_observations, ex_actions)),
            'actor': (actor_def, (ex_observations,)),
            'reward': (reward_def, (ex_goals,)),
        }
        if config['encoder'] is not None:
            network_info['critic_vf_encoder'] = (encoder(), (ex_observations,))
            network_info['target_critic_vf_encoder'] = (encoder(), (ex_observations,))
        network_def = nn.ModuleDict({k: v[0] for k, v in network_info.items()})
        network_args = {k: v[1] for k, v in network_info.items()}
        params = nn.init(network_def, init_rng, **network_args)

        network = TrainState.create(network_def, params, tx=optim.adam(config['lr']))
        return cls(rng, network=network, config=FrozenDict(config)).target_reset()


def _check_config(config):
    choices = {'critic_latent_type': ('prior', 'encoding'), 'q_agg': ('min', 'mean')}
    for name, known in choices.items():
        if config[name] not in known:
            raise ValueError(f'{name} must be {" or ".join(known)}, got {config[name]!r}')
    if min(config['num_flow_goals'], config['num_flow_steps']) < 1:
        raise ValueError('num_flow_goals and num_flow_steps must be at least 1')
    if config['discount'] >= 1:
        raise ValueError(f'discount must lie below 1, got {config["discount"]}')
    if config['clip_flow_goals'] and config['encoder'] is not None:
        raise ValueError(
            "encodings cannot be clipped to observations' bounds: with an encoder, "
            'set clip_flow_goals=False'
        )


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'infom',  # Name in run folders and logs.
            'lr': 3e-4,  # Learning rate.
            'batch_size': 256,  # Batch size.
            # Widths of the hidden layers, and whether these have layer normalisation.
            'intention_encoder_hidden_dims': (512, 512, 512, 512),
            'actor_hidden_dims': (512, 512, 512, 512),
            'value_hidden_dims': (512, 512, 512, 512),  # The critic's and the vector field's.
            'reward_hidden_dims': (512, 512, 512, 512),
            'intention_encoder_layer_norm': True,
            'value_layer_norm': False,
            'actor_layer_norm': False,
            'reward_layer_norm': True,
            'latent_dim': 512,  # Size of the intentions.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target networks.
            'expectile': 0.9,  # Expectile of the critic's regression.
            'kl_weight': 0.01,  # Weight of the intentions' KL divergence from the prior.
            'q_agg': 'min',  # How the actor sees the two critics: 'min' or 'mean'.
            'critic_latent_type': 'prior',  # The critic's intentions: 'prior' or 'encoding'.
            'num_flow_goals': 16,  # Sampled future observations for each target of the critic.
            'clip_flow_goals': True,  # Whether these stay within the data's bounds.
            'actor_freq': 4,  # A full update (actor too) every so many steps.
            'alpha': 10.0,  # Weight of behaviour cloning in the actor's loss.
            'const_std': True,  # Whether the policy's standard deviation is fixed at 1.
            'num_flow_steps': 10,  # Steps of the flow's integration.
            'normalize_q_loss': False,  # Whether Q is divided by its mean magnitude.
            # Encoder ('impala_small', 'mlp', ...; wants clip_flow_goals=False), or None.
            'encoder': ml_collections.config_dict.placeholder(str),
        }
    )
