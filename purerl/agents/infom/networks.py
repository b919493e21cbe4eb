"""InFOM's networks (``utils/networks.py``): parameters under the original's names."""

from collections.abc import Sequence

import torch

from purerl.core import nn
from purerl.core.distributions import MultivariateNormalDiag, TanhTransformed
from purerl.core.loops import fori
from purerl.core.ops import clip


def default_init(scale: float = 1.0) -> nn.Initializer:
    """The original's kernel initialiser."""
    return nn.variance_scaling(scale, 'fan_avg', 'uniform')


class Identity(nn.Module):
    """Return the input. The agents do without; recordings and forks of the original have it."""

    def forward(self, x):
        return x


class MLP(nn.Module):
    """Multi-layer perceptron; layer normalisation comes after each activation.

    Args:
        hidden_dims: widths of the layers, the output's included.
        activations: activation function.
        activate_final: whether the last layer is activated (and normalised) too.
        kernel_init: initialiser of the kernels.
        layer_norm: whether to normalise.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int],
        activations=nn.gelu,
        activate_final: bool = False,
        kernel_init: nn.Initializer | None = None,
        layer_norm: bool = False,
    ):
        super().__init__()
        self.activations = activations
        self.num_activated = len(hidden_dims) if activate_final else len(hidden_dims) - 1
        kernel_init = kernel_init or default_init()
        self.dense = [self.compact(nn.Dense(size, kernel_init)) for size in hidden_dims]
        num_norms = self.num_activated if layer_norm else 0
        self.norms = [self.compact(nn.LayerNorm()) for _ in range(num_norms)]

    def forward(self, x):
        for i, dense in enumerate(self.dense):
            x = dense(x)
            if i < self.num_activated:
                x = self.activations(x)
                if self.norms:
                    x = self.norms[i](x)
            if i == len(self.dense) - 2:
                self.sow('feature', x)
        return x


def _mlp(num_ensembles: int, hidden_dims: Sequence[int], layer_norm: bool) -> nn.Module:
    mlp = MLP(hidden_dims, layer_norm=layer_norm)
    return nn.Vmap(mlp, num_ensembles) if num_ensembles > 1 else mlp


class Param(nn.Module):
    """A free tensor."""

    def __init__(self, shape: Sequence[int] = (), init_value: float = 0.0):
        super().__init__()
        self.shape = tuple(shape)
        self.init_value = init_value
        self.declare('value')

    def forward(self):
        return self.param('value', nn.constant(self.init_value), self.shape)


class LogParam(nn.Module):
    """A positive scalar, stored as its logarithm. The agents do without, as for `Identity`."""

    def __init__(self, init_value: float = 1.0):
        super().__init__()
        self.init_value = init_value
        self.declare('log_value')

    def forward(self):
        log_value = torch.tensor(self.init_value).log().item()  # in float32, as the original's
        return torch.exp(self.param('log_value', nn.constant(log_value), ()))


class Value(nn.Module):
    """Value V(s) or critic Q(s, a), or an ensemble of them.

    Args:
        hidden_dims: widths of the hidden layers.
        value_dim: size of the output; an output of size 1 loses its axis.
        layer_norm: whether to apply layer normalisation.
        num_ensembles: members; with more than one, outputs have a leading member axis.
        encoder: module that encodes observations first.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int],
        value_dim: int = 1,
        layer_norm: bool = True,
        num_ensembles: int = 1,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.value_dim = value_dim
        self.value_net = _mlp(num_ensembles, (*hidden_dims, value_dim), layer_norm)
        self.encoder = encoder

    def forward(self, observations, actions=None):
        inputs = observations if self.encoder is None else self.encoder(observations)
        if actions is not None:
            inputs = torch.cat([inputs, actions], -1)
        v = self.value_net(inputs)
        return v.squeeze(-1) if self.value_dim == 1 else v


class _GaussianHead(nn.Module):
    """What `Actor` and `GCActor` share: trunk features to a Gaussian, squashed if asked for."""

    def __init__(
        self,
        hidden_dims: Sequence[int],
        action_dim: int,
        layer_norm: bool = False,
        log_std_min: float = -5,
        log_std_max: float = 2,
        tanh_squash: bool = False,
        state_dependent_std: bool = False,
        const_std: bool = True,
        final_fc_init_scale: float = 1e-2,
    ):
        super().__init__()
        self.action_dim = action_dim
        self.log_std_min = log_std_min
        self.log_std_max = log_std_max
        self.tanh_squash = tanh_squash
        self.state_dependent_std = state_dependent_std
        self.const_std = const_std
        self.actor_net = MLP(hidden_dims, activate_final=True, layer_norm=layer_norm)
        self.mean_net = nn.Dense(action_dim, default_init(final_fc_init_scale))
        if state_dependent_std:
            self.log_std_net = nn.Dense(action_dim, default_init(final_fc_init_scale))
        elif not const_std:
            self.declare('log_stds')

    def policy(self, inputs, temperature):
        outputs = self.actor_net(inputs)
        means = self.mean_net(outputs)
        if self.state_dependent_std:
            log_stds = self.log_std_net(outputs)
        elif self.const_std:
            log_stds = torch.zeros_like(means)
        else:
            log_stds = self.param('log_stds', nn.zeros, (self.action_dim,))
        log_stds = clip(log_stds, self.log_std_min, self.log_std_max)
        distribution = MultivariateNormalDiag(means, torch.exp(log_stds) * temperature)
        return TanhTransformed(distribution) if self.tanh_squash else distribution


class Actor(_GaussianHead):
    """Gaussian policy pi(a | s).

    Args:
        hidden_dims: widths of the hidden layers.
        action_dim: size of the action.
        layer_norm: whether to apply layer normalisation.
        log_std_min, log_std_max: bounds of the log standard deviations.
        tanh_squash: whether actions are squashed by tanh.
        state_dependent_std: whether a head of its own gives the standard deviations.
        const_std: otherwise, whether they are fixed at 1 or free parameters.
        final_fc_init_scale: initialisation scale of the heads.
        encoder: module that encodes observations first.
    """

    def __init__(self, *args, encoder: nn.Module | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoder = encoder

    def forward(self, observations, temperature=1.0):
        inputs = observations if self.encoder is None else self.encoder(observations)
        return self.policy(inputs, temperature)


class GCActor(_GaussianHead):
    """Goal-conditioned Gaussian policy pi(a | s, g); arguments as for `Actor`.

    Args:
        gc_encoder: a `GCEncoder` for observations and goals.
    """

    def __init__(self, *args, gc_encoder: nn.Module | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.gc_encoder = gc_encoder

    def forward(self, observations, goals=None, goal_encoded=False, temperature=1.0):
        inputs = _encode_goals(self.gc_encoder, observations, goals, goal_encoded)
        return self.policy(torch.cat(inputs, -1), temperature)


def _encode_goals(gc_encoder, observations, goals, goal_encoded):
    if gc_encoder is not None:
        return [gc_encoder(observations, goals, goal_encoded=goal_encoded)]
    return [observations] if goals is None else [observations, goals]


class IntentionEncoder(nn.Module):
    """Transition encoder p(z | s, a): a diagonal Gaussian over latents."""

    def __init__(
        self,
        hidden_dims: Sequence[int],
        latent_dim: int,
        layer_norm: bool = False,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.trunk_net = MLP(hidden_dims, activate_final=True, layer_norm=layer_norm)
        self.mean_net = nn.Dense(latent_dim, default_init())
        self.log_std_net = nn.Dense(latent_dim, default_init())
        self.encoder = encoder

    def forward(self, observations, actions):
        if self.encoder is not None:
            observations = self.encoder(observations)
        outputs = self.trunk_net(torch.cat([observations, actions], -1))
        scale_diag = torch.exp(self.log_std_net(outputs))
        return MultivariateNormalDiag(self.mean_net(outputs), scale_diag)


class VectorField(nn.Module):
    """Flow-matching vector field over goals, conditioned on what is given.

    Args:
        vector_dim: size of the field.
        hidden_dims, layer_norm, num_ensembles: as for `Value`.
        encoder: encodes goals and observations alike.
    """

    def __init__(
        self,
        vector_dim: int,
        hidden_dims: Sequence[int],
        layer_norm: bool = True,
        num_ensembles: int = 1,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.vector_field_net = _mlp(num_ensembles, (*hidden_dims, vector_dim), layer_norm)
        self.encoder = encoder

    def forward(self, noisy_goals, times, observations=None, actions=None, latents=None):
        if self.encoder is not None:
            noisy_goals = self.encoder(noisy_goals)
            if observations is not None:
                observations = self.encoder(observations)
        inputs = [noisy_goals, times[..., None], observations, actions, latents]
        return self.vector_field_net(torch.cat([x for x in inputs if x is not None], -1))

    @staticmethod
    def condition(params: nn.Params, *conditions: torch.Tensor) -> nn.Params:
        """Fix the conditioning inputs, which stay the same while goals and times move.

        What they add to the first layer before its activation is a constant. It is computed once
        and takes the bias's place, so that many evaluations cost less than with the inputs
        themselves, and equal those up to float32 rounding.

        Args:
            params: of a field without ensemble and encoder.
            conditions: all that follows the times among the field's inputs, (..., size) each.

        Returns:
            Parameters with which the field takes goals and times alone, their leading axes
            broadcasting with those of `conditions`.
        """
        net = params['vector_field_net']
        first = net['Dense_0']
        inputs = torch.cat(conditions, -1)
        sizes = [first['kernel'].shape[0] - inputs.shape[-1], inputs.shape[-1]]
        kernel, rest = first['kernel'].split(sizes)
        first = {'kernel': kernel, 'bias': inputs @ rest + first['bias']}
        return {**params, 'vector_field_net': {**net, 'Dense_0': first}}

    def integrate(
        self, params: nn.Params, goals: torch.Tensor, num_steps: int, bounds=(), times=None
    ) -> torch.Tensor:
        """Follow the field by Euler's method; nothing differentiates through it.

        Args:
            params: with the conditions fixed by `condition`.
            goals: (..., vector_dim), where the flow starts.
            num_steps: number of steps.
            bounds: least and largest goals, (vector_dim,) each, to clip to after every step.
            times: start and end, (...) each; 0 and 1 if None.

        Returns:
            Goals (..., vector_dim).
        """
        zeros = torch.zeros_like(goals[..., 0])
        start, end = (zeros, zeros + 1) if times is None else times
        step_size = (end - start) / num_steps

        def step(i, goals, params, start, step_size, bounds):
            velocity = nn.apply(self, params, goals, i * step_size + start)
            goals = goals + velocity * step_size[..., None]
            return torch.clamp(goals, *bounds) if bounds else goals

        return fori(num_steps, step, goals, params, start, step_size, bounds)


class GCValue(nn.Module):
    """Goal-conditioned value V(s, g) or critic Q(s, a, g); arguments as for `Value`."""

    def __init__(
        self,
        hidden_dims: Sequence[int],
        value_dim: int = 1,
        layer_norm: bool = True,
        num_ensembles: int = 1,
        gc_encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.value_dim = value_dim
        self.value_net = _mlp(num_ensembles, (*hidden_dims, value_dim), layer_norm)
        self.gc_encoder = gc_encoder

    def forward(self, observations, goals=None, actions=None, goal_encoded=False):
        inputs = _encode_goals(self.gc_encoder, observations, goals, goal_encoded)
        if actions is not None:
            inputs.append(actions)
        v = self.value_net(torch.cat(inputs, -1))
        return v.squeeze(-1) if self.value_dim == 1 else v


class GCBilinearValue(nn.Module):
    """Bilinear value phi(s, a)^T psi(g) / sqrt(d) of every observation with every goal.

    Args:
        hidden_dims, layer_norm, num_ensembles: as for `Value`.
        latent_dim: d.
        value_exp: whether to exponentiate the values.
        state_encoder, goal_encoder: modules that encode observations and goals first.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int],
        latent_dim: int,
        layer_norm: bool = True,
        num_ensembles: int = 1,
        value_exp: bool = False,
        state_encoder: nn.Module | None = None,
        goal_encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.latent_dim = latent_dim
        self.value_exp = value_exp
        self.phi = _mlp(num_ensembles, (*hidden_dims, latent_dim), layer_norm)
        self.psi = _mlp(num_ensembles, (*hidden_dims, latent_dim), layer_norm)
        self.state_encoder = state_encoder
        self.goal_encoder = goal_encoder

    def forward(self, observations, goals, actions=None, info=False):
        if self.state_encoder is not None:
            observations = self.state_encoder(observations)
        if self.goal_encoder is not None:
            goals = self.goal_encoder(goals)
        if actions is not None:
            observations = torch.cat([observations, actions], -1)
        phi, psi = self.phi(observations), self.psi(goals)
        v = phi @ psi.mT / self.latent_dim**0.5  # (B, B), or (E, B, B) for an ensemble
        if self.value_exp:
            v = torch.exp(v)
        return (v, phi, psi) if info else v


class GCMetricValue(nn.Module):
    """Metric value -||phi(s) - phi(g)||_2.

    Args:
        hidden_dims, layer_norm, num_ensembles: as for `Value`.
        latent_dim: size of phi.
        encoder: encodes observations and goals alike.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int],
        latent_dim: int,
        layer_norm: bool = True,
        num_ensembles: int = 1,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.phi = _mlp(num_ensembles, (*hidden_dims, latent_dim), layer_norm)
        self.encoder = encoder

    def forward(self, observations, goals, is_phi=False, info=False):
        if is_phi:
            phi_s, phi_g = observations, goals
        else:
            if self.encoder is not None:
                observations, goals = self.encoder(observations), self.encoder(goals)
            phi_s, phi_g = self.phi(observations), self.phi(goals)
        squared_dist = ((phi_s - phi_g) ** 2).sum(-1)
        floor = torch.full_like(squared_dist, 1e-12)
        v = -torch.sqrt(torch.maximum(squared_dist, floor))
        return (v, phi_s, phi_g) if info else v
