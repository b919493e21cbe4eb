"""Soft actor-critic (SAC), with REDQ and DroQ as configurations of it.

Papers: Haarnoja et al., "Soft actor-critic algorithms and applications" (2018); Chen et al.,
"Randomized ensembled double Q-learning" (ICLR 2021); Hiraoka et al., "Dropout Q-functions for
doubly efficient reinforcement learning" (ICLR 2022).
Original: philippe-eecs/IDQL @ 7582571, jaxrl5/agents/sac/sac_learner.py.

Deviations: `update` runs its critic steps as calls of one compiled step instead of unrolling them,
so compile time does not grow with `utd_ratio` (same results). `create` takes examples and a config
instead of spaces and keyword arguments, as every agent here.
"""

import functools
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.jaxrl5.networks import (
    MLP,
    Ensemble,
    StateActionValue,
    TanhNormal,
    Temperature,
    make_state,
    subsample_ensemble,
)
from purerl.core import optim, random, trees
from purerl.core.jit import jit
from purerl.core.loops import fori
from purerl.core.ops import polyak
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict


@trees.dataclass
class SACLearner:
    """Maximum-entropy actor-critic with an ensemble of critics and a learned temperature."""

    actor: TrainState
    rng: torch.Tensor
    critic: TrainState
    target_critic: TrainState
    temp: TrainState
    tau: torch.Tensor
    discount: torch.Tensor
    target_entropy: torch.Tensor
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset()

    def update_critic(self, batch):
        """One step of the critics and their targets; returns (agent, info)."""
        dist = self.actor(batch['next_observations'])

        key, rng = random.split(self.rng)
        next_actions, next_log_probs = dist.sample_and_log_prob(seed=key)

        # Used only for REDQ, split in any case.
        key, rng = random.split(rng)
        target_params = subsample_ensemble(
            key, self.target_critic.params, self.config['num_min_qs'], self.config['num_qs']
        )

        key, rng = random.split(rng)
        next_qs = self.target_critic(
            batch['next_observations'],
            next_actions,
            True,
            params=target_params,
            rngs={'dropout': key},
        )  # (num_min_qs or num_qs, B)
        next_q = next_qs.amin(0)
        target_q = batch['rewards'] + self.discount * batch['masks'] * next_q
        if self.config['backup_entropy']:
            target_q = target_q - self.discount * batch['masks'] * self.temp() * next_log_probs

        key, rng = random.split(rng)

        def critic_loss_fn(critic_params):
            qs = self.critic(
                batch['observations'],
                batch['actions'],
                True,
                params=critic_params,
                rngs={'dropout': key},
            )  # (num_qs, B)
            critic_loss = (qs - target_q).square().mean()
            return critic_loss, {'critic_loss': critic_loss, 'q': qs.mean()}

        grads, info = torch.func.grad(critic_loss_fn, has_aux=True)(self.critic.params)
        critic = self.critic.apply_gradients(grads)

        # The targets follow the critics from after the step.
        moved = polyak(critic.params, self.target_critic.params, self.tau)
        target_critic = self.target_critic.replace(params=moved)
        return self.replace(critic=critic, target_critic=target_critic, rng=rng), info

    def update_actor(self, batch):
        """One step of the policy against the mean of the critics; returns (agent, info)."""
        key, rng = random.split(self.rng)
        key2, rng = random.split(rng)

        def actor_loss_fn(actor_params):
            dist = self.actor(batch['observations'], params=actor_params)
            actions, log_probs = dist.sample_and_log_prob(seed=key)
            qs = self.critic(batch['observations'], actions, True, rngs={'dropout': key2})
            q = qs.mean(0)
            actor_loss = (log_probs * self.temp() - q).mean()
            return actor_loss, {'actor_loss': actor_loss, 'entropy': -log_probs.mean()}

        grads, info = torch.func.grad(actor_loss_fn, has_aux=True)(self.actor.params)
        return self.replace(actor=self.actor.apply_gradients(grads), rng=rng), info

    def update_temperature(self, entropy):
        """One step of the temperature towards the target entropy; returns (agent, info)."""

        def temperature_loss_fn(temp_params):
            temperature = self.temp(params=temp_params)
            temp_loss = temperature * (entropy - self.target_entropy).mean()
            return temp_loss, {'temperature': temperature, 'temperature_loss': temp_loss}

        grads, info = torch.func.grad(temperature_loss_fn, has_aux=True)(self.temp.params)
        return self.replace(temp=self.temp.apply_gradients(grads)), info

    @jit(static_argnames=('utd_ratio',))
    def update(self, batch, utd_ratio: int = 1):
        """Take `utd_ratio` critic steps on slices of the batch, then one step of the rest.

        Args:
            batch: with `utd_ratio` times as many transitions as each critic step is to see.
            utd_ratio: updates to data ratio.

        Returns:
            The new agent and the info of the last steps.

        Raises:
            ValueError: if the batch does not divide into `utd_ratio` slices.
        """
        size = len(batch['rewards'])
        if size % utd_ratio:
            raise ValueError(f'a batch of {size} does not divide into utd_ratio={utd_ratio} parts')
        parts = trees.map(lambda x: x.unflatten(0, (utd_ratio, -1)), batch)

        def critic_step(i, agent, parts):
            return agent.update_critic(trees.map(lambda x: x.index_select(0, i[None])[0], parts))[0]

        new_agent = fori(utd_ratio - 1, critic_step, self, parts) if utd_ratio > 1 else self
        last = trees.map(lambda x: x[-1], parts)
        new_agent, critic_info = new_agent.update_critic(last)
        new_agent, actor_info = new_agent.update_actor(last)
        new_agent, temp_info = new_agent.update_temperature(actor_info['entropy'])
        return new_agent, {**actor_info, **critic_info, **temp_info}

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
            ValueError: if more target critics are asked for than there are critics, the temperature
                is not above 0, or the dropout rate above 1.
        """
        action_dim = ex_actions.shape[-1]
        num_qs, num_min_qs = config['num_qs'], config['num_min_qs']
        if num_min_qs is not None and not 1 <= num_min_qs <= num_qs:
            raise ValueError(f'num_min_qs={num_min_qs} must lie between 1 and num_qs={num_qs}')
        target_entropy = config['target_entropy']
        if target_entropy is None:
            target_entropy = -action_dim / 2

        rng, actor_key, critic_key, temp_key = random.split(random.key(seed), 4)

        actor_base_cls = functools.partial(
            MLP, hidden_dims=config['hidden_dims'], activate_final=True
        )
        actor_def = TanhNormal(actor_base_cls, action_dim)
        tx = optim.adam(config['actor_lr'])
        actor = make_state(actor_def, actor_key, ex_observations, tx=tx)

        critic_base_cls = functools.partial(
            MLP,
            hidden_dims=config['hidden_dims'],
            activate_final=True,
            dropout_rate=config['critic_dropout_rate'],
            use_layer_norm=config['critic_layer_norm'],
        )
        critic_cls = functools.partial(StateActionValue, base_cls=critic_base_cls)
        critic_def = Ensemble(critic_cls, num=num_qs)
        tx = optim.adam(config['critic_lr'])
        critic = make_state(critic_def, critic_key, ex_observations, ex_actions, tx=tx)
        target_critic = TrainState.create(
            Ensemble(critic_cls, num=num_min_qs or num_qs),
            trees.map(torch.clone, critic.params),
            step=0,
        )

        temp_def = Temperature(config['init_temperature'])
        temp = make_state(temp_def, temp_key, tx=optim.adam(config['temp_lr']))
        return cls(
            actor=actor,
            rng=rng,
            critic=critic,
            target_critic=target_critic,
            temp=temp,
            tau=torch.tensor(config['tau']),
            discount=torch.tensor(config['discount']),
            target_entropy=torch.tensor(target_entropy),
            config=FrozenDict(config),
        )


def get_config():
    """Return the original's defaults (its sac_config.py)."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'sac',  # Name in run folders and logs.
            'actor_lr': 3e-4,  # Learning rate of the policy.
            'critic_lr': 3e-4,  # Learning rate of the critics.
            'temp_lr': 3e-4,  # Learning rate of the temperature.
            'hidden_dims': (256, 256),  # Widths of all hidden layers.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target critics.
            'num_qs': 2,  # Critics.
            # Critics drawn for each target (REDQ); None uses all of them.
            'num_min_qs': ml_collections.config_dict.placeholder(int),
            # Dropout of the critics (DroQ), or None.
            'critic_dropout_rate': ml_collections.config_dict.placeholder(float),
            'critic_layer_norm': False,  # Whether the critics' inputs are normalised (DroQ).
            # Target entropy; None: half of minus the action's size.
            'target_entropy': ml_collections.config_dict.placeholder(float),
            'init_temperature': 1.0,  # Temperature at the start.
            'backup_entropy': True,  # Whether targets contain the next action's entropy.
        }
    )
