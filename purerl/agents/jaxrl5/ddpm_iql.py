"""Implicit diffusion Q-learning (IDQL), with all its objectives.

Paper: Hansen-Estruch et al., "IDQL: Implicit Q-learning as an actor-critic method with diffusion
policies" (2023).
Original: philippe-eecs/IDQL @ 7582571, jaxrl5/agents/ddpm_iql/ddpm_iql_learner.py. Its sibling
`ddpm_iql_simple` is what the offline launcher of the original trains.

Deviations:
- `create` takes examples and a config instead of spaces and keyword arguments, as every agent here.
- `eval_actions` and `sample_implicit_policy` are one compiled call each, and take batches of
  observations too; the original's stop at an assertion. Actions of size 1 keep their axis.
- `sample_actions` is `eval_actions`, with which the original explores; its own has no actor to run.
- `eval_loss` does not differentiate its loss (same results).
- Unknown objectives are refused when the agent is made; the original raises in the first update.
"""

import functools
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.jaxrl5.networks import (
    MLP,
    Ensemble,
    StateActionValue,
    StateValue,
    make_state,
    score_network,
    target_of,
)
from purerl.agents.jaxrl5.objectives import (
    ACTOR_WEIGHTS,
    IMPLICIT_WEIGHTS,
    VALUE_LOSSES,
    check_objectives,
)
from purerl.core import optim, random, trees
from purerl.core.diffusion import check_sampling, ddpm_sampler, make_schedule
from purerl.core.jit import jit, vmap
from purerl.core.ops import polyak
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict


@trees.dataclass
class DDPMIQLLearner:
    """Implicit Q-learning of critics and value; a diffusion policy whose samples they rank."""

    rng: torch.Tensor
    score_model: TrainState
    target_score_model: TrainState
    critic: TrainState
    target_critic: TrainState
    value: TrainState
    discount: torch.Tensor
    tau: torch.Tensor
    actor_tau: torch.Tensor
    critic_hyperparam: torch.Tensor
    ddpm_temperature: torch.Tensor
    policy_temperature: torch.Tensor
    betas: torch.Tensor
    alphas: torch.Tensor
    alpha_hats: torch.Tensor
    critic_objective: str = trees.static()
    actor_objective: str = trees.static()
    act_dim: int = trees.static()
    T: int = trees.static()  # denoising steps
    N: int = trees.static()  # candidates per observation
    M: int = trees.static()  # repetitions of the last denoising step
    clip_sampler: bool = trees.static()
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset()
    # Fields that only acting reads.
    acting_fields: ClassVar[tuple[str, ...]] = ('N', 'M', 'T', 'clip_sampler', 'ddpm_temperature')

    # --- Updates ---------------------------------------------------------------------------------

    def update_v(self, batch):
        """One step of the value towards a statistic of the target critics' minimum."""
        q = self.compute_q(batch['observations'], batch['actions'])
        loss = VALUE_LOSSES[self.critic_objective]

        def value_loss_fn(value_params):
            v = self.value(batch['observations'], params=value_params)
            value_loss = loss(q - v, self.critic_hyperparam).mean()
            return value_loss, {'value_loss': value_loss, 'v': v.mean()}

        grads, info = torch.func.grad(value_loss_fn, has_aux=True)(self.value.params)
        return self.replace(value=self.value.apply_gradients(grads)), info

    def update_q(self, batch):
        """One step of the critics towards the value of the next observation, and of the targets."""
        next_v = self.value(batch['next_observations'])
        target_q = batch['rewards'] + self.discount * batch['masks'] * next_v

        def critic_loss_fn(critic_params):
            qs = self.critic(batch['observations'], batch['actions'], params=critic_params)
            critic_loss = (qs - target_q).square().mean()
            return critic_loss, {'critic_loss': critic_loss, 'q': qs.mean()}

        grads, info = torch.func.grad(critic_loss_fn, has_aux=True)(self.critic.params)
        critic = self.critic.apply_gradients(grads)

        # The targets, here and below, follow the networks from after the step.
        moved = polyak(critic.params, self.target_critic.params, self.tau)
        target_critic = self.target_critic.replace(params=moved)
        return self.replace(critic=critic, target_critic=target_critic), info

    def draw(self, num):
        """Draw what a batch of `num` actions is noised with.

        Returns:
            Steps (num,), noise (num, A), a key for dropout, and the agent's next key.
        """
        key, rng = random.split(self.rng)
        time = random.randint(key, (num,), 0, self.T)
        key, rng = random.split(rng)
        noise_sample = random.normal(key, (num, self.act_dim))
        key, rng = random.split(rng)
        return time, noise_sample, key, rng

    def noised(self, actions, time, noise_sample):
        """Return actions after `time` + 1 steps of the process that adds noise."""
        alpha_hats = self.alpha_hats.index_select(0, time.long())[:, None]
        return torch.sqrt(alpha_hats) * actions + torch.sqrt(1 - alpha_hats) * noise_sample

    def update_actor(self, batch):
        """One step of the score model, weighed by advantages, and of its target."""
        time, noise_sample, key, rng = self.draw(len(batch['actions']))
        noisy_actions = self.noised(batch['actions'], time, noise_sample)

        q = self.compute_q(batch['observations'], batch['actions'])
        adv = q - self.value(batch['observations'])
        weights = ACTOR_WEIGHTS[self.actor_objective](
            adv, self.critic_hyperparam, self.policy_temperature
        )

        def actor_loss_fn(score_model_params):
            eps_pred = self.score_model(
                batch['observations'],
                noisy_actions,
                time[:, None],
                training=True,
                params=score_model_params,
                rngs={'dropout': key},
            )
            actor_loss = ((eps_pred - noise_sample).square().sum(-1) * weights).mean()
            return actor_loss, {'actor_loss': actor_loss, 'weights': weights.mean()}

        grads, info = torch.func.grad(actor_loss_fn, has_aux=True)(self.score_model.params)
        score_model = self.score_model.apply_gradients(grads)
        moved = polyak(score_model.params, self.target_score_model.params, self.actor_tau)
        target_score_model = self.target_score_model.replace(params=moved)
        new_agent = self.replace(
            score_model=score_model, target_score_model=target_score_model, rng=rng
        )
        return new_agent, info

    @jit
    def actor_update(self, batch):
        """Take one step of the score model; returns (agent, info)."""
        return self.update_actor(batch)

    @jit
    def critic_update(self, batch):
        """Take one step of value and critics; returns (agent, info)."""
        new_agent, value_info = self.update_v(batch)
        new_agent, critic_info = new_agent.update_q(batch)
        return new_agent, {**value_info, **critic_info}

    @jit
    def update(self, batch):
        """Take one step of score model, value and critics, in this order; returns (agent, info)."""
        new_agent, actor_info = self.update_actor(batch)
        new_agent, value_info = new_agent.update_v(batch)
        new_agent, critic_info = new_agent.update_q(batch)
        return new_agent, {**actor_info, **critic_info, **value_info}

    @jit
    def eval_loss(self, batch):
        """Return the agent with its next key, and the score model's unweighted loss as info."""
        time, noise_sample, _, rng = self.draw(len(batch['actions']))
        noisy_actions = self.noised(batch['actions'], time, noise_sample)
        eps_pred = self.score_model(batch['observations'], noisy_actions, time[:, None])
        actor_loss = (eps_pred - noise_sample).square().sum(-1).mean()
        return self.replace(rng=rng), {'actor_loss': actor_loss}

    # --- Acting ----------------------------------------------------------------------------------

    def compute_q(self, observations, actions):
        """Return the smallest of the target critics' values."""
        return self.target_critic(observations, actions).amin(0)

    def propose(self, observations):
        """Draw N candidate actions for each of B observations (..., O).

        Returns:
            Observations (B * N, O), actions (B * N, A), and the agent's next key.
        """
        check_sampling(self.T, self.N, self.M, len(self.betas))
        size = observations.shape[-1]
        repeated = observations.reshape(-1, 1, size).expand(-1, self.N, size).reshape(-1, size)
        actions, rng = ddpm_sampler(
            lambda params, *args, **kwargs: self.score_model(*args, params=params, **kwargs),
            self.target_score_model.params,
            self.T,
            self.rng,
            self.act_dim,
            repeated,
            (self.betas, self.alphas, self.alpha_hats),
            self.ddpm_temperature,
            self.M,
            self.clip_sampler,
        )
        return repeated, actions, rng

    @jit
    def eval_actions(self, observations):
        """Return the best of N sampled actions for each observation; returns (actions, agent)."""
        repeated, actions, rng = self.propose(observations)
        rng, _ = random.split(rng)
        qs = self.compute_q(repeated, actions).reshape(-1, self.N)
        return self._pick(actions, qs.argmax(-1), observations), self.replace(rng=rng)

    sample_actions = eval_actions

    @jit
    def sample_implicit_policy(self, observations):
        """Draw one of N sampled actions by its advantage; returns (actions, agent)."""
        repeated, actions, rng = self.propose(observations)
        rng, key = random.split(rng)
        adv = self.compute_q(repeated, actions) - self.value(repeated)
        weights = IMPLICIT_WEIGHTS[self.critic_objective](
            adv.reshape(-1, self.N), self.critic_hyperparam
        )
        # One observation's choice is drawn from the key itself, as in the original.
        keys = key[None] if len(weights) == 1 else random.split(key, len(weights))
        index = vmap(lambda key, p: random.choice(key, self.N, p=p))(keys, weights)
        return self._pick(actions, index, observations), self.replace(rng=rng)

    def _pick(self, actions, index, observations):
        """Take candidate `index` (B,) of each observation."""
        actions = actions.reshape(-1, self.N, self.act_dim)
        rows = torch.arange(len(index), device=index.device)
        index = index.long().clamp(max=self.N - 1)  # negative weights may lead beyond the last one
        return actions[rows, index].reshape(*observations.shape[:-1], self.act_dim)

    # --- Creation --------------------------------------------------------------------------------

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples (only their shapes matter).

        Raises:
            ValueError: for an unknown architecture, objective or schedule; if T, N, `num_qs` or
                `decay_steps` is below 1, or M below 0.
        """
        check_objectives(config)
        if config['num_qs'] < 1:
            raise ValueError(f'num_qs={config["num_qs"]}: IDQL needs at least one critic')
        check_sampling(config['T'], config['N'], config['M'])
        betas, alphas, alpha_hats = make_schedule(config['beta_schedule'], config['T'])

        rng, actor_key, critic_key, value_key = random.split(random.key(seed), 4)
        action_dim = ex_actions.shape[-1]
        observations = ex_observations.reshape(-1, ex_observations.shape[-1])[:1]
        actions = ex_actions.reshape(-1, action_dim)[:1]

        score_def = score_network(config, action_dim)
        actor_lr = config['actor_lr']
        if config['decay_steps'] is not None:
            actor_lr = optim.cosine_decay_schedule(actor_lr, config['decay_steps'])
        # With optax's weight decay of 1e-4 on every parameter.
        tx = optim.adamw(actor_lr)
        score_inputs = (observations, actions, torch.zeros(1, 1))
        score_model = make_state(score_def, actor_key, *score_inputs, tx=tx)

        critic_base_cls = functools.partial(
            MLP, hidden_dims=config['critic_hidden_dims'], activate_final=True
        )
        critic_cls = functools.partial(StateActionValue, base_cls=critic_base_cls)
        critic_def = Ensemble(critic_cls, num=config['num_qs'])
        tx = optim.adam(config['critic_lr'])
        critic = make_state(critic_def, critic_key, observations, actions, tx=tx)

        value_def = StateValue(critic_base_cls)
        value = make_state(value_def, value_key, observations, tx=optim.adam(config['value_lr']))

        scalars = ('discount', 'tau', 'actor_tau', 'critic_hyperparam')
        temperatures = ('ddpm_temperature', 'policy_temperature')
        statics = ('critic_objective', 'actor_objective', 'T', 'N', 'M', 'clip_sampler')
        return cls(
            rng=rng,
            score_model=score_model,
            target_score_model=target_of(score_model),
            critic=critic,
            target_critic=target_of(critic),
            value=value,
            betas=betas,
            alphas=alphas,
            alpha_hats=alpha_hats,
            act_dim=action_dim,
            config=FrozenDict(config),
            **{name: torch.tensor(float(config[name])) for name in (*scalars, *temperatures)},
            **{name: config[name] for name in statics},
        )


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'ddpm_iql',  # Name in run folders and logs.
            'actor_architecture': 'mlp',  # Score network: 'mlp' or 'ln_resnet'.
            'actor_lr': 3e-4,  # Learning rate of the score model.
            'critic_lr': 3e-4,  # Learning rate of the critics.
            'value_lr': 3e-4,  # Learning rate of the value.
            'critic_hidden_dims': (256, 256),  # Widths of critics and value.
            'actor_hidden_dims': (256, 256, 256),  # Widths of the score network 'mlp'.
            'mlp_resnet_hidden_dim': 256,  # Width of the score network 'ln_resnet'.
            'actor_num_blocks': 2,  # Blocks of 'ln_resnet'.
            # Dropout of the blocks of 'ln_resnet', or None.
            'actor_dropout_rate': ml_collections.config_dict.placeholder(float),
            'actor_layer_norm': False,  # Whether the score network is normalised.
            'time_dim': 64,  # Features of the time.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target critics.
            'actor_tau': 0.001,  # Rate of the target score model.
            'num_qs': 2,  # Critics.
            'critic_objective': 'expectile',  # 'expectile', 'quantile' or 'exponential'.
            'critic_hyperparam': 0.7,  # Expectile, quantile, or factor in the exponential.
            'actor_objective': 'bc',  # Weights: 'soft_adv', 'hard_adv', 'exp_adv' or 'bc' (none).
            'policy_temperature': 3.0,  # Factor of the advantages in 'exp_adv'.
            'T': 5,  # Denoising steps.
            'beta_schedule': 'vp',  # Schedule of the noise: 'vp', 'cosine' or 'linear'.
            'N': 64,  # Candidates per observation when acting.
            'M': 0,  # Repetitions of the last denoising step.
            'clip_sampler': True,  # Whether each denoising step is clipped to [-1, 1].
            'ddpm_temperature': 1.0,  # Factor of the noise that denoising adds.
            # Updates over which actor_lr falls to 0 along a cosine, or None.
            'decay_steps': 2_000_000,
            # Without effect, as in the original: the weight decay is AdamW's 1e-4.
            'actor_weight_decay': ml_collections.config_dict.placeholder(float),
        }
    )
