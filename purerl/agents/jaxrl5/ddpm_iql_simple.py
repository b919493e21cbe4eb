"""Implicit diffusion Q-learning (IDQL), as trained offline.

Paper: Hansen-Estruch et al., "IDQL: Implicit Q-learning as an actor-critic method with diffusion
policies" (2023).
Original: philippe-eecs/IDQL @ 7582571, jaxrl5/agents/ddpm_iql_simple/ddpm_iql_learner.py, the
learner of its offline launcher. Against `ddpm_iql`: expectiles only, a policy that clones all
actions alike, one architecture, with swish for mish, wider features of the time, and a normalised
value.

Deviations:
- `create` takes examples and a config instead of spaces and keyword arguments, as every agent here.
- `eval_actions` is one compiled call, and takes batches of observations too; the original's stops
  at an assertion. Actions of size 1 keep their axis.
- `sample_actions` is `eval_actions`, with which the original explores; its own has no actor to run.
"""

import functools
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.jaxrl5.networks import (
    MLP,
    Ensemble,
    MLPResNet,
    StateActionValue,
    StateValue,
    make_state,
    target_of,
)
from purerl.core import nn, optim, random, trees
from purerl.core.diffusion import DDPM, FourierFeatures, check_sampling, ddpm_sampler, make_schedule
from purerl.core.jit import jit
from purerl.core.ops import expectile_loss, polyak
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
        """One step of the value towards an expectile of the target critics' minimum."""
        q = self.compute_q(batch['observations'], batch['actions'])

        def value_loss_fn(value_params):
            v = self.value(batch['observations'], params=value_params)
            value_loss = expectile_loss(q - v, q - v, self.critic_hyperparam).mean()
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

    def update_actor(self, batch):
        """One step of the score model on the data's actions, and of its target."""
        time, noise_sample, key, rng = self.draw(len(batch['actions']))
        alpha_hats = self.alpha_hats.index_select(0, time.long())[:, None]
        noisy_actions = (
            torch.sqrt(alpha_hats) * batch['actions'] + torch.sqrt(1 - alpha_hats) * noise_sample
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
            actor_loss = (eps_pred - noise_sample).square().sum(-1).mean()
            return actor_loss, {'actor_loss': actor_loss}

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
        index = self.compute_q(repeated, actions).reshape(-1, self.N).argmax(-1)
        rows = torch.arange(len(index), device=index.device)
        best = actions.reshape(-1, self.N, self.act_dim)[rows, index]
        shape = (*observations.shape[:-1], self.act_dim)
        return best.reshape(shape), self.replace(rng=rng)

    sample_actions = eval_actions

    # --- Creation --------------------------------------------------------------------------------

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples (only their shapes matter).

        Raises:
            ValueError: for an unknown schedule; if T, N, `num_qs` or `decay_steps` is below 1, or
                M below 0.
        """
        if config['num_qs'] < 1:
            raise ValueError(f'num_qs={config["num_qs"]}: IDQL needs at least one critic')
        check_sampling(config['T'], config['N'], config['M'])
        betas, alphas, alpha_hats = make_schedule(config['beta_schedule'], config['T'])

        rng, actor_key, critic_key, value_key = random.split(random.key(seed), 4)
        action_dim = ex_actions.shape[-1]
        observations = ex_observations.reshape(-1, ex_observations.shape[-1])[:1]
        actions = ex_actions.reshape(-1, action_dim)[:1]

        score_def = _score_network(config, action_dim)
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

        value_base_cls = functools.partial(
            critic_base_cls, use_layer_norm=config['value_layer_norm']
        )
        value_def = StateValue(value_base_cls)
        value = make_state(value_def, value_key, observations, tx=optim.adam(config['value_lr']))

        rates = ('discount', 'tau', 'actor_tau', 'critic_hyperparam')
        temperatures = ('ddpm_temperature', 'policy_temperature')
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
            **{name: torch.tensor(float(config[name])) for name in (*rates, *temperatures)},
            **{name: config[name] for name in ('T', 'N', 'M', 'clip_sampler')},
        )


def _score_network(config, action_dim):
    cond_dims = (config['time_dim'] * 2, config['time_dim'] * 2)
    return DDPM(
        cond_encoder_cls=functools.partial(MLP, hidden_dims=cond_dims, activations=nn.swish),
        reverse_encoder_cls=functools.partial(
            MLPResNet,
            num_blocks=config['actor_num_blocks'],
            out_dim=action_dim,
            dropout_rate=config['actor_dropout_rate'],
            use_layer_norm=config['actor_layer_norm'],
            hidden_dim=config['mlp_resnet_hidden_dim'],
            activations=nn.swish,
        ),
        time_preprocess_cls=functools.partial(
            FourierFeatures, output_size=config['time_dim'], learnable=True
        ),
    )


def get_config():
    """Return the original's defaults."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'ddpm_iql_simple',  # Name in run folders and logs.
            'actor_lr': 3e-4,  # Learning rate of the score model.
            'critic_lr': 3e-4,  # Learning rate of the critics.
            'value_lr': 3e-4,  # Learning rate of the value.
            'critic_hidden_dims': (256, 256),  # Widths of critics and value.
            'value_layer_norm': True,  # Whether the value's input is normalised.
            'mlp_resnet_hidden_dim': 256,  # Width of the score network.
            'actor_num_blocks': 3,  # Its residual blocks.
            # Their dropout, or None.
            'actor_dropout_rate': ml_collections.config_dict.placeholder(float),
            'actor_layer_norm': True,  # Whether they are normalised.
            'time_dim': 128,  # Features of the time.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target critics.
            'actor_tau': 0.001,  # Rate of the target score model.
            'num_qs': 2,  # Critics.
            'critic_hyperparam': 0.7,  # Expectile of the value regression.
            'policy_temperature': 3.0,  # Without effect, as in the original.
            'T': 5,  # Denoising steps.
            'beta_schedule': 'vp',  # Schedule of the noise: 'vp', 'cosine' or 'linear'.
            'N': 64,  # Candidates per observation when acting.
            'M': 0,  # Repetitions of the last denoising step.
            'clip_sampler': True,  # Whether each denoising step is clipped to [-1, 1].
            'ddpm_temperature': 1.0,  # Factor of the noise that denoising adds.
            # Updates over which actor_lr falls to 0 along a cosine, or None.
            'decay_steps': 3_000_000,
        }
    )
