"""What is particular to HILP: the metric, skills, and how the task's skill is inferred."""

import functools
import math

import numpy as np
import pytest
import torch

from purerl.agents.infom import encoders
from purerl.agents.infom.hilp import HILPAgent, fix_origin, get_config, least_squares
from purerl.core import random, trees
from purerl.core.jit import jit, use_mode, vmap
from purerl.train.seeds import stack

LATENT, BATCH = 4, 12


@pytest.fixture(autouse=True)
def traced():
    with use_mode('trace'):
        yield


def make_agent(seed=0, shape=(5,), **overrides):
    config = get_config()
    small = {'actor_hidden_dims': (16,), 'value_hidden_dims': (16,), 'latent_dim': LATENT}
    config.update({**small, 'lr': 3e-3, 'tau': 0.1, **overrides})
    return HILPAgent.create(seed, torch.zeros(1, *shape), torch.zeros(1, 3), config)


def make_batch(seed=0, size=BATCH, shape=(5,)):
    rng = np.random.RandomState(seed)

    def observations():
        if len(shape) == 3:
            return rng.randint(0, 256, (size, *shape), dtype=np.uint8)
        return rng.standard_normal((size, *shape)).astype(np.float32)

    reached = (rng.uniform(size=size) < 0.2).astype(np.float32)
    return {
        'observations': observations(),
        'next_observations': observations(),
        'value_goals': observations(),
        'actions': rng.uniform(-0.9, 0.9, (size, 3)).astype(np.float32),
        'rewards': rng.standard_normal(size).astype(np.float32),
        'masks': np.ones(size, np.float32),
        'relabeled_rewards': reached - 1,
        'relabeled_masks': 1 - reached,
        'latents': np.tile(rng.standard_normal(LATENT).astype(np.float32), (size, 1)),
    }


def identical(first, second):
    pairs = zip(trees.leaves(first), trees.leaves(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- Inference ------------------------------------------------------------------------------------


@pytest.mark.parametrize('rows, columns, rank', [(30, 4, 4), (6, 9, 6), (20, 6, 3), (5, 1, 1)])
def test_least_squares_is_numpys(rows, columns, rank):
    rng = np.random.RandomState(0)
    a = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    a, b = a.astype(np.float32), rng.standard_normal(rows).astype(np.float32)
    expected = np.linalg.lstsq(a.astype(np.float64), b, rcond=rows * 1.2e-7)[0]
    ours = least_squares(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_least_squares_of_zeros_is_zero():
    assert torch.equal(least_squares(torch.zeros(5, 3), torch.ones(5)), torch.zeros(3))


def test_least_squares_of_what_is_not_finite_is_nan_and_leaves_other_seeds_alone():
    a, b = torch.randn(2, 5, 3), torch.randn(2, 5)
    a[1, 2, 0] = torch.nan
    x = torch.func.vmap(least_squares)(a, b)
    assert torch.equal(x[0], least_squares(a[0], b[0])) and x[0].isfinite().all()
    assert x[1].isnan().all()


def test_inference_finds_the_skill_whose_rewards_are_given():
    agent, batch = make_agent(), make_batch(size=40)
    skill = torch.tensor([1.0, -2.0, 0.5, 3.0])
    phis = agent.get_phis(batch['next_observations']) - agent.get_phis(batch['observations'])
    latent = agent.infer_latent({**batch, 'rewards': 7 * (phis @ skill)})
    expected = skill / torch.linalg.vector_norm(skill) * math.sqrt(LATENT)
    torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-4)


def test_inference_over_seeds_equals_a_loop():
    agents = [make_agent(seed) for seed in range(3)]
    batches = [make_batch(seed, size=20) for seed in range(3)]
    infer = jit(vmap(lambda agent, batch: agent.infer_latent(batch)))
    latents = infer(stack(agents), stack(batches))
    assert latents.shape == (3, LATENT)
    for agent, batch, latent in zip(agents, batches, latents, strict=True):
        torch.testing.assert_close(latent, agent.infer_latent(batch), rtol=1e-4, atol=1e-4)


# --- Skills ---------------------------------------------------------------------------------------


def test_skills_lie_on_a_sphere_and_are_rewarded_for_moving_along():
    agent, batch = make_agent(), make_batch()
    latents, rewards = agent.sample_latents(batch, random.key(3))
    norms = torch.linalg.vector_norm(latents, dim=1)
    torch.testing.assert_close(norms, torch.full((BATCH,), math.sqrt(LATENT)))
    moves = agent.get_phis(batch['next_observations']) - agent.get_phis(batch['observations'])
    torch.testing.assert_close(rewards, (moves * latents).sum(1))
    assert not torch.equal(latents, agent.sample_latents(batch, random.key(4))[0])


def test_a_skill_changes_the_actions():
    agent, batch = make_agent(), make_batch()
    agent, _ = agent.pretrain(batch)
    observation, latent = batch['observations'][0], batch['latents'][0]
    act = {'seed': random.key(0), 'temperature': 0.0}
    one = agent.sample_actions(observation, latents=latent, **act)
    other = agent.sample_actions(observation, latents=-latent, **act)
    assert one.shape == (3,) and not torch.equal(one, other)


# --- Training -------------------------------------------------------------------------------------


def test_target_reset_copies_the_skill_critic_only():
    agent, _ = make_agent().pretrain(make_batch())
    before = trees.map(torch.clone, agent)
    reset = agent.target_reset()
    assert identical(agent, before)
    params, old = reset.network.params, agent.network.params
    assert identical(params['modules_target_skill_critic'], params['modules_skill_critic'])
    assert not identical(params['modules_target_skill_critic'], old['modules_target_skill_critic'])
    rest = [name for name in old if name != 'modules_target_skill_critic']
    assert identical([params[name] for name in rest], [old[name] for name in rest])
    storages = [leaf.untyped_storage().data_ptr() for leaf in trees.leaves(params)]
    assert len(set(storages)) == len(storages)


def test_finetuning_leaves_the_metric_to_its_momentum():
    agent, batch = make_agent(), make_batch()
    fresh, _ = agent.finetune(batch)
    assert identical(fresh.network.params['modules_value'], agent.network.params['modules_value'])
    pretrained, _ = agent.pretrain(batch)
    tuned, _ = pretrained.finetune(batch)
    before, after = pretrained.network.params, tuned.network.params
    assert not identical(after['modules_value'], before['modules_value'])
    assert identical(after['modules_target_value'], before['modules_target_value'])


@pytest.mark.parametrize('dims', [(16,), (16, 8)])
def test_phis_origin_does_not_drift(dims):
    agent = make_agent(value_hidden_dims=dims)
    updated, _ = agent.pretrain(make_batch())
    changed = updated.network.params['modules_value']['phi']
    assert not changed[f'Dense_{len(dims)}']['bias'].any()
    assert changed[f'Dense_{len(dims) - 1}']['bias'].any()

    def loss(params):  # as the original has it: nothing else is detached
        value = agent.network.select('value')(batch['observations'], goals, params=params)
        return value.square().mean()

    batch = trees.map(torch.from_numpy, make_batch())
    goals = batch['value_goals']
    plain = torch.func.grad(loss)(agent.network.params)
    fixed = torch.func.grad(lambda p: loss(fix_origin(p, f'Dense_{len(dims)}')))(
        agent.network.params
    )
    pairs = zip(trees.leaves(plain), trees.leaves(fixed), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_the_metric_learns_the_time_between_states():
    """One step leads from either of two states to the other: V between them becomes -1."""
    states, goals = np.eye(2, dtype=np.float32)[[[0, 0, 1, 1], [0, 1, 0, 1]]]
    reached = np.array([1, 0, 0, 1], np.float32)
    batch = {
        **make_batch(size=4),
        'observations': states,
        'next_observations': 1 - states,
        'value_goals': goals,
        'relabeled_rewards': reached - 1,
        'relabeled_masks': 1 - reached,
    }
    agent = make_agent(shape=(2,), lr=1e-2)
    for _ in range(100):
        agent, _ = agent.pretrain(batch)
    values = agent.network.select('value')(*map(torch.from_numpy, (states, goals)))
    expected = torch.from_numpy(reached - 1).expand(2, 4)
    torch.testing.assert_close(values, expected, rtol=0, atol=0.05)


def test_images(monkeypatch):
    shape = (8, 8, 3)
    small = functools.partial(
        encoders.ImpalaEncoder, num_blocks=1, stack_sizes=(4,), mlp_hidden_dims=(8,)
    )
    monkeypatch.setitem(encoders.encoder_modules, 'impala_debug', small)
    agent = make_agent(shape=shape, encoder='impala_debug')
    batch = make_batch(shape=shape)
    agent, info = agent.pretrain(batch)
    assert torch.isfinite(torch.stack(list(info.values()))).all()
    latent = agent.infer_latent(batch)
    agent, info = agent.finetune({**batch, 'latents': latent.expand(BATCH, LATENT)})
    assert torch.isfinite(torch.stack(list(info.values()))).all()
    assert agent.sample_actions(batch['observations'][0], latent, random.key(0)).shape == (3,)


# --- Bad input ------------------------------------------------------------------------------------


def test_goals_are_needed_in_pretraining():
    batch = make_batch()
    del batch['value_goals']
    with pytest.raises(ValueError, match=r'lacks value_goals .*GCDataset'):
        make_agent().pretrain(batch)


def test_one_goal_for_each_observation():
    batch = make_batch()
    batch['value_goals'] = np.tile(batch['value_goals'], (BATCH, 1, 1))
    with pytest.raises(ValueError, match='value_geom_start_offset'):
        make_agent().pretrain(batch)


@pytest.mark.parametrize('call', ['finetune', 'finetuning_loss'])
def test_latents_are_needed_in_finetuning(call):
    batch = make_batch()
    del batch['latents']
    with pytest.raises(ValueError, match=r'lacks latents .*infer_latent'):
        getattr(make_agent(), call)(batch)


def test_unknown_encoders_are_refused():
    with pytest.raises(ValueError, match="unknown encoder 'impalla'"):
        make_agent(encoder='impalla')
