"""Implicit Q-learning (IQL).

Paper: Kostrikov et al., "Offline reinforcement learning with implicit Q-learning" (ICLR 2022).
Original: philippe-eecs/IDQL @ 7582571, jaxrl5/agents/iql/iql_learner.py. It differs from InFOM's
IQL in that each network has an optimiser, the updates follow one another (value, actor, critics),
the policy is weighed by the target critics, and its deviation is fixed at 0.1.

Deviations: `create` takes examples and a config instead of spaces and keyword arguments, as every
agent here; the learning rate's cosine schedule, which the original's launcher makes and passes in,
is the field `decay_steps`; any number of critics works (the original unpacks two, and fails).
"""

import functools
import math
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.jaxrl5.networks import (
    MLP,
    Ensemble,
    Normal,
    StateActionValue,
    StateValue,
    make_state,
    target_of,
)
from purerl.core import optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import expectile_loss, polyak
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict


@trees.dataclass
class IQLLearner:
    """Expectile regression of the value, and advantage-weighted regression of the policy."""

    actor: TrainState
    rng: torch.Tensor
    critic: TrainState
    target_critic: TrainState
    value: TrainState
    discount: torch.Tensor
    tau: torch.Tensor
    expectile: torch.Tensor
    temperature: torch.Tensor
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset()

    def update_v(self, batch):
        """One step of the value towards an expectile of the target critics' minimum."""
        q = self.target_critic(batch['observations'], batch['actions']).amin(0)

        def value_loss_fn(value_params):
            v = self.value(batch['observations'], params=value_params)
            value_loss = expectile_loss(q - v, q - v, self.expectile).mean()
            return value_loss, {'value_loss': value_loss, 'v': v.mean()}

        grads, info = torch.func.grad(value_loss_fn, has_aux=True)(self.value.params)
        return self.replace(value=self.value.apply_gradients(grads)), info

    def update_q(self, batch):
        """One step of the critics towards the value of the next observation, and of the targets."""
        next_v = self.value(batch['next_observations'])
        target_q = batch['rewards'] + self.discount * batch['masks'] * next_v

        def critic_loss_fn(critic_params):
            qs = self.critic(batch['observations'], batch['actions'], params=critic_params)
            critic_loss = (qs - target_q).square().sum(0).mean()
            means = {f'q{i + 1}': q.mean() for i, q in enumerate(qs)}
            return critic_loss, {'critic_loss': critic_loss, **means}

        grads, info = torch.func.grad(critic_loss_fn, has_aux=True)(self.critic.params)
        critic = self.critic.apply_gradients(grads)

        # The targets follow the critics from after the step.
        moved = polyak(critic.params, self.target_critic.params, self.tau)
        target_critic = self.target_critic.replace(params=moved)
        return self.replace(critic=critic, target_critic=target_critic), info

    def update_actor(self, batch):
        """One step of the policy towards the data's actions, weighed by their advantages."""
        v = self.value(batch['observations'])
        q = self.target_critic(batch['observations'], batch['actions']).amin(0)
        exp_a = torch.exp((q - v) * self.temperature).clamp(max=100.0)

        def actor_loss_fn(actor_params):
            dist = self.actor(batch['observations'], training=True, params=actor_params)
            log_probs = dist.log_prob(batch['actions'])
            actor_loss = -(exp_a * log_probs).mean()
            return actor_loss, {'actor_loss': actor_loss, 'adv': q - v}  # adv: (B,)

        grads, info = torch.func.grad(actor_loss_fn, has_aux=True)(self.actor.params)
        return self.replace(actor=self.actor.apply_gradients(grads)), info

    @jit
    def update(self, batch):
        """Take one step of value, policy and critics, in this order; returns (agent, info)."""
        new_agent, value_info = self.update_v(batch)
        new_agent, actor_info = new_agent.update_actor(batch)
        new_agent, critic_info = new_agent.update_q(batch)
        return new_agent, {**actor_info, **critic_info, **value_info}

    @jit
    def sample_actions(self, observations):
        """Sample actions for exploration; returns (actions, agent)."""
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
            ValueError: if `num_qs` or `decay_steps` is below 1.
        """
        if config['num_qs'] < 1:
            raise ValueError(f'num_qs={config["num_qs"]}: IQL needs at least one critic')
        rng, actor_key, critic_key, value_key = random.split(random.key(seed), 4)

        base_cls = functools.partial(MLP, hidden_dims=config['hidden_dims'], activate_final=True)
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
        actor = make_state(actor_def, actor_key, ex_observations, tx=optim.adam(actor_lr))

        critic_cls = functools.partial(StateActionValue, base_cls=base_cls)
        critic_def = Ensemble(critic_cls, num=config['num_qs'])
        tx = optim.adam(config['critic_lr'])
        critic = make_state(critic_def, critic_key, ex_observations, ex_actions, tx=tx)

        value_def = StateValue(base_cls)
        tx = optim.adam(config['value_lr'])
        value = make_state(value_def, value_key, ex_observations, tx=tx)

        return cls(
            actor=actor,
            rng=rng,
            critic=critic,
            target_critic=target_of(critic),
            value=value,
            discount=torch.tensor(config['discount']),
            tau=torch.tensor(config['tau']),
            expectile=torch.tensor(config['expectile']),
            temperature=torch.tensor(config['temperature']),
            config=FrozenDict(config),
        )


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'iql',  # Name in run folders and logs.
            'actor_lr': 1e-3,  # Learning rate of the policy.
            # Updates over which the policy's learning rate falls to 0 along a cosine; None: it is
            # constant.
            'decay_steps': ml_collections.config_dict.placeholder(int),
            'critic_lr': 3e-4,  # Learning rate of the critics.
            'value_lr': 3e-4,  # Learning rate of the value.
            'hidden_dims': (256, 256),  # Widths of all hidden layers.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target critics.
            'expectile': 0.8,  # Expectile of the value regression.
            'temperature': 0.1,  # Inverse temperature of the policy's weights.
            'num_qs': 2,  # Critics.
        }
    )
