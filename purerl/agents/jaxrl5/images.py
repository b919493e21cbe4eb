"""What jaxrl5's agents do to images before their networks see them: checks, unpacking, shifts.

Source: philippe-eecs/IDQL @ 7582571, jaxrl5/agents/drq.

Observations are dicts: images of cameras, uint8 (..., H, W, C, num_stack), depth images, float32
(..., H, W, 1, num_stack), and optionally ``state``, float32 (..., D). The last axis is always that
of the stacked frames, the newest last, even if there is one frame only.
"""

import functools
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch

from purerl.core import random
from purerl.core.trees import FrozenDict

CROP_PADDING = 4  # pixels, of DrQ's random shifts
_LAYOUT = '(..., height, width, channels, num_stack)'
_MOST_COLOURS = 4


def cameras(pixel_keys: Sequence[str], depth_keys: Sequence[str] = ()) -> Iterator:
    """Iterate over the names of each camera's image and depth image, None where it has none."""
    return itertools.zip_longest(pixel_keys, depth_keys)


def seen_cameras(pixel_keys: Sequence[str], depth_keys: Sequence[str] = ()) -> list[tuple]:
    """Return the same of those cameras that networks see.

    As in the original these are all of them, or those that have a depth image if any has.
    """
    return [pair for pair in cameras(pixel_keys, depth_keys) if not depth_keys or pair[1]]


# --- Checks ---------------------------------------------------------------------------------------


def check_observations(
    observations: Mapping,
    pixel_keys: Sequence[str],
    depth_keys: Sequence[str] = (),
    has_state: bool = False,
) -> None:
    """Refuse observations that are not images as the networks take them; only shapes are read.

    Args:
        observations: dict of tensors.
        pixel_keys, depth_keys: see `PixelMultiplexer`.
        has_state: whether there has to be a `state`.

    Raises:
        ValueError: for the first entry that is missing, or of a wrong dtype or layout.
    """
    if not isinstance(observations, Mapping):
        raise ValueError(
            f'observations must be a dict with the images {", ".join(pixel_keys)}, not one array'
        )
    if not pixel_keys:
        raise ValueError('pixel_keys is empty: there is no camera to see with')
    if len(depth_keys) > len(pixel_keys):
        raise ValueError(
            f'depth_keys={tuple(depth_keys)} names more depth images than there are cameras, '
            f'pixel_keys={tuple(pixel_keys)}'
        )
    expected = (*pixel_keys, *depth_keys, *(['state'] if has_state else []))
    for key in expected:
        if key not in observations:
            have = ', '.join(sorted(observations)) or 'nothing'
            raise ValueError(f'observations have no {key!r}; they have {have}')
    for key, depth_key in cameras(pixel_keys, depth_keys):
        images = observations[key]
        if images.dtype != torch.uint8 or images.ndim < 4:
            raise ValueError(f'{key!r} must be uint8 images {_LAYOUT}, not {_describe(images)}')
        if depth_key is not None:
            _check_depth(depth_key, observations[depth_key], key, images)


def _check_depth(depth_key, depths, key, images):
    shape = tuple(images.shape)
    fits = depths.ndim == images.ndim and _without_channels(depths) == _without_channels(images)
    if depths.dtype != torch.float32 or not fits:
        raise ValueError(
            f'{depth_key!r} must be float32 images of the size and num_stack of {key!r}, '
            f'{(*shape[:-2], 1, shape[-1])}, not {_describe(depths)}'
        )


def _without_channels(images):
    return (*images.shape[:-2], images.shape[-1])


def _describe(array):
    return f'{str(array.dtype).removeprefix("torch.")} {tuple(array.shape)}'


def check_examples(observations: Mapping, config: Mapping) -> FrozenDict:
    """Refuse example observations that an agent with this config cannot see.

    Returns:
        Each camera's shape (H, W, C, num_stack), as `check_shapes` takes them.

    Raises:
        ValueError: besides what `check_observations` refuses, for images that seem to have their
            axes in another order, or are smaller than the encoder's windows.
    """
    pixel_keys, depth_keys = tuple(config['pixel_keys']), tuple(config['depth_keys'])
    if isinstance(observations, Mapping):
        observations = {key: torch.as_tensor(image) for key, image in observations.items()}
    check_observations(observations, pixel_keys, depth_keys)
    _warn_of_unused(pixel_keys, depth_keys, config)
    for key in pixel_keys:
        height, width, channels = observations[key].shape[-4:-1]
        # No camera has so many: the channels, the frames or a batch stand before the height.
        if channels > _MOST_COLOURS and channels >= min(height, width):
            raise ValueError(
                f'{key!r} must be images {_LAYOUT}, not {_describe(observations[key])}: those '
                f'would be images of {height}x{width} with {channels} channels'
            )
        if config['encoder'] == 'd4pg' and config['cnn_padding'] != 'SAME':
            _check_windows(key, height, width, config)
    return FrozenDict({key: tuple(observations[key].shape[-4:]) for key in pixel_keys})


def _warn_of_unused(pixel_keys, depth_keys, config):
    """Say so where the original drops cameras or layers without a word."""
    seen = {key for key, _ in seen_cameras(pixel_keys, depth_keys)}
    unseen = [key for key in pixel_keys if key not in seen]
    if unseen:
        warnings.warn(
            f'{", ".join(unseen)} will not be seen: depth_keys={depth_keys} names no depth image '
            'for them',
            stacklevel=2,
        )
    windows, layers = len(config['cnn_filters']), len(config['cnn_features'])
    if config['encoder'] == 'd4pg' and windows < layers:
        warnings.warn(
            f'the encoder has {windows} layers, not {layers}: cnn_filters has no window for the '
            'others',
            stacklevel=2,
        )


def _check_windows(key, height, width, config):
    size = min(height, width)
    for window, stride in zip(config['cnn_filters'], config['cnn_strides'], strict=False):
        if size < window:
            raise ValueError(
                f'{key!r} has images of {height}x{width}, which are too small for '
                f'cnn_filters={tuple(config["cnn_filters"])} with '
                f'cnn_strides={tuple(config["cnn_strides"])}'
            )
        size = (size - window) // stride + 1


def check_shapes(
    observations: Mapping, shapes: Mapping, depth_keys: Sequence[str] = (), is_batch: bool = False
) -> None:
    """Refuse images of other shapes than the agent was made for.

    Args:
        observations: dict of tensors.
        shapes: each camera's, from `check_examples`.
        depth_keys: see `PixelMultiplexer`.
        is_batch: whether there has to be one leading axis; any number otherwise.

    Raises:
        ValueError: for the first such camera, besides what `check_observations` refuses.
    """
    check_observations(observations, tuple(shapes), depth_keys)
    for key, expected in shapes.items():
        images = observations[key]
        if tuple(images.shape[-4:]) != expected:
            raise ValueError(
                f'{key!r} must be images {_LAYOUT} of the shape that the agent was made for, '
                f'(..., {", ".join(map(str, expected))}), not {_describe(images)}'
            )
        if is_batch and images.ndim != 5:
            raise ValueError(f'{key!r} must be a batch of images, not {_describe(images)}')


# --- Augmentation ---------------------------------------------------------------------------------


def random_crop(
    key: torch.Tensor, images: torch.Tensor, padding: int = CROP_PADDING
) -> torch.Tensor:
    """Shift images by up to `padding` pixels, repeating their edges (DrQ; Yarats et al., 2021).

    Args:
        key: one of the batch's; each image is shifted by a key of its own.
        images: (B, H, W, C, num_stack), any dtype; all frames of a stack are shifted alike.
        padding: pixels.

    Returns:
        Images of the same shape and dtype.
    """
    offsets = crop_offsets(random.split(key, len(images)), padding)
    return crop(images, offsets, padding)


def crop_offsets(keys: torch.Tensor, padding: int = CROP_PADDING) -> torch.Tensor:
    """Draw the first row and column of each image's crop from its padded copy.

    Args:
        keys: (B, 2).
        padding: pixels on each side.

    Returns:
        Int64 (B, 2), from 0 to 2 * padding.
    """
    draw = functools.partial(random.randint, shape=(2,), minval=0, maxval=2 * padding + 1)
    return torch.vmap(lambda key: draw(key, dtype=torch.int64))(keys)


def crop(images: torch.Tensor, offsets: torch.Tensor, padding: int) -> torch.Tensor:
    """Crop images from copies padded with their edge pixels.

    Args:
        images: (B, H, W, ...), any dtype.
        offsets: (B, 2), as `crop_offsets` draws them.
        padding: pixels on each side.

    Returns:
        Images of the same shape and dtype.
    """
    batch, height, width = images.shape[:3]
    shift = offsets.to(images.device) - padding
    # Reading beyond the edge is reading the edge: no padded copy is needed.
    rows = (torch.arange(height, device=images.device) + shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + shift[:, 1:]).clamp(0, width - 1)
    which = torch.arange(batch, device=images.device)[:, None, None]
    return images[which, rows[:, :, None], columns[:, None, :]]


def augment(key: torch.Tensor, observations: Mapping, pixel_keys, depth_keys=()) -> dict:
    """Shift the images of all cameras, each camera's depth as its image; leave the rest.

    Args:
        key: random key.
        observations: dict of batches (B, ...).
        pixel_keys, depth_keys: see `PixelMultiplexer`.
    """
    shifted = dict(observations)
    rng = key
    for pixel_key, depth_key in cameras(pixel_keys, depth_keys):
        camera_key, rng = random.split(rng)
        for name in (pixel_key, depth_key):
            if name is not None:
                shifted[name] = random_crop(camera_key, observations[name])
    return shifted


def unpack(batch: Mapping, keys: Sequence[str]) -> dict:
    """Split images that hold the next observations' newest frames too.

    Args:
        batch: its `observations` hold images (B, H, W, C, num_stack + 1) under those of `keys`
            that `next_observations` lack; entries that both have are left as they are.
        keys: names of cameras and depths.

    Returns:
        A batch with images (B, H, W, C, num_stack) in observations and next_observations.
    """
    observations = dict(batch['observations'])
    following = dict(batch.get('next_observations', {}))
    for key in keys:
        if key in observations and key not in following:
            packed = observations[key]
            observations[key], following[key] = packed[..., :-1], packed[..., 1:]
    return {**batch, 'observations': observations, 'next_observations': following}
