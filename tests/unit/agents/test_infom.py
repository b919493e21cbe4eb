"""What is particular to InFOM: the flow, where gradients go, targets, refusals."""

import numpy as np
import pytest
import torch

from purerl.agents.infom import infom
from purerl.agents.infom.encoders import encoding_dim
from purerl.agents.infom.networks import MLP, VectorField
from purerl.core import nn, random, trees
from purerl.core.jit import grad, jit, use_mode, vmap

OBSERVATIONS, ACTIONS, LATENTS, BATCH = 5, 3, 4, 8
SMALL = {
    'actor_hidden_dims': (16, 8),
    'value_hidden_dims': (16, 8),
    'intention_encoder_hidden_dims': (16, 8),
    'reward_hidden_dims': (16, 8),
    'latent_dim': LATENTS,
    'num_flow_goals': 3,
    'num_flow_steps': 4,
    'lr': 3e-3,
}
IMAGES = {'encoder': 'impala_debug', 'clip_flow_goals': False}


def array(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def make_agent(seed=0, observations=None, **overrides):
    config = infom.get_config()
    config.update({**SMALL, **overrides})
    observations = torch.zeros(1, OBSERVATIONS) if observations is None else observations[:1]
    return infom.InFOMAgent.create(seed, observations, torch.zeros(1, ACTIONS), config)


def make_batch(images=False):
    observations = array(2, BATCH, OBSERVATIONS)
    if images:
        rng = np.random.RandomState(0)
        observations = rng.randint(0, 256, (2, BATCH, 8, 8, 3)).astype(np.uint8)
    batch = {
        'observations': observations[0],
        'next_observations': observations[1],
        'observation_min': observations.min((0, 1)),
        'observation_max': observations.max((0, 1)),
        'actions': np.tanh(array(BATCH, ACTIONS, seed=1)),
        'next_actions': np.tanh(array(BATCH, ACTIONS, seed=2)),
        'rewards': array(BATCH, seed=3),
    }
    return trees.map(torch.from_numpy, batch)


# --- The flow -------------------------------------------------------------------------------------


@pytest.mark.parametrize('layer_norm', [False, True])
def test_flow_equals_steps_with_all_inputs(layer_norm):
    """The conditions, fixed once and broadcast, act as if they were given at every step."""
    field = VectorField(OBSERVATIONS, (16, 8), layer_norm=layer_norm)
    conditions = [torch.from_numpy(array(7, size, seed=size)) for size in (5, ACTIONS, LATENTS)]
    goals = torch.from_numpy(array(3, 7, OBSERVATIONS))
    start, end = torch.linspace(0, 0.5, 21).reshape(3, 7), torch.linspace(1, 0.6, 21).reshape(3, 7)
    low, high = torch.full((5,), -0.8), torch.linspace(0.5, 1.5, 5)
    params = nn.init(field, random.key(0), goals[0], start[0], *conditions)
    params = trees.map(lambda x: x + 0.1, params)  # biases that are not zero
    ours = field.integrate(
        field.condition(params, *conditions), goals, 6, (low, high), (start, end)
    )

    conditions = [x.expand(3, *x.shape) for x in conditions]
    for i in range(6):
        times = start + i * (end - start) / 6
        velocity = nn.apply(field, params, goals, times, *conditions)
        goals = (goals + velocity * (end - start)[..., None] / 6).clamp(low, high)
    torch.testing.assert_close(ours, goals, rtol=1e-6, atol=1e-6)
    assert (goals == high).any() and (goals == low).any()  # the bounds took part


def flow_goals(agent, batch, **kwargs):
    noises = torch.from_numpy(array(3, BATCH, OBSERVATIONS, seed=5))
    latents = torch.from_numpy(array(BATCH, LATENTS, seed=6))
    conditions = batch['observations'], batch['actions'], latents
    return agent.compute_fwd_flow_goals(noises, *conditions, agent.goal_bounds(batch), **kwargs)


def test_goals_stay_just_within_the_bounds():
    batch = make_batch()
    batch['observation_min'], batch['observation_max'] = torch.tensor([[-0.1] * 5, [0.2] * 5])
    goals = flow_goals(make_agent(), batch)
    assert goals.min() == torch.tensor(-0.1) + 1e-5
    assert goals.max() == torch.tensor(0.2) - 1e-5
    assert flow_goals(make_agent(clip_flow_goals=False), batch).abs().max() > 1


def test_the_target_field_generates_goals_of_its_own():
    batch = make_batch()
    agent, _ = make_agent().pretrain(batch)
    online, target = (flow_goals(agent, batch, use_target_network=x) for x in (False, True))
    assert not torch.equal(online, target)
    reset = flow_goals(agent.target_reset(), batch, use_target_network=True)
    torch.testing.assert_close(reset, online)


# --- Gradients ------------------------------------------------------------------------------------


def moved(agent, loss, *args):
    """Return the modules into which a loss sends gradients."""
    grads = grad(lambda params: getattr(agent, loss)(*args[:1], params, *args[1:])[0])(
        agent.network.params
    )
    names = ((name, trees.leaves(tree)) for name, tree in grads.items())
    return {name.removeprefix('modules_') for name, xs in names if any(x.any() for x in xs)}


@pytest.mark.parametrize('latents', ['prior', 'encoding'])
@pytest.mark.parametrize('images', [False, True])
def test_each_loss_trains_its_modules(latents, images):
    batch, key = make_batch(images), random.key(1)
    options = IMAGES if images else {}
    agent = make_agent(0, batch['observations'], critic_latent_type=latents, **options)
    assert moved(agent, 'reward_loss', batch) == {'reward'}
    assert moved(agent, 'critic_loss', batch, key) == {'critic'}
    assert moved(agent, 'actor_loss', batch, key) == {'actor'}
    flow = {'critic_vf', 'intention_encoder', *(['critic_vf_encoder'] if images else [])}
    assert moved(agent, 'flow_occupancy_loss', batch, key) == flow
    trained = {*flow, 'reward', 'critic', 'actor'}
    assert moved(agent, 'finetuning_loss', batch, True, key) == trained


def test_latents_of_the_critic_come_from_the_prior_or_the_encoder():
    batch = make_batch()
    losses = [
        make_agent(critic_latent_type=kind).critic_loss(batch, None, random.key(0))[0]
        for kind in ('prior', 'encoding')
    ]
    assert not torch.isclose(*losses)


# --- Targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize('images', [False, True])
def test_target_reset_copies_the_online_networks(images):
    batch = make_batch(images)
    agent = make_agent(0, batch['observations'], **(IMAGES if images else {}))
    with use_mode('off'):
        agent, _ = agent.pretrain(batch)
    before = trees.map(torch.clone, agent)
    reset = agent.target_reset()
    params = reset.network.params
    targets = [name for name in params if 'target' in name]
    assert len(targets) == 1 + images
    for target in targets:
        online = params[target.replace('target_', '')]
        pairs = list(zip(trees.leaves(params[target]), trees.leaves(online), strict=True))
        assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
        stale = zip(trees.leaves(agent.network.params[target]), trees.leaves(online), strict=True)
        assert not all(torch.equal(a, b) for a, b in stale)
    assert_identical(agent, before)  # the agent itself is left alone


def assert_identical(first, second):
    for a, b in zip(trees.leaves(first), trees.leaves(second), strict=True):
        assert torch.equal(a, b)


def test_target_reset_over_seeds():
    agents = [make_agent(seed).pretrain(make_batch())[0] for seed in range(2)]
    many = jit(vmap(lambda agent: agent.target_reset()))(trees.stack(agents))
    for i, agent in enumerate(agents):
        assert_identical(trees.index(many, i), agent.target_reset())


# --- Refusals and mended faults -------------------------------------------------------------------


@pytest.mark.parametrize('call', ['pretrain', 'finetune', 'pretraining_loss', 'finetuning_loss'])
@pytest.mark.parametrize(
    'missing, remedy',
    [
        ('next_actions', 'return_next_actions=True'),
        ('observation_min', r'normalize_observations\(\)'),
        ('observation_max', r'normalize_observations\(\)'),
    ],
)
def test_incomplete_batches_are_refused(call, missing, remedy):
    batch = make_batch()
    del batch[missing]
    with pytest.raises(ValueError, match=f'the batch lacks {missing} .*{remedy}'):
        getattr(make_agent(), call)(batch)


def test_bounds_are_needed_for_clipping_only():
    batch = make_batch()
    del batch['observation_min'], batch['observation_max']
    _, info = make_agent(clip_flow_goals=False).finetune(batch)
    assert all(torch.isfinite(x) for x in info.values())


@pytest.mark.parametrize(
    'overrides, message',
    [
        ({'q_agg': 'max'}, "q_agg must be min or mean, got 'max'"),
        ({'critic_latent_type': 'posterior'}, 'critic_latent_type must be prior or encoding, got'),
        ({'num_flow_goals': 0}, 'num_flow_goals and num_flow_steps must be at least 1'),
        ({'num_flow_steps': 0}, 'num_flow_goals and num_flow_steps must be at least 1'),
        ({'discount': 1.0}, 'discount must lie below 1, got 1.0'),
        ({'encoder': 'mlp'}, 'with an encoder, set clip_flow_goals=False'),
        ({**IMAGES, 'encoder': 'impalla'}, "unknown encoder 'impalla'"),
        (IMAGES, r'the encoder impala_debug takes images, not observations of shape \(5,\)'),
    ],
)
def test_create_refuses(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_agent(**overrides)


@pytest.mark.parametrize(
    'overrides, message',
    [
        ({}, r'observations of shape \(8, 8, 3\) need an encoder'),
        ({**IMAGES, 'encoder': 'mlp'}, 'the encoder mlp takes vectors, not observations of shape'),
    ],
)
def test_create_refuses_images(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_agent(0, torch.zeros(1, 8, 8, 3, dtype=torch.uint8), **overrides)


def test_bounds_of_single_frames_do_not_clip_stacked_ones():
    batch = make_batch()
    batch['observation_min'] = batch['observation_min'][:2]
    with pytest.raises(ValueError, match='with stacked frames set clip_flow_goals=False'):
        make_agent().pretraining_loss(batch)


@pytest.mark.parametrize(
    'name, shape, size',
    [
        (None, (5,), 5),
        ('mlp', (5,), 512),
        ('impala', (8, 8, 3), 512),
        ('impala_large', (8, 8, 3), 1024),
    ],
)
def test_encoding_dim(name, shape, size):
    assert encoding_dim(name, np.zeros((2, *shape), np.float32)) == size


def test_the_flow_is_as_wide_as_the_encoder(monkeypatch):
    narrow = {'mlp': lambda: MLP((16, 6))}
    monkeypatch.setattr('purerl.agents.infom.encoders.encoder_modules', narrow)
    agent = make_agent(encoder='mlp', clip_flow_goals=False)
    net = agent.network.params['modules_critic_vf']['vector_field_net']
    assert net['Dense_2']['kernel'].shape == (8, 6)
    assert net['Dense_0']['kernel'].shape == (6 + 1 + 6 + ACTIONS + LATENTS, 16)
    _, info = agent.finetune(make_batch())
    assert all(torch.isfinite(x) for x in info.values())


# --- A probe with known values --------------------------------------------------------------------


def test_probe_values_are_discounted_sums_of_future_rewards():
    """Observation -1 leads to 1, which stays. With rewards 0 and 1, and 1/2 off, Q is 1 and 2."""
    observations = np.repeat([[-1.0], [1.0]], 32, 0).astype(np.float32)
    batch = {
        'observations': observations,
        'next_observations': np.ones_like(observations),
        'observation_min': -np.ones(1, np.float32),
        'observation_max': np.ones(1, np.float32),
        'actions': np.zeros((64, 1), np.float32),
        'next_actions': np.zeros((64, 1), np.float32),
        'rewards': (observations[:, 0] > 0).astype(np.float32),
    }
    batch = trees.map(torch.from_numpy, batch)
    config = infom.get_config()
    probe = {'discount': 0.5, 'expectile': 0.5, 'kl_weight': 1.0, 'lr': 1e-2, 'tau': 0.05}
    flow = {'value_hidden_dims': (32, 32), 'num_flow_goals': 8, 'num_flow_steps': 8}
    config.update({**SMALL, **probe, **flow, 'latent_dim': 1})
    agent = infom.InFOMAgent.create(0, batch['observations'][:1], batch['actions'][:1], config)
    for _ in range(300):
        agent, _ = agent.finetune(batch, full_update=False)
    values = agent.network.select('critic')(batch['observations'][[0, -1]], batch['actions'][:2])
    assert (values - torch.tensor([1.0, 2.0])).abs().max() < 0.25
