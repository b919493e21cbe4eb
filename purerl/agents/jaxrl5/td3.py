"""Twin delayed deep deterministic policy gradient (TD3).

Paper: Fujimoto et al., "Addressing function approximation error in actor-critic methods" (ICML
2018).
Original: philippe-eecs/IDQL @ 7582571, jaxrl5/agents/td3/td3_learner.py.

Deviations: `update` runs its critic steps as calls of one compiled step instead of unrolling them,
so compile time does not grow with `utd_ratio` (same results). `eval_actions` returns the agent too,
as every agent's; the original's returns the bare actions, which its own evaluation cannot take.
`create` takes examples and a config instead of spaces and keyword arguments, as every agent here.
"""

import functools
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.jaxrl5.networks import (
    MLP,
    Ensemble,
    StateActionValue,
    TanhDeterministic,
    make_state,
    subsample_ensemble,
    target_of,
)
from purerl.core import optim, random, trees
from purerl.core.jit import jit
from purerl.core.loops import cond, fori
from purerl.core.ops import polyak
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict

_MOVING = ('actor', 'target_actor', 'rng')  # what waits for the actor's turn


@trees.dataclass
class TD3Learner:
    """Deterministic actor-critic with an ensemble of critics and a delayed actor."""

    actor: TrainState
    rng: torch.Tensor
    critic: TrainState
    target_critic: TrainState
    target_actor: TrainState
    tau: torch.Tensor
    discount: torch.Tensor
    exploration_noise: torch.Tensor
    target_policy_noise: torch.Tensor
    target_policy_noise_clip: torch.Tensor
    actor_delay: torch.Tensor
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset()

    def update_actor(self, batch):
        """One step of the policy against the mean of the critics, and of its target."""
        key, rng = random.split(self.rng)

        def actor_loss_fn(actor_params):
            actions = self.actor(batch['observations'], params=actor_params)
            qs = self.critic(batch['observations'], actions, True, rngs={'dropout': key})
            actor_loss = -qs.mean(0).mean()
            return actor_loss, {'actor_loss': actor_loss}

        grads, info = torch.func.grad(actor_loss_fn, has_aux=True)(self.actor.params)
        actor = self.actor.apply_gradients(grads)

        # The targets, here and below, follow the networks from after the step.
        moved = polyak(actor.params, self.target_actor.params, self.tau)
        target_actor = self.target_actor.replace(params=moved)
        return self.replace(actor=actor, target_actor=target_actor, rng=rng), info

    def update_critic(self, batch):
        """One step of the critics and their targets; returns (agent, info)."""
        next_actions = self.target_actor(batch['next_observations'])

        key, rng = random.split(self.rng)
        target_noise = random.normal(key, next_actions.shape) * self.target_policy_noise
        bound = self.target_policy_noise_clip
        # The noise is clipped, the noisy action is not: it may leave [-1, 1].
        next_actions = next_actions + torch.clamp(target_noise, -bound, bound)

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
        moved = polyak(critic.params, self.target_critic.params, self.tau)
        target_critic = self.target_critic.replace(params=moved)
        return self.replace(critic=critic, target_critic=target_critic, rng=rng), info

    @jit(static_argnames=('utd_ratio',))
    def update(self, batch, utd_ratio: int = 1):
        """Take `utd_ratio` critic steps on slices of the batch, and at times one of the actor.

        Args:
            batch: with `utd_ratio` times as many transitions as each critic step is to see.
            utd_ratio: updates to data ratio.

        Returns:
            The new agent and the info of the last steps; `actor_loss` is 0 where the actor waits.

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

        # The actor, its target and the key move in every actor_delay-th update only.
        moves = new_agent.critic.step % (utd_ratio * new_agent.actor_delay) == 0
        changes, actor_info = cond(moves, _moved, _waiting, new_agent, last)
        return new_agent.replace(**changes), {**actor_info, **critic_info}

    @jit
    def sample_actions(self, observations):
        """Return the policy's actions with noise for exploration; returns (actions, agent)."""
        key, rng = random.split(self.rng)
        actions = self.actor(observations)
        noise = random.normal(key, actions.shape) * self.exploration_noise
        return (actions + noise).clamp(-1.0, 1.0), self.replace(rng=rng)

    @jit
    def eval_actions(self, observations):
        """Return the policy's actions; returns (actions, agent)."""
        return self.actor(observations), self

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples (only their shapes matter).

        Raises:
            ValueError: if more target critics are asked for than there are critics, or
                `actor_delay` is below 1.
        """
        num_qs, num_min_qs = config['num_qs'], config['num_min_qs']
        if num_min_qs is not None and not 1 <= num_min_qs <= num_qs:
            raise ValueError(f'num_min_qs={num_min_qs} must lie between 1 and num_qs={num_qs}')
        if config['actor_delay'] < 1:
            raise ValueError(f'actor_delay must be at least 1, got {config["actor_delay"]}')

        rng, actor_key, critic_key = random.split(random.key(seed), 3)

        actor_base_cls = functools.partial(
            MLP, hidden_dims=config['hidden_dims'], activate_final=True
        )
        actor_def = TanhDeterministic(actor_base_cls, ex_actions.shape[-1])
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
        return cls(
            actor=actor,
            rng=rng,
            critic=critic,
            target_critic=target_critic,
            target_actor=target_of(actor),
            tau=torch.tensor(config['tau']),
            discount=torch.tensor(config['discount']),
            exploration_noise=torch.tensor(config['exploration_noise']),
            target_policy_noise=torch.tensor(config['target_policy_noise']),
            target_policy_noise_clip=torch.tensor(config['target_policy_noise_clip']),
            actor_delay=torch.tensor(config['actor_delay']),
            config=FrozenDict(config),
        )


def _moved(agent, batch):
    """Return what `TD3Learner.update_actor` changes, and its info."""
    moved, info = agent.update_actor(batch)
    return {name: getattr(moved, name) for name in _MOVING}, info


def _waiting(agent, batch):
    """Return the same of an actor that waits."""
    info = {'actor_loss': batch['rewards'].new_zeros(())}
    return {name: getattr(agent, name) for name in _MOVING}, info


def get_config():
    """Return the original's defaults (its td3_config.py)."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'td3',  # Name in run folders and logs.
            'actor_lr': 3e-4,  # Learning rate of the policy.
            'critic_lr': 3e-4,  # Learning rate of the critics.
            'hidden_dims': (256, 256),  # Widths of all hidden layers.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target networks.
            'num_qs': 2,  # Critics.
            # Critics drawn for each target (REDQ); None uses all of them.
            'num_min_qs': ml_collections.config_dict.placeholder(int),
            # Dropout of the critics (DroQ), or None.
            'critic_dropout_rate': ml_collections.config_dict.placeholder(float),
            'critic_layer_norm': False,  # Whether the critics' inputs are normalised (DroQ).
            'exploration_noise': 0.1,  # Deviation of the noise on actions while exploring.
            'target_policy_noise': 0.2,  # Deviation of the noise on the targets' actions.
            'target_policy_noise_clip': 0.5,  # Bound of that noise.
            'actor_delay': 2,  # Updates per step of the actor and its target.
        }
    )
