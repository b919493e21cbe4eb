"""What is particular to forward-backward representations: pairs, latents, the target critic."""

import math

import numpy as np
import pytest
import torch

from purerl.agents.infom.fb_repr import ForwardBackwardRepresentationAgent, get_config
from purerl.core import random, trees
from purerl.core.jit import use_mode

LATENT, BATCH = 4, 12


@pytest.fixture(autouse=True)
def traced():
    with use_mode('trace'):
        yield


def make_agent(seed=0, **overrides):
    config = get_config()
    widths = [f'{name}_hidden_dims' for name in ('actor', 'value', 'forward_repr', 'backward_repr')]
    config.update({**dict.fromkeys(widths, (16,)), 'latent_dim': LATENT, 'lr': 3e-3, **overrides})
    examples = torch.zeros(1, 5), torch.zeros(1, 3)
    return ForwardBackwardRepresentationAgent.create(seed, *examples, config)


def make_batch(seed=0, size=BATCH):
    rng = np.random.RandomState(seed)
    arrays = {
        'observations': rng.standard_normal((size, 5)),
        'next_observations': rng.standard_normal((size, 5)),
        'actions': rng.uniform(-0.9, 0.9, (size, 3)),
        'rewards': rng.standard_normal(size),
        'masks': np.ones(size),
    }
    return {name: torch.from_numpy(array).float() for name, array in arrays.items()}


def backward_reprs(agent, observations):
    x = agent.network.select('backward_repr')(observations)
    return x / x.norm(dim=-1, keepdim=True) * math.sqrt(LATENT)


def identical(first, second):
    pairs = zip(trees.leaves(first), trees.leaves(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- Representations ------------------------------------------------------------------------------


@pytest.mark.parametrize('aggregate, size', [('mean', 5), ('min', 2)])
def test_representation_loss_pair_by_pair(aggregate, size):
    """The definition, written out over pairs; no batch has the configured size."""
    agent = make_agent(repr_agg=aggregate, orthonorm_coeff=0.7, discount=0.9)
    agent, _ = agent.pretrain(make_batch(1))  # so that targets and online networks differ
    batch = make_batch(2, size)
    batch['latents'] = agent.sample_latents(batch, random.key(3))
    loss, info = agent.forward_backward_repr_loss(batch, None, random.key(4))

    select, following = agent.network.select, batch['next_observations']
    dist = select('actor')(following, batch['latents'], goal_encoded=True)
    inputs = following, batch['latents'], dist.mode().clamp(-1, 1), True
    target_forward = select('target_forward_repr')(*inputs)
    target_backward = select('target_backward_repr')(following)
    target_backward = target_backward / target_backward.norm(dim=-1, keepdim=True) * 2
    inputs = batch['observations'], batch['latents'], batch['actions'], True
    forward, backward = select('forward_repr')(*inputs), backward_reprs(agent, following)

    members = []
    for member in range(2):
        rows = []
        for i in range(size):
            row = -forward[member, i] @ backward[i]
            for j in range(size):
                targets = torch.stack([target_forward[e, i] @ target_backward[j] for e in (0, 1)])
                target = targets.mean() if aggregate == 'mean' else targets.min()
                if i != j:
                    error = forward[member, i] @ backward[j] - 0.9 * target
                    row = row + 0.5 * error**2 / (size - 1)
            rows.append(row)
        members.append(torch.stack(rows).mean())
    repr_loss = torch.stack(members).mean()
    rows = [
        sum((backward[i] @ backward[j]) ** 2 for j in range(size) if j != i) / (size - 1)
        - 2 * backward[i] @ backward[i]
        for i in range(size)
    ]
    ortho_loss = 0.7 * torch.stack(rows).mean()
    torch.testing.assert_close(info['repr_loss'], repr_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(info['ortho_loss'], ortho_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, repr_loss + ortho_loss, rtol=1e-5, atol=1e-5)


def test_pairs_need_two_transitions():
    with pytest.raises(ValueError, match='batch_size must be above 1'):
        make_agent().pretrain(make_batch(size=1))


def test_pretraining_leaves_the_batch_alone_and_ignores_its_latents():
    batch = make_batch()
    agent, _ = make_agent().pretrain(batch)
    assert 'latents' not in batch
    other, _ = make_agent().pretrain({**batch, 'latents': torch.ones(BATCH, LATENT)})
    assert identical(agent, other)


# --- Latents --------------------------------------------------------------------------------------


def test_latents_are_gaussian_directions_or_representations_of_the_batch():
    batch = make_batch()
    mixed = make_agent(latent_mix_prob=0.5).sample_latents(batch, random.key(1))
    gaussian = make_agent(latent_mix_prob=1.0).sample_latents(batch, random.key(1))
    representations = make_agent(latent_mix_prob=0.0).sample_latents(batch, random.key(1))
    for latents in (mixed, gaussian, representations):
        lengths = latents.norm(dim=-1)
        torch.testing.assert_close(lengths, torch.full((BATCH,), math.sqrt(LATENT)))
    known = backward_reprs(make_agent(), batch['observations'])
    order = (representations[:, None] - known[None]).norm(dim=-1).argmin(1)
    assert sorted(order.tolist()) == list(range(BATCH))  # each of the batch's once
    assert order.tolist() != list(range(BATCH))
    torch.testing.assert_close(representations, known[order])
    kept = (mixed == gaussian).all(-1)
    assert 0 < kept.sum() < BATCH
    assert torch.equal(torch.where(kept[:, None], gaussian, representations), mixed)


def test_inferred_latent_points_where_the_rewards_are():
    agent, batch = make_agent(), make_batch()
    batch['rewards'] = torch.zeros(BATCH).index_fill(0, torch.tensor(3), 2.0)
    latent = agent.infer_latent(batch)
    assert latent.shape == (LATENT,)
    torch.testing.assert_close(latent, backward_reprs(agent, batch['observations'])[3])


def test_finetuning_needs_latents():
    with pytest.raises(ValueError, match=r'lacks latents .*infer_latent'):
        make_agent().finetune(make_batch())


def test_actions_follow_the_latent():
    agent, batch = make_agent(), make_batch()
    for i in range(3):
        agent, _ = agent.pretrain(make_batch(i))
    latents = agent.sample_latents(batch, random.key(0))
    observation = batch['observations'][0]
    actions = [
        agent.sample_actions(observation, latents=z, seed=random.key(0), temperature=0.0)
        for z in latents
    ]
    assert not torch.equal(actions[0], actions[1])
    mode = agent.network.select('actor')(observation, latents[0], goal_encoded=True).mode()
    torch.testing.assert_close(actions[0], mode.clamp(-1, 1), rtol=1e-6, atol=1e-7)


# --- Which networks move when ---------------------------------------------------------------------


def test_each_phase_moves_its_own_targets():
    agent, params = make_agent(), make_agent().network.params
    pretrained = agent.pretrain(make_batch())[0].network.params
    batch = {**make_batch(), 'latents': torch.ones(BATCH, LATENT)}
    finetuned = agent.finetune(batch)[0].network.params
    for name in ('forward_repr', 'backward_repr'):
        # Equal parameters, to which the target moves: only rounding tells them apart.
        assert not identical(pretrained[f'modules_{name}'], params[f'modules_{name}'])
        assert identical(finetuned[f'modules_target_{name}'], params[f'modules_target_{name}'])
    assert identical(pretrained['modules_target_critic'], params['modules_target_critic'])
    assert not identical(finetuned['modules_target_critic'], params['modules_target_critic'])
    again = agent.pretrain(make_batch())[0].pretrain(make_batch())[0].network.params
    for name in ('forward_repr', 'backward_repr'):
        assert not identical(again[f'modules_target_{name}'], params[f'modules_target_{name}'])


@pytest.mark.parametrize('synchronised', [False, True])
def test_target_critic_starts_as_a_copy_if_asked_for(synchronised):
    agent = make_agent(sync_target_critic=synchronised)
    params = agent.network.params
    assert identical(params['modules_target_critic'], params['modules_critic']) is synchronised
    others = {name: params[name] for name in params if name != 'modules_target_critic'}
    default = make_agent().network.params
    assert identical(others, {name: default[name] for name in others})
