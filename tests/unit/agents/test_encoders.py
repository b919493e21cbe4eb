"""jaxrl5's encoders, the multiplexer over cameras, and the augmentation of images."""

import functools

import numpy as np
import torch

from purerl.agents.jaxrl5 import encoders, images, networks
from purerl.core import nn, random, trees

STACK = 2
CAMERAS = {'pixels': (9, 8, 3, STACK), 'wrist': (8, 8, 1, STACK)}
ALL = {'pixel_keys': tuple(CAMERAS), 'depth_keys': ('depth', 'wrist_depth')}


def draw(*shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return torch.from_numpy(pixels)


# --- Encoders -------------------------------------------------------------------------------------


def test_the_resnets_structure():
    encoder = encoders.ResNetV2Encoder((2, 2, 2, 2))
    params = nn.init(encoder, random.key(0), torch.zeros(1, 9, 9, 6))
    assert sorted(params) == ['Conv_0', 'MyGroupNorm_0', *(f'ResNetV2Block_{i}' for i in range(8))]
    with_shortcut = [i for i in range(8) if 'Conv_2' in params[f'ResNetV2Block_{i}']]
    assert with_shortcut == [2, 4, 6]
    assert params['Conv_0']['kernel'].shape == (3, 3, 6, 64)
    assert nn.apply(encoder, params, torch.zeros(2, 9, 9, 6)).shape == (2, 2 * 2 * 512)


def test_the_latents_normalisation_and_the_cameras_order():
    module = encoders.PixelMultiplexer(
        functools.partial(encoders.D4PGEncoder, (2,), (2,), (1,)),
        functools.partial(networks.StateValue, functools.partial(networks.MLP, (4,))),
        3,
        pixel_keys=('pixels', 'wrist'),
        has_state=True,
    )
    observations = {key: draw(1, *shape) for key, shape in CAMERAS.items()}
    observations['state'] = torch.zeros(1, 3)
    params = nn.init(module, random.key(0), observations)
    assert sorted(params) == [
        'Dense_0', 'Dense_1', 'Dense_2', 'LayerNorm_0', 'LayerNorm_1', 'LayerNorm_2',
        'StateValue_0', 'encoder_0', 'encoder_1',
    ]  # fmt: skip
    assert params['encoder_0']['Conv_0']['kernel'].shape == (2, 2, 3 * STACK, 2)
    assert params['encoder_1']['Conv_0']['kernel'].shape == (2, 2, 1 * STACK, 2)
    assert params['Dense_2']['kernel'].shape == (3, 3)
    assert params['StateValue_0']['MLP_0']['Dense_0']['kernel'].shape == (9, 4)


def test_stopped_gradients_leave_the_encoder_alone():
    policy = functools.partial(
        networks.TanhDeterministic, functools.partial(networks.MLP, (4,), activate_final=True), 2
    )
    encoder_cls = functools.partial(encoders.D4PGEncoder, (2,), (2,), (1,))
    observations = {'pixels': draw(3, 5, 5, 3, 2)}
    for stop in (True, False):
        module = encoders.PixelMultiplexer(encoder_cls, policy, 3, stop)
        params = nn.init(module, random.key(0), observations)
        grads = torch.func.grad(lambda p, m=module: nn.apply(m, p, observations).sum())(params)
        moved = {name: any(g.any() for g in trees.leaves(grads[name])) for name in grads}
        assert moved == {'Dense_0': True, 'LayerNorm_0': True, 'TanhDeterministic_0': True,
                         'encoder_0': not stop}  # fmt: skip


# --- Augmentation ---------------------------------------------------------------------------------


def test_shifts_repeat_the_edges():
    picture = torch.arange(6.0).reshape(1, 2, 3, 1, 1)
    for row in range(3):
        for column in range(3):
            padded = np.pad(picture[0, ..., 0, 0].numpy(), 1, mode='edge')
            expected = padded[row : row + 2, column : column + 3]
            cropped = images.crop(picture, torch.tensor([[row, column]]), 1)
            np.testing.assert_array_equal(cropped[0, ..., 0, 0].numpy(), expected)


def test_each_image_has_its_shift_and_all_frames_the_same():
    ramp = torch.arange(12.0)[:, None] * 100 + torch.arange(12.0)
    stack = ramp.reshape(1, 12, 12, 1, 1).expand(64, -1, -1, 2, 3)
    shifted = images.random_crop(random.key(0), stack)
    assert (shifted == shifted[..., :1, :1]).all()
    centres = shifted[:, 6, 6, 0, 0]
    assert len(set(centres.tolist())) > 30
    rows, columns = centres // 100 - 6, centres % 100 - 6
    for offsets in (rows, columns):
        assert set(offsets.tolist()) == set(range(-4, 5))


def test_depths_move_with_their_cameras_and_the_rest_stays():
    base = draw(8, 9, 8, 1, 1)
    observations = {
        'pixels': base,
        'wrist': base,
        'depth': base.float(),
        'wrist_depth': base.float(),
        'state': torch.zeros(8, 3),
    }
    shifted = images.augment(random.key(1), observations, **ALL)
    assert torch.equal(shifted['pixels'].float(), shifted['depth'])
    assert torch.equal(shifted['wrist'].float(), shifted['wrist_depth'])
    assert not torch.equal(shifted['pixels'], shifted['wrist'])
    assert shifted['state'] is observations['state']
    assert shifted['pixels'].dtype == torch.uint8


def test_unpacking():
    packed = torch.arange(4).reshape(1, 1, 1, 1, 4)
    state = torch.zeros(1, 2)
    batch = {
        'observations': {'a': packed, 'b': packed, 'state': state},
        'next_observations': {'b': packed + 1, 'state': state},
    }
    result = images.unpack(batch, ['a', 'b'])
    assert result['observations']['a'].flatten().tolist() == [0, 1, 2]
    assert result['next_observations']['a'].flatten().tolist() == [1, 2, 3]
    assert result['observations']['b'] is packed
    assert torch.equal(result['next_observations']['b'], packed + 1)
    assert 'a' not in batch['next_observations']
