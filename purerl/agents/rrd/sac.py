"""Soft actor-critic (SAC) as RRD's original has it.

Paper: Haarnoja et al., "Soft actor-critic algorithms and applications" (2018).
Original: Stilwell-Git/Randomized-Return-Decomposition @ bc80473, algorithm/basis_alg/sac.py.

Losses and gradients of one call use the parameters from before it. Kept although odd: the policy's
standard deviation is floored at 1e-2, its density is not. Deviation: noise comes from the agent's
key, unless the batch holds it.
"""

from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.rrd import networks
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit
from purerl.core.ops import polyak
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict


@trees.dataclass
class SACAgent:
    """A Gaussian policy through a tanh, two critics with targets, and a temperature."""

    rng: torch.Tensor
    actor: TrainState
    temperature: TrainState
    critic: TrainState
    target_critic: TrainState
    normalizer: networks.Normalizer | None
    updates: torch.Tensor
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'whole_episodes'})

    @classmethod
    def acts_discretely(cls, config) -> bool:
        """Whether it needs a discrete action space (and else a continuous one)."""
        return False

    def normalize(self, observations):
        """What the networks see of observations."""
        return networks.normalized(self.normalizer, observations)

    def alpha(self):
        """Return the temperature, 0-d."""
        return self.temperature().exp()

    def target_values(self, batch):
        """Return the critics' targets, (B,), with the next action's entropy."""
        following = self.normalize(batch['next_observations'])
        outputs = self.actor(following)
        actions, log_probs = networks.squashed_sample(outputs, batch['next_policy_noises'])
        next_q = networks.smaller(self.target_critic(following, actions)) - self.alpha() * log_probs
        return batch['rewards'] + self.config['gamma'] * batch['masks'] * next_q

    def critic_loss(self, batch, params):
        """Squared errors of both critics, summed."""
        q = self.critic(self.normalize(batch['observations']), batch['actions'], params=params)
        critic_loss = (q - self.target_values(batch)).square().mean(-1).sum()
        return critic_loss, {'critic_loss': critic_loss}

    def actor_loss(self, batch, params):
        """Soft value of the policy's actions, negated; the info has their log-probabilities."""
        observations = self.normalize(batch['observations'])
        outputs = self.actor(observations, params=params)
        actions, log_probs = networks.squashed_sample(outputs, batch['policy_noises'])
        q = networks.smaller(self.critic(observations, actions))
        actor_loss = (self.alpha() * log_probs - q).mean()
        return actor_loss, {'actor_loss': actor_loss, 'log_prob': log_probs.mean()}

    def temperature_loss(self, log_prob, action_dim: int, params):
        """Push the policy's entropy towards minus the action's size."""
        return -self.temperature(params=params) * (log_prob - action_dim)

    @jit
    def train(self, batch):
        """One step of policy, temperature and critics, all from the same parameters.

        Returns:
            The new agent and info.
        """
        agent, batch = self._with_noises(batch)
        actor_grads, actor_info = torch.func.grad(
            lambda params: self.actor_loss(batch, params), has_aux=True
        )(self.actor.params)
        critic_grads, critic_info = torch.func.grad(
            lambda params: self.critic_loss(batch, params), has_aux=True
        )(self.critic.params)
        temperature = self.temperature
        if self.config['alpha_lr'] > 0:
            grads = torch.func.grad(
                lambda params: self.temperature_loss(
                    actor_info['log_prob'], batch['actions'].shape[-1], params
                )
            )(temperature.params)
            temperature = temperature.apply_gradients(grads)
        agent = agent.replace(
            actor=self.actor.apply_gradients(actor_grads),
            critic=self.critic.apply_gradients(critic_grads),
            temperature=temperature,
        )
        info = {'alpha': self.alpha(), 'entropy': -actor_info['log_prob']}
        return agent, {'actor_loss': actor_info['actor_loss'], **critic_info, **info}

    def _with_noises(self, batch):
        if 'policy_noises' in batch:
            return self, batch
        rng, key, next_key = random.split(self.rng, 3)
        shape = batch['actions'].shape
        noises = {
            'policy_noises': random.normal(key, shape),
            'next_policy_noises': random.normal(next_key, shape),
        }
        return self.replace(rng=rng), {**batch, **noises}

    @jit
    def update_target(self):
        """Move the target critics towards the online ones."""
        tau = 1 - self.config['polyak']
        moved = polyak(self.critic.params, self.target_critic.params, tau)
        return self.replace(target_critic=self.target_critic.replace(params=moved))

    @jit
    def update(self, batch):
        """`train`, and every `train_target` updates `update_target`; returns (agent, info)."""
        agent, info = self.train(batch)
        return networks.counted_update(agent), info

    @jit
    def update_normalizer(self, batch):
        """Count a batch's observations in, where observations are normalised."""
        return self.replace(normalizer=networks.counted(self.normalizer, batch))

    def act(self, observations, noises):
        """Return the policy's actions at standard-normal `noises`; zeros give its mode."""
        outputs = self.actor(self.normalize(observations))
        return networks.squashed_sample(outputs, noises)[0]

    @jit
    def sample_actions(self, observations):
        """Sample actions for exploration; returns (actions, agent)."""
        rng, key = random.split(self.rng)
        outputs = self.actor(self.normalize(observations))
        noises = random.normal(key, (*outputs.shape[:-1], outputs.shape[-1] // 2))
        return networks.squashed_sample(outputs, noises)[0], self.replace(rng=rng)

    def warmup_actions(self, observations):
        """As `sample_actions`: the original explores by its policy from the first step."""
        return self.sample_actions(observations)

    @jit
    def eval_actions(self, observations):
        """Return the policy's mode; returns (actions, agent)."""
        outputs = self.actor(self.normalize(observations))
        return networks.tanh(outputs.chunk(2, -1)[0]), self

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples (only their shapes matter).

        Raises:
            ValueError: if the temperature does not start above zero, or there are not two hidden
                layers.
        """
        networks.check_layers(config, hidden_dims=2)
        if config['alpha_init'] <= 0:
            raise ValueError(f'alpha_init={config["alpha_init"]} must be above 0')
        rng, actor_key, critic_key = random.split(random.key(seed), 3)
        shape, action_dim = ex_observations.shape[1:], ex_actions.shape[-1]
        observations, actions = torch.zeros(1, *shape), torch.zeros(1, action_dim)

        actor_def = networks.Policy(config['hidden_dims'], 2 * action_dim)
        actor_params = nn.init(actor_def, actor_key, observations)
        critic_def = networks.TwinValue(config['hidden_dims'])
        critic_params = nn.init(critic_def, critic_key, observations, actions)
        alpha_def = networks.LogTemperature(config['alpha_init'])
        tx_actor, tx_critic, tx_alpha = (
            optim.tf_adam(config[name]) for name in ('pi_lr', 'q_lr', 'alpha_lr')
        )
        target = trees.map(torch.clone, critic_params)
        return cls(
            rng=rng,
            actor=TrainState.create(actor_def, actor_params, tx_actor, step=0),
            temperature=TrainState.create(alpha_def, nn.init(alpha_def, rng), tx_alpha, step=0),
            critic=TrainState.create(critic_def, critic_params, tx_critic, step=0),
            target_critic=TrainState.create(critic_def, target, step=0),
            normalizer=networks.Normalizer.create(shape) if config['obs_normalization'] else None,
            updates=torch.tensor(0),
            config=FrozenDict(config),
        )


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'sac',  # Name in run folders and logs.
            'hidden_dims': (256, 256),  # Widths of the hidden layers.
            'pi_lr': 3e-4,  # Learning rate of the policy.
            'q_lr': 3e-4,  # Learning rate of the critics.
            'alpha_lr': 3e-4,  # Learning rate of the temperature; 0 keeps it fixed.
            'alpha_init': 1.0,  # Temperature at the start.
            'gamma': 0.99,  # Discount factor.
            'polyak': 0.995,  # Share of itself that a target keeps when it moves.
            'train_target': 1,  # Updates between moves of the targets.
            'obs_normalization': False,  # Whether observations are normalised.
        }
    )
