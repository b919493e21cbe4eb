"""jaxrl5's networks for states: parameters under the original's names.

Source: philippe-eecs/IDQL @ 7582571, jaxrl5/networks and jaxrl5/distributions. As there, networks
are composed from classes: ``functools.partial(MLP, hidden_dims=(256, 256))``.
"""

import functools
from collections.abc import Callable, Sequence

import torch

from purerl.core import nn, optim, random, trees
from purerl.core.diffusion import DDPM, FourierFeatures, ModuleClass
from purerl.core.distributions import MultivariateNormalDiag, TanhTransformed
from purerl.core.ops import clip
from purerl.core.state import TrainState


def default_init(scale: float = 1.0) -> nn.Initializer:
    """The original's kernel initialiser, Xavier's, with `scale` times its variance."""
    return nn.variance_scaling(scale, 'fan_avg', 'uniform')


def get_weight_decay_mask(params, excluded: Sequence[str] = ('Input', 'Output')):
    """Return which parameters decay: all but biases and the layers that `excluded` names.

    Args:
        params: parameter tree.
        excluded: parts of names; whatever lies below a name with one of them does not decay.

    Returns:
        A tree of booleans, for `optim.adamw`.
    """

    def decays(path):
        return not any(name == 'bias' or any(part in name for part in excluded) for name in path)

    flags = [decays(path) for path, _ in trees.leaves_with_path(params)]
    return trees.unflatten(trees.structure(params), flags)


def make_state(
    model_def: nn.Module, key: torch.Tensor, *inputs, tx: optim.GradientTransformation
) -> TrainState:
    """Initialise a network from a key and example inputs, with a fresh optimiser state."""
    return TrainState.create(model_def, nn.init(model_def, key, *inputs), tx=tx, step=0)


def target_of(state: TrainState) -> TrainState:
    """Return a copy of a network, without optimiser."""
    return TrainState.create(state.model_def, trees.map(torch.clone, state.params), step=0)


class MLP(nn.Module):
    """Multi-layer perceptron; layer norm on the input only, dropout before each activation.

    Args:
        hidden_dims: widths of the layers.
        activations: activation function.
        activate_final: whether the last layer is activated too.
        use_layer_norm: whether to normalise the input.
        scale_final: factor of the last layer's initial variance, or None for 1.
        dropout_rate: dropout of the activated layers, or None.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int],
        activations=nn.relu,
        activate_final: bool = False,
        use_layer_norm: bool = False,
        scale_final: float | None = None,
        dropout_rate: float | None = None,
    ):
        super().__init__()
        self.activations = activations
        self.num_activated = len(hidden_dims) if activate_final else len(hidden_dims) - 1
        self.norm = self.compact(nn.LayerNorm()) if use_layer_norm else None
        scales = [1.0] * (len(hidden_dims) - 1) + [1.0 if scale_final is None else scale_final]
        self.dense = [
            self.compact(nn.Dense(size, default_init(scale)))
            for size, scale in zip(hidden_dims, scales, strict=False)
        ]
        num_dropouts = self.num_activated if _drops(dropout_rate) else 0
        self.dropouts = [self.compact(nn.Dropout(dropout_rate)) for _ in range(num_dropouts)]

    def forward(self, x, training: bool = False):
        if self.norm is not None:
            x = self.norm(x)
        for i, dense in enumerate(self.dense):
            x = dense(x)
            if i < self.num_activated:
                if self.dropouts:
                    x = self.dropouts[i](x, deterministic=not training)
                x = self.activations(x)
        return x


def _drops(rate):
    """Whether there is dropout: as in the original, not at rates below 0."""
    if rate is not None and rate > 1:
        raise ValueError(f'a dropout rate must not be above 1, as {rate} is')
    return rate is not None and rate > 0


class StateActionValue(nn.Module):
    """Critic Q(s, a): a base network on both and a scalar head."""

    def __init__(self, base_cls: ModuleClass):
        super().__init__()
        self.base = self.compact(base_cls())
        self.head = self.compact(nn.Dense(1, default_init()))

    def forward(self, observations, actions, training: bool = False):
        outputs = self.base(torch.cat([observations, actions], -1), training)
        return self.head(outputs).squeeze(-1)


class StateValue(nn.Module):
    """Value V(s): a base network and a scalar head."""

    def __init__(self, base_cls: ModuleClass):
        super().__init__()
        self.base = self.compact(base_cls())
        self.OutputVDense = nn.Dense(1, default_init())

    def forward(self, observations, training: bool = False):
        return self.OutputVDense(self.base(observations, training)).squeeze(-1)


class Ensemble(nn.Module):
    """`num` copies of a network; outputs have a leading member axis."""

    def __init__(self, net_cls: ModuleClass, num: int = 2):
        super().__init__()
        self.members = self.compact(nn.Vmap(net_cls(), num))

    def forward(self, *args):
        return self.members(*args)


def subsample_ensemble(key: torch.Tensor, params, num_sample: int | None, num_qs: int):
    """Draw `num_sample` of `num_qs` members without replacement (REDQ, Chen et al., 2021).

    Args:
        params: of an ensemble, or of a network that holds one under ``Ensemble_0``; then only that
            part is subsampled.
        num_sample: None keeps all members; the key is then unused.
    """
    if num_sample is None:
        return params
    indices = random.choice(key, num_qs, (num_sample,), replace=False).long()
    members = params.get('Ensemble_0', params)
    members = trees.map(lambda param: param.index_select(0, indices), members)
    return {**params, 'Ensemble_0': members} if 'Ensemble_0' in params else members


class Temperature(nn.Module):
    """SAC's temperature, stored as its logarithm."""

    def __init__(self, initial_temperature: float = 1.0):
        super().__init__()
        if initial_temperature <= 0:
            raise ValueError(f'init_temperature must be above 0, not {initial_temperature}')
        self.initial_temperature = initial_temperature
        self.declare('log_temp')

    def forward(self):
        log_temp = torch.tensor(self.initial_temperature).log().item()  # in float32
        return torch.exp(self.param('log_temp', nn.constant(log_temp), ()))


class TfpNormalDiag(MultivariateNormalDiag):
    """The diagonal normal of tensorflow_probability: noise is drawn with the event axis before
    the batch axes."""

    def _noise(self, seed, sample_shape):
        *batch, size = torch.broadcast_shapes(self.loc.shape, self.scale_diag.shape)
        noise = random.normal(seed, (*sample_shape, size, *batch))
        return noise.movedim(len(sample_shape), -1)


class Normal(nn.Module):
    """Gaussian policy on a base network, squashed by tanh if asked for.

    Args:
        base_cls: the base network.
        action_dim: size of the action.
        log_std_min, log_std_max: bounds of the log standard deviations.
        state_dependent_std: whether they come from a head of their own or are free parameters.
        squash_tanh: whether actions are squashed.
    """

    def __init__(
        self,
        base_cls: ModuleClass,
        action_dim: int,
        log_std_min: float = -20,
        log_std_max: float = 2,
        state_dependent_std: bool = True,
        squash_tanh: bool = False,
    ):
        super().__init__()
        self.action_dim = action_dim
        self.log_std_min = log_std_min
        self.log_std_max = log_std_max
        self.state_dependent_std = state_dependent_std
        self.squash_tanh = squash_tanh
        self.base = self.compact(base_cls())
        self.OutputDenseMean = nn.Dense(action_dim, default_init())
        if state_dependent_std:
            self.OutputDenseLogStd = nn.Dense(action_dim, default_init())
        else:
            self.declare('OutpuLogStd')  # spelt as in the original

    def forward(self, inputs, training: bool = False):
        x = self.base(inputs, training)
        means = self.OutputDenseMean(x)
        if self.state_dependent_std:
            log_stds = self.OutputDenseLogStd(x)
        else:
            log_stds = self.param('OutpuLogStd', nn.zeros, (self.action_dim,))
        log_stds = clip(log_stds, self.log_std_min, self.log_std_max)
        distribution = TfpNormalDiag(means, torch.exp(log_stds))
        return TanhTransformed(distribution) if self.squash_tanh else distribution


def TanhNormal(*args, **kwargs) -> Normal:
    """`Normal` squashed by tanh."""
    return Normal(*args, squash_tanh=True, **kwargs)


class TanhDeterministic(nn.Module):
    """Deterministic policy: tanh of a linear head."""

    def __init__(self, base_cls: ModuleClass, action_dim: int):
        super().__init__()
        self.base = self.compact(base_cls())
        self.OutputDenseMean = nn.Dense(action_dim, default_init())

    def forward(self, inputs, training: bool = False):
        return torch.tanh(self.OutputDenseMean(self.base(inputs, training)))


class MLPResNetBlock(nn.Module):
    """Residual block: dropout, layer norm, and two layers with four times the features between.

    Args:
        in_features: size of the input; Flax reads it off the input, here it decides whether the
            shortcut needs a projection.
        features: size of the output.
        act: activation function.
        dropout_rate: dropout of the input, or None.
        use_layer_norm: whether to normalise.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        act: Callable[[torch.Tensor], torch.Tensor],
        dropout_rate: float | None = None,
        use_layer_norm: bool = False,
    ):
        super().__init__()
        self.act = act
        self.dropout = self.compact(nn.Dropout(dropout_rate)) if _drops(dropout_rate) else None
        self.norm = self.compact(nn.LayerNorm()) if use_layer_norm else None
        self.expand = self.compact(nn.Dense(features * 4))
        self.contract = self.compact(nn.Dense(features))
        self.project = self.compact(nn.Dense(features)) if in_features != features else None

    def forward(self, x, training: bool = False):
        residual = x if self.project is None else self.project(x)
        if self.dropout is not None:
            x = self.dropout(x, deterministic=not training)
        if self.norm is not None:
            x = self.norm(x)
        return residual + self.contract(self.act(self.expand(x)))


class MLPResNet(nn.Module):
    """Residual network on vectors (IDQL's score network).

    Args:
        num_blocks: residual blocks.
        out_dim: size of the output.
        dropout_rate, use_layer_norm: of the blocks.
        hidden_dim: width.
        activations: activation function.
    """

    def __init__(
        self,
        num_blocks: int,
        out_dim: int,
        dropout_rate: float | None = None,
        use_layer_norm: bool = False,
        hidden_dim: int = 256,
        activations=nn.relu,
    ):
        super().__init__()
        self.activations = activations
        self.dense_in = self.compact(nn.Dense(hidden_dim, default_init()))
        self.blocks = [
            self.compact(
                MLPResNetBlock(hidden_dim, hidden_dim, activations, dropout_rate, use_layer_norm)
            )
            for _ in range(num_blocks)
        ]
        self.dense_out = self.compact(nn.Dense(out_dim, default_init()))

    def forward(self, x, training: bool = False):
        x = self.dense_in(x)
        for block in self.blocks:
            x = block(x, training)
        return self.dense_out(self.activations(x))


def score_network(config, action_dim: int) -> DDPM:
    """IDQL's score network.

    Args:
        config: of `ddpm_iql`.
        action_dim: size of the action.

    Raises:
        ValueError: for an unknown architecture.
    """
    if config['actor_architecture'] == 'mlp':
        # Kept from the original: without dropout, whatever the config says.
        reverse_encoder_cls = functools.partial(
            MLP,
            hidden_dims=(*config['actor_hidden_dims'], action_dim),
            activations=nn.mish,
            use_layer_norm=config['actor_layer_norm'],
        )
    elif config['actor_architecture'] == 'ln_resnet':
        reverse_encoder_cls = functools.partial(
            MLPResNet,
            num_blocks=config['actor_num_blocks'],
            out_dim=action_dim,
            dropout_rate=config['actor_dropout_rate'],
            use_layer_norm=config['actor_layer_norm'],
            hidden_dim=config['mlp_resnet_hidden_dim'],
            activations=nn.mish,
        )
    else:
        architecture = config['actor_architecture']
        raise ValueError(f'actor_architecture must be mlp or ln_resnet, got {architecture!r}')
    return DDPM(
        cond_encoder_cls=functools.partial(MLP, hidden_dims=(128, 128), activations=nn.mish),
        reverse_encoder_cls=reverse_encoder_cls,
        time_preprocess_cls=functools.partial(
            FourierFeatures, output_size=config['time_dim'], learnable=True
        ),
    )
