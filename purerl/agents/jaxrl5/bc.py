"""Behaviour cloning (BC) with a Gaussian policy.

Original: philippe-eecs/IDQL @ 7582571, jaxrl5/agents/bc/bc_learner.py.

Deviations: `create` takes examples and a config instead of spaces and keyword arguments, as every
agent here; the learning rate's cosine schedule, which the original's launcher makes and passes in,
is the field `decay_steps`.
"""

import functools
import math
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.jaxrl5 import networks
from purerl.agents.jaxrl5.networks import MLP, Normal
from purerl.core import optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import clip
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict


def get_weight_decay_mask(params):
    """Return which parameters decay: all but biases (unlike `networks.get_weight_decay_mask`)."""
    return networks.get_weight_decay_mask(params, excluded=())


@trees.dataclass
class BCLearner:
    """Maximum likelihood of the data's actions under a Gaussian with a fixed deviation of 0.1."""

    actor: TrainState
    rng: torch.Tensor
    entropy_bonus: torch.Tensor | None
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset()

    @jit
    def update(self, batch):
        """Take one step; returns (agent, info)."""
        rng, key1, key2 = random.split(self.rng, 3)

        def loss_fn(actor_params):
            dist = self.actor(
                batch['observations'], training=True, params=actor_params, rngs={'dropout': key1}
            )
            nll = -dist.log_prob(batch['actions']).mean()

            actor_loss = nll
            eps = 1e-5
            action = clip(dist.sample(seed=key2), -1 + eps, 1 - eps).detach()
            log_prob = dist.log_prob(action)

            if self.entropy_bonus is not None:
                # Its gradient is that of the entropy, but for a baseline.
                entropy_grad = (-log_prob * log_prob.detach()).mean()
                actor_loss = actor_loss - self.entropy_bonus * entropy_grad

            return actor_loss, {'nll': nll, 'entropy': -log_prob.mean()}

        grads, info = torch.func.grad(loss_fn, has_aux=True)(self.actor.params)
        return self.replace(actor=self.actor.apply_gradients(grads), rng=rng), info

    @jit
    def sample_actions(self, observations):
        """Sample actions; returns (actions, agent)."""
        key, rng = random.split(self.rng)
        return self.actor(observations).sample(seed=key), self.replace(rng=rng)

    @jit
    def eval_actions(self, observations):
        """Return the policy's mode; returns (actions, agent)."""
        return self.actor(observations).mode(), self

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples (only their shapes matter).

        Raises:
            ValueError: if `decay_steps` is below 1.
        """
        rng, actor_key = random.split(random.key(seed))

        base_cls = functools.partial(
            MLP,
            hidden_dims=config['hidden_dims'],
            activate_final=True,
            dropout_rate=config['dropout_rate'],
            use_layer_norm=config['use_layer_norm'],
        )
        actor_def = Normal(
            base_cls,
            ex_actions.shape[-1],
            log_std_min=math.log(0.1),
            log_std_max=math.log(0.1),
            state_dependent_std=False,
        )

        actor_lr = config['actor_lr']
        if config['decay_steps'] is not None:
            actor_lr = optim.cosine_decay_schedule(actor_lr, config['decay_steps'])
        if config['weight_decay'] is None:
            optimiser = optim.adam(actor_lr)
        else:
            optimiser = optim.adamw(
                actor_lr, weight_decay=config['weight_decay'], mask=get_weight_decay_mask
            )

        bonus = config['entropy_bonus']
        return cls(
            actor=networks.make_state(actor_def, actor_key, ex_observations, tx=optimiser),
            rng=rng,
            entropy_bonus=None if bonus is None else torch.tensor(bonus),
            config=FrozenDict(config),
        )


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'bc',  # Name in run folders and logs.
            'actor_lr': 1e-3,  # Learning rate.
            # Updates over which the learning rate falls to 0 along a cosine; None: it is constant.
            'decay_steps': ml_collections.config_dict.placeholder(int),
            'hidden_dims': (256, 256),  # Widths of the hidden layers.
            'use_layer_norm': False,  # Whether the input is normalised.
            # Dropout of the hidden layers, or None.
            'dropout_rate': ml_collections.config_dict.placeholder(float),
            # Weight decay of all parameters but biases (AdamW), or None for Adam.
            'weight_decay': ml_collections.config_dict.placeholder(float),
            # Weight of the policy's entropy in the loss, or None.
            'entropy_bonus': ml_collections.config_dict.placeholder(float),
        }
    )
