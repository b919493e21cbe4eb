"""Agents that act by images: what they have in common, and what they are made of."""

import functools
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from purerl.agents.jaxrl5 import drq, encoders, images, pixel_bc
from purerl.core import random, trees
from purerl.core.jit import CompiledFunction, jit, use_mode, vmap

BATCH, ACTIONS, STACK = 4, 2, 2
SMALL = {
    'cnn_features': (4, 5),
    'cnn_filters': (3, 3),
    'cnn_strides': (2, 1),
    'latent_dim': 6,
    'hidden_dims': (12, 8),
}
CAMERAS = {'pixels': (9, 8, 3, STACK), 'wrist': (8, 8, 1, STACK)}
DEPTHS = {'depth': (9, 8, 1, STACK), 'wrist_depth': (8, 8, 1, STACK)}
ALL = {
    'pixel_keys': tuple(CAMERAS),
    'depth_keys': tuple(DEPTHS),
}


class Case(NamedTuple):
    cls: Any
    config: Any
    step: Any
    overrides: Any = MappingProxyType({})
    shapes: Any = MappingProxyType({'pixels': (9, 8, 3, STACK)})
    packed: bool = False


def update(agent, batch):
    return agent.update(batch)


def update_utd_2(agent, batch):
    return agent.update(batch, 2)


DRQ = functools.partial(Case, drq.DrQLearner, drq.get_config)
PIXEL_BC = functools.partial(Case, pixel_bc.PixelBCLearner, pixel_bc.get_config)
EVERYTHING = {**CAMERAS, **DEPTHS, 'state': (3,)}
CASES = {
    'drq': DRQ(update, packed=True),
    'drq_cameras': DRQ(
        update_utd_2,
        {**ALL, 'num_qs': 3, 'num_min_qs': 2, 'critic_dropout_rate': 0.2, 'cnn_padding': 'SAME'},
        EVERYTHING,
        True,
    ),
    'drq_resnet': DRQ(update_utd_2, {'encoder': 'resnet'}, packed=True),
    'drq_unpacked': DRQ(update, {'pixel_keys': ('wrist',)}, {'wrist': CAMERAS['wrist']}),
    'pixel_bc': PIXEL_BC(update, {'dropout_rate': 0.2, 'entropy_bonus': 0.1, 'decay_steps': 5}),
    'pixel_bc_normal': PIXEL_BC(update, {**ALL, 'distr_name': 'Normal'}, EVERYTHING),
}
all_agents = pytest.mark.parametrize('name', CASES)


@pytest.fixture(autouse=True)
def small_resnet(monkeypatch):
    def encoder_class(config):
        if config['encoder'] == 'resnet':
            return functools.partial(encoders.ResNetV2Encoder, (1, 1), 4)
        return encoders.encoder_class(config)

    for module in (drq, pixel_bc):
        monkeypatch.setattr(module, 'encoder_class', encoder_class)


def observe(shapes, rng, lead=(), extra=0):
    observations = {}
    for key, shape in shapes.items():
        if key in CAMERAS:
            shape = (*lead, *shape[:-1], shape[-1] + extra)
            observations[key] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            observations[key] = rng.standard_normal((*lead, *shape)).astype(np.float32)
    return observations


def examples(shapes):
    return trees.map(torch.from_numpy, observe(shapes, np.random.default_rng(0), (1,)))


def make_agent(name, seed=0, **overrides):
    case = CASES[name]
    config = case.config()
    config.update({**SMALL, **case.overrides, **overrides})
    return case.cls.create(seed, examples(case.shapes), torch.zeros(1, ACTIONS), config)


def make_batch(name, seed=0):
    case, rng = CASES[name], np.random.default_rng(seed)
    following = observe(case.shapes, rng, (BATCH,))
    observations = observe(case.shapes, rng, (BATCH,))
    if case.packed:
        packed = {k: shape for k, shape in case.shapes.items() if k in CAMERAS}
        observations |= observe(packed, rng, (BATCH,), 1)
        following = {key: value for key, value in following.items() if key not in packed}
    masks = (rng.uniform(size=BATCH) > 0.2).astype(np.float32)
    return {
        'observations': observations,
        'actions': rng.uniform(-0.9, 0.9, (BATCH, ACTIONS)).astype(np.float32),
        'rewards': rng.standard_normal(BATCH).astype(np.float32),
        'masks': masks,
        'dones': masks == 0,
        'next_observations': following,
    }


def run(agent, name, step=None, num=2):
    for i in range(num):
        agent, info = (step or CASES[name].step)(agent, make_batch(name, i))
    return agent, info


def assert_close(ours, expected):
    assert trees.structure(ours) == trees.structure(expected)
    pairs = zip(trees.leaves_with_path(ours), trees.leaves(expected), strict=True)
    for (path, a), b in pairs:
        message = functools.partial('{}: {}'.format, '/'.join(path))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-6, msg=message)


def identical(first, second):
    pairs = zip(trees.leaves(first), trees.leaves(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- What holds for every agent -------------------------------------------------------------------


@all_agents
def test_traced_equals_eager(name):
    results = {}
    for mode in ('off', 'trace'):
        with use_mode(mode):
            results[mode] = run(make_agent(name), name)
    assert_close(results['trace'], results['off'])


@all_agents
def test_vmap_equals_loop(name):
    step = CASES[name].step
    agents = [make_agent(name, seed) for seed in range(2)]
    many = jit(lambda agents, batch: vmap(lambda agent: step(agent, batch))(agents))
    stacked, info = run(trees.stack(agents), name, many)
    for i, agent in enumerate(agents):
        assert_close((trees.index(stacked, i), trees.index(info, i)), run(agent, name))


@all_agents
def test_updates_are_pure_and_share_no_memory(name):
    agent = make_agent(name)
    before = trees.map(torch.clone, agent)
    for mode in ('off', 'trace'):
        with use_mode(mode):
            updated, info = run(agent, name)
        assert identical(agent, before)
        assert trees.structure(updated) == trees.structure(agent)
        storages = [x.untyped_storage().data_ptr() for x in trees.leaves(updated) if x.numel() > 2]
        assert len(set(storages)) == len(storages)
        assert all(torch.isfinite(value) and value.shape == () for value in info.values())


@all_agents
def test_the_seed_decides(name):
    first, again, other = (run(make_agent(name, seed), name)[0] for seed in (3, 3, 4))
    assert identical(first, again)
    assert not identical(first, other)


@all_agents
def test_one_program_per_method(name):
    cls = CASES[name].cls
    run(make_agent(name), name, num=1)
    functions = {key: getattr(cls, key) for key in dir(cls)}
    functions = {k: f for k, f in functions.items() if isinstance(f, CompiledFunction)}
    before = {key: f.num_programs for key, f in functions.items()}
    run(make_agent(name, 7), name, num=3)
    assert {key: f.num_programs for key, f in functions.items()} == before


@all_agents
@pytest.mark.parametrize('lead', [(), (3,)])
def test_acting(name, lead):
    agent = make_agent(name)
    observations = observe(CASES[name].shapes, np.random.default_rng(5), lead)
    actions, after = agent.sample_actions(observations)
    assert actions.shape == (*lead, ACTIONS)
    others, _ = after.sample_actions(observations)
    assert not torch.equal(actions, others)
    mode, same = agent.eval_actions(observations)
    assert torch.equal(same.rng, agent.rng)
    assert torch.equal(mode, agent.eval_actions(observations)[0])


def test_generated_code_equals_eager():
    results = {}
    for mode in ('off', 'inductor'):
        with use_mode(mode):
            results[mode] = run(make_agent('pixel_bc'), 'pixel_bc')
    assert_close(results['inductor'], results['off'])


# --- Mistakes -------------------------------------------------------------------------------------


def changed(batch, key, change):
    observations = {k: v for k, v in batch['observations'].items() if k != key}
    value = change(batch['observations'][key])
    if value is not None:
        observations[key] = value
    return {**batch, 'observations': observations}


BAD_BATCHES = {
    'missing camera': ('wrist', lambda x: None, "observations have no 'wrist'; they have depth"),
    'missing depth': ('depth', lambda x: None, "observations have no 'depth'"),
    'floats': ('pixels', lambda x: x / np.float32(255), "'pixels' must be uint8 .*float32 "),
    'no stack': ('pixels', lambda x: x[0, ..., 0], r"'pixels' must be uint8 .*uint8 \(9, 8, 3\)"),
    'another stack': ('wrist', lambda x: x.repeat(2, -1), "'wrist_depth' must be"),
    'integer depth': ('depth', lambda x: x.astype(np.uint8), "'depth' must be float32 images"),
    'small depth': ('depth', lambda x: x[:, :4], r"'depth' must be .*\(4, 9, 8, 1, 2\), not"),
    'deep depth stack': ('depth', lambda x: x.repeat(2, -1), 'num_stack of .pixels'),
    'no state': ('state', lambda x: None, "observations have no 'state'"),
}


@pytest.mark.parametrize('fault', BAD_BATCHES)
@pytest.mark.parametrize('mode', ['off', 'trace'])
def test_bad_images_are_refused(fault, mode):
    key, change, message = BAD_BATCHES[fault]
    batch = changed(make_batch('pixel_bc_normal'), key, change)
    agent = make_agent('pixel_bc_normal')
    with use_mode(mode), pytest.raises(ValueError, match=message):
        agent.update(batch)
    with use_mode(mode), pytest.raises(ValueError, match=message):
        agent.sample_actions(batch['observations'])


OTHER_SHAPES = {
    'frames': lambda x: x.repeat(2, -1),
    'size': lambda x: x.repeat(2, -3),
    'joined axes': lambda x: x.reshape(*x.shape[:-2], -1, 1),
    'channels first': lambda x: np.moveaxis(x, -2, -4),
}


@pytest.mark.parametrize('name', ['drq', 'drq_unpacked', 'drq_resnet', 'pixel_bc'])
@pytest.mark.parametrize('change', OTHER_SHAPES)
def test_images_of_another_shape_are_refused(name, change):
    agent, batch = make_agent(name), make_batch(name)
    key = next(iter(CASES[name].shapes))
    batch = changed(batch, key, OTHER_SHAPES[change])
    shape = ', '.join(map(str, CASES[name].shapes[key]))
    message = rf"'{key}' must be images .* made for, \(\.\.\., {shape}\), not uint8"
    with pytest.raises(ValueError, match=message):
        agent.update(batch)
    for act in (agent.sample_actions, agent.eval_actions):
        with pytest.raises(ValueError, match=message):
            act(batch['observations'])


def test_updates_take_batches():
    batch = changed(make_batch('pixel_bc'), 'pixels', lambda x: x[0])
    with pytest.raises(ValueError, match=r"'pixels' must be a batch of images, not uint8"):
        make_agent('pixel_bc').update(batch)


@pytest.mark.parametrize('name', ['drq', 'pixel_bc'])
@pytest.mark.parametrize('overrides', [{}, {'cnn_padding': 'SAME'}, {'encoder': 'resnet'}])
@pytest.mark.parametrize(
    'shape', [(8, 64, 64, 3), (96, 64, 64, 3), (1, 3, 64, 64, 3), (1, 3, 3, 64, 64)]
)
def test_examples_of_another_layout_are_refused(name, overrides, shape):
    case = CASES[name]
    config = case.config()
    config.update({**SMALL, **overrides})
    images = {'pixels': torch.zeros(shape, dtype=torch.uint8)}
    message = r"'pixels' must be images \(\.\.\., height, width, channels, num_stack\), not uint8"
    with pytest.raises(ValueError, match=message):
        case.cls.create(0, images, torch.zeros(1, ACTIONS), config)


def test_states_are_refused():
    with pytest.raises(ValueError, match='must be a dict with the images pixels, not one array'):
        drq.DrQLearner.create(0, torch.zeros(1, 3), torch.zeros(1, 2), drq.get_config())


@pytest.mark.parametrize('name', ['drq', 'pixel_bc'])
@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'encoder': 'impala'}, "encoder must be one of d4pg, resnet, not 'impala'"),
        ({'cnn_strides': (2,)}, r'cnn_strides=\(2,\) must have one entry per layer'),
        ({'cnn_strides': (0, 1)}, r'cnn_strides must be at least 1 each, not \(0, 1\)'),
        ({'cnn_filters': (3, 0)}, r'cnn_filters must be at least 1 each, not \(3, 0\)'),
        ({'latent_dim': -1}, 'latent_dim must be at least 1, not -1'),
        ({'cnn_padding': 'CIRCULAR'}, "cnn_padding must be VALID or SAME, not 'CIRCULAR'"),
        ({'pixel_keys': ()}, 'pixel_keys is empty'),
        ({'pixel_keys': ('wrist',)}, "observations have no 'wrist'; they have pixels"),
        ({'pixel_keys': ('pixels',), 'depth_keys': ('depth', 'far')}, 'more depth images than'),
        ({'cnn_filters': (5, 3)}, r'images of 9x8, which are too small for cnn_filters=\(5, 3\)'),
    ],
)
def test_bad_configs_are_refused(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_agent(name, **overrides)


@pytest.mark.parametrize('name', ['drq', 'pixel_bc'])
def test_windows_beyond_the_last_layer_are_left_out(name):
    agent, same = make_agent(name), make_agent(name, cnn_filters=(3, 3, 20, 1))
    for x, y in zip(trees.leaves(agent.actor.params), trees.leaves(same.actor.params), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize('name', ['drq', 'pixel_bc'])
def test_layers_without_a_window_are_left_out(name):
    with pytest.warns(UserWarning, match='the encoder has 1 layers, not 2'):
        agent = make_agent(name, cnn_filters=(3,))
    (_, encoder), *_ = [(k, v) for k, v in agent.actor.params.items() if k.startswith('encoder')]
    assert list(encoder) == ['Conv_0']


def test_cameras_without_a_depth_are_shifted_and_not_seen():
    with pytest.warns(UserWarning, match=r"wrist will not be seen: depth_keys=\('depth',\)"):
        agent = make_agent('pixel_bc_normal', depth_keys=('depth',))
    assert [key for key in agent.actor.params if 'encoder' in key] == ['encoder_0']
    observations = make_batch('pixel_bc_normal')['observations']
    seen = {key: torch.as_tensor(x) for key, x in observations.items()}
    moved = images.augment(random.key(0), seen, ('pixels', 'wrist'), ('depth',))
    without = images.augment(random.key(0), seen, ('pixels', 'wrist'))
    for key in ('pixels', 'wrist'):
        assert torch.equal(moved[key], without[key]) and not torch.equal(moved[key], seen[key])
    assert not torch.equal(moved['depth'], seen['depth'])


@pytest.mark.parametrize('name', ['drq', 'pixel_bc'])
def test_examples_may_be_arrays(name):
    case, config = CASES[name], CASES[name].config()
    config.update({**SMALL, **case.overrides})
    arrays = {key: image.numpy() for key, image in examples(case.shapes).items()}
    agent = case.cls.create(0, arrays, np.zeros((1, ACTIONS), np.float32), config)
    same = trees.leaves(make_agent(name).actor.params)
    assert all(map(torch.equal, trees.leaves(agent.actor.params), same))
