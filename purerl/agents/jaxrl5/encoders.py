"""jaxrl5's networks for images: encoders, and the multiplexer over cameras.

Source: philippe-eecs/IDQL @ 7582571, jaxrl5/networks/encoders and
jaxrl5/networks/pixel_multiplexer.py. `purerl.agents.jaxrl5.images` says what images are.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from purerl.agents.jaxrl5.images import check_observations, seen_cameras
from purerl.agents.jaxrl5.networks import ModuleClass, default_init
from purerl.core import nn

ENCODERS = ('d4pg', 'resnet')
_WIDE = 224  # images of this width get ImageNet's stem


# --- Encoders -------------------------------------------------------------------------------------


def _flattened(x):
    """Join height, width and channels, of images in any memory layout.

    A copy, because convolutions choose their layout: what could be a view in a compiled loop's body
    need not be one where the loop runs for several seeds at once.
    """
    return x.clone(memory_format=torch.contiguous_format).reshape(*x.shape[:-3], -1)


class D4PGEncoder(nn.Module):
    """Convolutions with ReLU, flattened at the end.

    Args:
        features, filters, strides: of each layer: channels, window and stride. As in the original,
            layers without a window are left out, and windows beyond the last layer.
        padding: ``VALID`` or ``SAME``.

    Raises:
        ValueError: if there are not as many strides as layers, or a window or stride is 0.
    """

    def __init__(
        self,
        features: Sequence[int] = (32, 32, 32, 32),
        filters: Sequence[int] = (2, 1, 1, 1),
        strides: Sequence[int] = (2, 1, 1, 1),
        padding: str = 'VALID',
    ):
        super().__init__()
        if len(features) != len(strides):
            raise ValueError(
                f'cnn_features={tuple(features)} and cnn_strides={tuple(strides)} must have one '
                'entry per layer each'
            )
        for name, sizes in (('cnn_filters', filters), ('cnn_strides', strides)):
            if min(sizes, default=1) < 1:
                raise ValueError(f'{name} must be at least 1 each, not {tuple(sizes)}')
        if padding not in ('VALID', 'SAME'):
            raise ValueError(f'cnn_padding must be VALID or SAME, not {padding!r}')
        self.layers = [
            self.compact(nn.Conv(size, window, stride, padding, default_init()))
            for size, window, stride in zip(features, filters, strides, strict=False)
        ]

    def forward(self, x):
        for conv in self.layers:
            x = nn.relu(conv(x))
        return _flattened(x)


class MyGroupNorm(nn.GroupNorm):
    """Group normalisation under the name that its parameters have in the original."""


def _group_norm():
    return MyGroupNorm(num_groups=4, epsilon=1e-5)


class ResNetV2Block(nn.Module):
    """Residual block of two 3x3 convolutions, each after a norm and an activation.

    Args:
        in_features: channels of the input; Flax reads them off it, here they decide whether the
            shortcut needs a projection.
        filters: channels of the output.
        act: activation function.
        strides: of the first convolution.
    """

    def __init__(
        self,
        in_features: int,
        filters: int,
        act: Callable[[torch.Tensor], torch.Tensor] = nn.relu,
        strides: Sequence[int] = (1, 1),
    ):
        super().__init__()
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=default_init())
        self.act = act
        self.norm_1 = self.compact(_group_norm())
        self.conv_1 = self.compact(conv(filters, (3, 3), strides))
        self.norm_2 = self.compact(_group_norm())
        self.conv_2 = self.compact(conv(filters, (3, 3)))
        projects = in_features != filters or tuple(strides) != (1, 1)
        self.project = self.compact(conv(filters, (1, 1), strides)) if projects else None

    def forward(self, x):
        y = self.conv_1(self.act(self.norm_1(x)))
        y = self.conv_2(self.act(self.norm_2(y)))
        return y + (x if self.project is None else self.project(x))


class _Stem(nn.Module):
    """The first convolution: 7x7 with stride 2 and pooling for images 224 wide, else 3x3."""

    flax_name = 'Conv'

    def __init__(self, features: int):
        super().__init__()
        self.features = features
        self.declare('kernel')

    def forward(self, x):
        wide = x.shape[-2] == _WIDE
        size, stride = (7, 2) if wide else (3, 1)
        kernel = self.param('kernel', default_init(), (size, size, x.shape[-1], self.features))
        images = x.reshape(-1, *x.shape[-3:]).permute(0, 3, 1, 2)  # (B, C, H, W)
        out = F.conv2d(images, kernel.permute(3, 2, 0, 1), stride=stride, padding=size // 2)
        out = out.permute(0, 2, 3, 1)
        out = out.reshape(*x.shape[:-3], *out.shape[1:])
        return nn.max_pool(out, 3, 2, padding='SAME') if wide else out


class ResNetV2Encoder(nn.Module):
    """ResNet, second version (He et al., 2016), with group norm, flattened at the end.

    Args:
        stage_sizes: blocks in each stage; channels double from stage to stage, and all stages but
            the first halve the image.
        num_filters: channels of the first stage.
        act: activation function.
    """

    def __init__(
        self,
        stage_sizes: Sequence[int],
        num_filters: int = 64,
        act: Callable[[torch.Tensor], torch.Tensor] = nn.relu,
    ):
        super().__init__()
        self.act = act
        self.stem = self.compact(_Stem(num_filters))
        self.blocks = []
        in_features = num_filters
        for i, block_size in enumerate(stage_sizes):
            filters = num_filters * 2**i
            for j in range(block_size):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                block = ResNetV2Block(in_features, filters, act, strides)
                self.blocks.append(self.compact(block))
                in_features = filters
        self.norm = self.compact(_group_norm())

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.act(self.norm(x))
        return _flattened(x)


def encoder_class(config: Mapping) -> ModuleClass:
    """Return what makes the encoder that an agent's config asks for.

    Args:
        config: with `encoder`, and for ``d4pg`` `cnn_features`, `cnn_filters`, `cnn_strides` and
            `cnn_padding`.

    Raises:
        ValueError: for an unknown encoder, or layers that do not fit together.
    """
    if config['encoder'] == 'resnet':
        return functools.partial(ResNetV2Encoder, stage_sizes=(2, 2, 2, 2))
    if config['encoder'] != 'd4pg':
        raise ValueError(f'encoder must be one of {", ".join(ENCODERS)}, not {config["encoder"]!r}')
    encoder_cls = functools.partial(
        D4PGEncoder,
        features=tuple(config['cnn_features']),
        filters=tuple(config['cnn_filters']),
        strides=tuple(config['cnn_strides']),
        padding=config['cnn_padding'],
    )
    encoder_cls()  # finds what is wrong with the arguments
    return encoder_cls


# --- Several inputs -------------------------------------------------------------------------------


class PixelMultiplexer(nn.Module):
    """A network on the concatenated latents of all cameras and of the state.

    Each camera has an encoder, each latent is tanh of a normalised linear map.

    Args:
        encoder_cls: makes an encoder.
        network_cls: makes the network on the latents.
        latent_dim: size of each latent.
        stop_gradient: whether the encoders get no gradient.
        pixel_keys: entries of the observations that are cameras' images.
        depth_keys: entries with the cameras' depths, joined to their channels; none or one each.
            Where there are fewer, the other cameras are not seen, as in the original.
        has_state: whether the observations have a `state`; Flax reads it off them.
    """

    def __init__(
        self,
        encoder_cls: ModuleClass,
        network_cls: ModuleClass,
        latent_dim: int,
        stop_gradient: bool = False,
        pixel_keys: Sequence[str] = ('pixels',),
        depth_keys: Sequence[str] = (),
        has_state: bool = False,
    ):
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f'latent_dim must be at least 1, not {latent_dim}')
        self.stop_gradient = stop_gradient
        self.pixel_keys, self.depth_keys = tuple(pixel_keys), tuple(depth_keys)
        self.cameras = seen_cameras(self.pixel_keys, self.depth_keys)
        self.encoders = []
        for i in range(len(self.cameras)):
            self.add_module(f'encoder_{i}', encoder_cls())
            self.encoders.append(getattr(self, f'encoder_{i}'))
        self.latents = [
            (self.compact(nn.Dense(latent_dim, default_init())), self.compact(nn.LayerNorm()))
            for _ in range(len(self.cameras) + has_state)
        ]
        self.has_state = has_state
        self.network = self.compact(network_cls())

    def forward(self, observations, actions=None, training: bool = False):
        check_observations(observations, self.pixel_keys, self.depth_keys, self.has_state)
        inputs = [
            self._encode(observations, i, key, depth_key)
            for i, (key, depth_key) in enumerate(self.cameras)
        ]
        if self.has_state:
            inputs.append(observations['state'])
        latents = [
            torch.tanh(norm(dense(x)))
            for x, (dense, norm) in zip(inputs, self.latents, strict=True)
        ]
        x = torch.cat(latents, -1)
        if actions is None:
            return self.network(x, training)
        return self.network(x, actions, training)

    def _encode(self, observations, i, key, depth_key):
        x = observations[key].float() / 255.0
        if depth_key is not None:
            x = torch.cat([x, observations[depth_key]], -2)
        x = self.encoders[i](x.flatten(-2))  # (..., H, W, C * num_stack)
        # The policy's gradients do not move the convolutions.
        return x.detach() if self.stop_gradient else x
