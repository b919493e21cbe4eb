"""InFOM's encoders (``utils/encoders.py``): IMPALA, ResNet, and goal-conditioned combinations.

Images are uint8 NHWC, or one HWC image.
"""

import functools
from collections.abc import Callable, Sequence

import torch

from purerl.agents.infom.networks import MLP
from purerl.core import nn, random


class ResnetStack(nn.Module):
    """A convolution, a pooling that halves the image, and residual blocks (IMPALA)."""

    def __init__(self, num_features: int, num_blocks: int, max_pooling: bool = True):
        super().__init__()
        self.max_pooling = max_pooling

        def conv():
            return self.compact(nn.Conv(num_features, 3, kernel_init=nn.xavier_uniform()))

        self.conv_in = conv()
        self.blocks = [(conv(), conv()) for _ in range(num_blocks)]

    def forward(self, x):
        x = self.conv_in(x)
        if self.max_pooling:
            x = nn.max_pool(x, 3, 2, padding='SAME')
        for first, second in self.blocks:
            x = x + second(nn.relu(first(nn.relu(x))))
        return x


class ImpalaEncoder(nn.Module):
    """IMPALA's residual convolutional encoder (Espeholt et al., 2018).

    Args:
        width: factor on the number of features.
        stack_sizes: features of each stack.
        num_blocks: residual blocks in each stack.
        dropout_rate: dropout after each stack, or None.
        mlp_hidden_dims: widths of the layers on the flattened features.
        layer_norm: whether to apply layer normalisation.
    """

    def __init__(
        self,
        width: int = 1,
        stack_sizes: Sequence[int] = (16, 32, 32),
        num_blocks: int = 2,
        dropout_rate: float | None = None,
        mlp_hidden_dims: Sequence[int] = (512,),
        layer_norm: bool = False,
    ):
        super().__init__()
        self.stack_blocks = []
        for i, size in enumerate(stack_sizes):
            stack = ResnetStack(size * width, num_blocks)
            self.add_module(f'stack_blocks_{i}', stack)
            self.stack_blocks.append(stack)
        self.dropout = None if dropout_rate is None else nn.Dropout(dropout_rate)
        self.norm = self.compact(nn.LayerNorm()) if layer_norm else None
        self.mlp = self.compact(MLP(mlp_hidden_dims, activate_final=True, layer_norm=layer_norm))

    def forward(self, x, train=True):
        x = x.float() / 255.0
        for stack in self.stack_blocks:
            x = stack(x)
            if self.dropout is not None:
                x = self.dropout(x, deterministic=not train)
        x = nn.relu(x)
        if self.norm is not None:
            x = self.norm(x)
        return self.mlp(x.reshape(*x.shape[:-3], -1))


class ResNetBlock(nn.Module):
    """Residual block of two 3x3 convolutions (He et al., 2016).

    Args:
        in_features: channels of the input; Flax reads them off it, here they decide whether
            the shortcut needs a projection.
        filters: channels of the output.
        conv, norm: factories of the layers.
        act: activation.
        strides: of the first convolution.
    """

    def __init__(
        self,
        in_features: int,
        filters: int,
        conv: Callable[..., nn.Module],
        norm: Callable[[], nn.Module],
        act: Callable[[torch.Tensor], torch.Tensor],
        strides: Sequence[int] = (1, 1),
    ):
        super().__init__()
        self.act = act
        self.conv_1 = self.compact(conv(filters, (3, 3), strides))
        self.norm_1 = self.compact(norm())
        self.conv_2 = self.compact(conv(filters, (3, 3)))
        self.norm_2 = self.compact(norm())
        self.projects = in_features != filters or tuple(strides) != (1, 1)
        if self.projects:
            self.conv_proj = conv(filters, (1, 1), strides)
            self.norm_proj = norm()

    def forward(self, x):
        y = self.act(self.norm_1(self.conv_1(x)))
        y = self.norm_2(self.conv_2(y))
        residual = self.norm_proj(self.conv_proj(x)) if self.projects else x
        return self.act(residual + y)


class AddSpatialCoordinates(nn.Module):
    """Append the pixels' coordinates, from -1 to 1, as two channels."""

    def forward(self, x):
        height, width = x.shape[-3:-1]
        axes = [
            torch.arange(size, device=x.device) / (size - 1) * 2 - 1 for size in (height, width)
        ]
        # The original's meshgrid, with rows and columns swapped, is transposed afterwards.
        grid = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
        return torch.cat([x, grid.expand(*x.shape[:-1], 2)], -1)


class ResNetEncoder(nn.Module):
    """ResNet (first version) with a 7x7 stem and global average pooling.

    Args:
        stage_sizes: blocks in each stage; features double from stage to stage.
        block_cls: the block.
        num_filters: features of the first stage.
        act: name of the activation in ``purerl.core.nn``.
        norm: ``group`` or ``layer``.
        add_spatial_coordinates: whether to append the pixels' coordinates.
    """

    def __init__(
        self,
        stage_sizes: Sequence[int],
        block_cls: Callable[..., nn.Module] = ResNetBlock,
        num_filters: int = 64,
        act: str = 'swish',
        norm: str = 'group',
        add_spatial_coordinates: bool = True,
        num_spatial_blocks: int = 8,  # the original takes it and does not use it
    ):
        super().__init__()
        norms = {
            'group': functools.partial(nn.GroupNorm, num_groups=4, epsilon=1e-5),
            'layer': functools.partial(nn.LayerNorm, epsilon=1e-5),
        }
        if norm not in norms:
            raise ValueError(f'ResNetEncoder: norm must be group or layer, got {norm!r}')
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=nn.kaiming_normal())
        self.act = getattr(nn, act)
        self.coordinates = AddSpatialCoordinates() if add_spatial_coordinates else None
        self.conv_init = conv(num_filters, (7, 7), (2, 2), padding=((3, 3), (3, 3)))
        self.norm_init = norms[norm]()
        self.blocks = []
        in_features = num_filters
        for i, block_size in enumerate(stage_sizes):
            for j in range(block_size):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                filters = num_filters * 2**i
                block = block_cls(in_features, filters, conv, norms[norm], self.act, strides)
                self.blocks.append(self.compact(block))
                in_features = filters

    def forward(self, observations, train=True):
        x = observations.float() / 127.5 - 1.0
        if self.coordinates is not None:
            x = self.coordinates(x)
        x = self.act(self.norm_init(self.conv_init(x)))
        x = nn.max_pool(x, 3, 2, padding='SAME')
        for block in self.blocks:
            x = block(x)
        return x.mean((-3, -2))


class GCEncoder(nn.Module):
    """Encode observations and goals: separately, together, or both, as encoders are given.

    Args:
        state_encoder: for observations.
        goal_encoder: for goals.
        concat_encoder: for observations joined with goals.
    """

    def __init__(
        self,
        state_encoder: nn.Module | None = None,
        goal_encoder: nn.Module | None = None,
        concat_encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.state_encoder = state_encoder
        self.goal_encoder = goal_encoder
        self.concat_encoder = concat_encoder

    def forward(self, observations, goals=None, goal_encoded=False):
        """Return the encodings, concatenated.

        Args:
            goal_encoded: whether `goals` are encodings already; then there must not be both a
                goal encoder and a joint one.
        """
        reps = []
        if self.state_encoder is not None:
            reps.append(self.state_encoder(observations))
        if goals is not None and goal_encoded:
            if self.goal_encoder is not None and self.concat_encoder is not None:
                raise ValueError('encoded goals go with a goal encoder or a joint one, not both')
            reps.append(goals)
        elif goals is not None:
            if self.goal_encoder is not None:
                reps.append(self.goal_encoder(goals))
            if self.concat_encoder is not None:
                reps.append(self.concat_encoder(torch.cat([observations, goals], -1)))
        return torch.cat(reps, -1)


encoder_modules: dict[str, Callable[..., nn.Module]] = {
    'mlp': functools.partial(MLP, hidden_dims=(512, 512, 512, 512), layer_norm=True),
    'impala': ImpalaEncoder,
    'impala_debug': functools.partial(ImpalaEncoder, num_blocks=1, stack_sizes=(4, 4)),
    'impala_small': functools.partial(ImpalaEncoder, num_blocks=1),
    'impala_large': functools.partial(
        ImpalaEncoder, stack_sizes=(64, 128, 128), mlp_hidden_dims=(1024,)
    ),
    'resnet_34': functools.partial(ResNetEncoder, stage_sizes=(3, 4, 6, 3)),
}


def make_encoder(name: str) -> nn.Module:
    """Make a registered encoder.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in encoder_modules:
        raise ValueError(f'unknown encoder {name!r}; known: {", ".join(sorted(encoder_modules))}')
    return encoder_modules[name]()


def encoding_dim(name: str | None, observations) -> int:
    """Return the size of the encodings that a registered encoder makes of observations.

    Args:
        name: the encoder; None for observations that are used as they are.
        observations: an example batch (B, ...); only its shape matters.

    Raises:
        ValueError: if the encoder is unknown, or these are not observations for it.
    """
    shape = tuple(observations.shape[1:])
    if name is None:
        if len(shape) != 1:
            raise ValueError(f'observations of shape {shape} need an encoder, impala_small for one')
        return shape[0]
    encoder = make_encoder(name)
    rank, kind = (1, 'vectors') if isinstance(encoder, MLP) else (3, 'images')
    if len(shape) != rank:
        raise ValueError(f'the encoder {name} takes {kind}, not observations of shape {shape}')
    params = nn.init(encoder, random.key(0), observations)
    return nn.apply(encoder, params, torch.zeros(observations.shape)).shape[-1]
