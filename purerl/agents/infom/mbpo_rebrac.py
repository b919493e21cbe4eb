"""Model-based policy optimisation with ReBRAC as its base (MBPO + ReBRAC).

Papers: Janner et al., "When to trust your model: model-based policy optimization" (NeurIPS 2019);
Tarasov et al., "Revisiting the minimalist approach to offline reinforcement learning" (NeurIPS
2023). Original: chongyi-zheng/infom @ f0356dd, agents/mbpo_rebrac.py; the rollouts, which are in
its main.py, are in purerl/train/rollouts.py.

Deviations: target networks are neither differentiated nor stepped by the optimiser (same results,
less work); images are refused when the agent is made. `model_buffer_size`,
`advance_model_rollouts` and `model_next_actions` are additions whose defaults are the original's
behaviour.
"""

from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.infom.encoders import make_encoder
from purerl.agents.infom.networks import Actor, Value
from purerl.agents.infom.rebrac import ReBRACAgent
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import clip, move_target, prefixed, require
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict

TARGETS = ('modules_target_critic', 'modules_target_actor')
PREFIX = 'model_'


@trees.dataclass
class MBPOReBRACAgent:
    """ReBRAC on transitions of a learnt model, which starts from the data's observations."""

    rng: torch.Tensor
    network: TrainState
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'next_actions', 'model_rollouts'})

    def transition_loss(self, batch, grad_params):
        """Squared error of the predicted changes of observations."""
        transition = self.network.select('transition')
        preds = transition(batch['observations'], actions=batch['actions'], params=grad_params)
        residuals = batch['next_observations'] - batch['observations']
        transition_loss = (preds - residuals).square().mean()
        return transition_loss, {
            'transition_loss': transition_loss,
            'obs_res': residuals.mean(),
        }

    def reward_loss(self, batch, grad_params):
        """Squared error of the predicted rewards, which depend on observations alone."""
        preds = self.network.select('reward')(batch['observations'], params=grad_params)
        reward_loss = (preds - batch['rewards']).square().mean()
        return reward_loss, {'reward_loss': reward_loss}

    def critic_loss(self, batch, grad_params, rng):
        """ReBRAC's critic loss on the `model_` entries of a batch."""
        return ReBRACAgent.critic_loss(self, _of_model(batch), grad_params, rng)

    def behavioral_cloning_loss(self, batch, grad_params):
        """Negative log-likelihood of the data's actions, as ReBRAC's, for pretraining."""
        return ReBRACAgent.behavioral_cloning_loss(self, batch, grad_params)

    def actor_loss(self, batch, grad_params, rng):
        """ReBRAC's actor loss on the `model_` entries of a batch."""
        return ReBRACAgent.actor_loss(self, _of_model(batch), grad_params, rng)

    @jit
    def pretraining_loss(self, batch, grad_params=None, rng=None):
        """Transition model and behaviour cloning; returns (loss, info)."""
        transition_loss, transition_info = self.transition_loss(batch, grad_params)
        bc_loss, bc_info = self.behavioral_cloning_loss(batch, grad_params)
        info = {**prefixed('transition', transition_info), **prefixed('bc', bc_info)}
        return transition_loss + bc_loss, info

    @jit(static_argnames=('full_update',))
    def finetuning_loss(self, batch, grad_params=None, full_update=True, rng=None):
        """Losses of both models and the critic and, on full updates, the actor: (loss, info).

        Critic and actor learn from the `model_` entries of the batch, where there are any, else
        from the data.
        """
        rng = self.rng if rng is None else rng
        rng, actor_rng, critic_rng = random.split(rng, 3)

        model_batch = batch
        if not any(name.startswith(PREFIX) for name in batch):
            require(batch, 'next_actions')
            model_batch = {PREFIX + name: value for name, value in batch.items()}

        reward_loss, reward_info = self.reward_loss(batch, grad_params)
        transition_loss, transition_info = self.transition_loss(batch, grad_params)
        critic_loss, critic_info = self.critic_loss(model_batch, grad_params, critic_rng)
        info = {
            **prefixed('reward', reward_info),
            **prefixed('transition', transition_info),
            **prefixed('critic', critic_info),
        }
        loss = reward_loss + transition_loss + critic_loss
        if full_update:
            actor_loss, actor_info = self.actor_loss(model_batch, grad_params, actor_rng)
            info.update(prefixed('actor', actor_info))
            loss = loss + actor_loss
        return loss, info

    def target_update(self, network, module_name):
        """Move one target network of `network`; it follows the parameters from before the step."""
        return move_target(network, self.network, module_name, self.config['tau'])

    @jit
    def pretrain(self, batch):
        """Take one step on the transition model and on cloning; returns (agent, info)."""
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
    def predict_rewards(self, observations, actions=None):
        """Return the model's rewards (...,) at observations (..., D)."""
        return self.network.select('reward')(observations)

    @jit
    def predict_next_observations(self, observations, actions):
        """Return the model's next observations, of the shape of `observations`."""
        return observations + self.network.select('transition')(observations, actions)

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
        """Make an agent from an integer seed and example batches (only their shapes matter).

        Raises:
            ValueError: for images, or an unknown `model_next_actions`.
        """
        if ex_observations.ndim != ex_actions.ndim:
            raise ValueError(
                'mbpo_rebrac predicts next observations, which have to be vectors; got '
                f'observations of shape {tuple(ex_observations.shape)} with actions of shape '
                f'{tuple(ex_actions.shape)}: choose an agent without a model for images'
            )
        next_actions = config.get('model_next_actions', 'neighbours')
        if next_actions not in ('neighbours', 'policy'):
            raise ValueError(
                f'model_next_actions must be neighbours or policy, got {next_actions!r}'
            )
        rng, init_rng = random.split(random.key(seed))

        def encoder():
            return None if config['encoder'] is None else make_encoder(config['encoder'])

        def value_def(name, num_ensembles=1, value_dim=1):
            return Value(
                hidden_dims=config[f'{name}_hidden_dims'],
                value_dim=value_dim,
                layer_norm=config[f'{name}_layer_norm'],
                num_ensembles=num_ensembles,
                encoder=encoder(),
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
                encoder=encoder(),
            )

        transition_def = value_def('transition', value_dim=ex_observations.shape[-1])
        network_info = {
            'transition': (transition_def, (ex_observations, ex_actions)),
            'critic': (value_def('value', 2), (ex_observations, ex_actions)),
            'target_critic': (value_def('value', 2), (ex_observations, ex_actions)),
            'actor': (actor_def(), (ex_observations,)),
            'target_actor': (actor_def(), (ex_observations,)),
            'reward': (value_def('reward'), (ex_observations,)),
        }
        network_def = nn.ModuleDict({k: v[0] for k, v in network_info.items()})
        network_args = {k: v[1] for k, v in network_info.items()}
        params = nn.init(network_def, init_rng, **network_args)
        params['modules_target_critic'] = trees.map(torch.clone, params['modules_critic'])
        params['modules_target_actor'] = trees.map(torch.clone, params['modules_actor'])

        network = TrainState.create(network_def, params, tx=optim.adam(config['lr']))
        return cls(rng, network=network, config=FrozenDict(config))


def _of_model(batch):
    """Return the `model_` entries of a batch under the names without it."""
    return {
        name.removeprefix(PREFIX): value for name, value in batch.items() if name.startswith(PREFIX)
    }


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'mbpo_rebrac',  # Name in run folders and logs.
            'lr': 3e-4,  # Learning rate.
            'batch_size': 256,  # Batch size.
            'transition_hidden_dims': (512, 512, 512, 512),  # Widths of the transition model.
            'reward_hidden_dims': (512, 512, 512, 512),  # Widths of the reward model.
            'actor_hidden_dims': (512, 512, 512, 512),  # Widths of the actor's hidden layers.
            'value_hidden_dims': (512, 512, 512, 512),  # Widths of the critic's hidden layers.
            'transition_layer_norm': True,  # Whether the transition model normalises layers.
            'reward_layer_norm': True,  # Whether the reward model has layer normalisation.
            'actor_layer_norm': False,  # Whether the actor has layer normalisation.
            'value_layer_norm': True,  # Whether the critic has layer normalisation.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target networks.
            'tanh_squash': True,  # Whether actions are squashed by tanh.
            'actor_fc_scale': 0.01,  # Initialisation scale of the actor's last layer.
            'num_model_rollouts': 256,  # Rollouts of the model after each step of finetuning.
            'num_model_rollout_steps': 1,  # Steps of each rollout.
            # Transitions that the model's buffer holds. Batches come from it once it holds more
            # than batch_size; with the original's 100, never. 100_000, say, makes use of the model.
            'model_buffer_size': 100,
            # Whether each step of a rollout starts where the one before ended (in the original,
            # all start from the data).
            'advance_model_rollouts': False,
            # Next actions of the model's transitions (only alpha_critic weighs them): of other
            # transitions in the buffer, 'neighbours', as in the original, or of the 'policy'.
            'model_next_actions': 'neighbours',
            'alpha_actor': 0.0,  # Weight of behaviour cloning in the actor's loss.
            'alpha_critic': 0.0,  # Weight of the action distance in the critic's target.
            'actor_freq': 4,  # A full update (actor and targets) every so many steps.
            'actor_noise': 0.2,  # Standard deviation of the action noise.
            'actor_noise_clip': 0.5,  # Bound of the action noise.
            # Encoder of observations ('mlp'), or None; those of images are of no use here.
            'encoder': ml_collections.config_dict.placeholder(str),
        }
    )
