"""DrQ: what is its own beside SAC's steps (test_agents.py) and images (test_images.py)."""

import numpy as np
import pytest
import torch

from experiments.configs.jaxrl5 import drq as published
from purerl.agents.jaxrl5 import drq, images
from purerl.agents.jaxrl5.drq import DrQLearner
from purerl.agents.jaxrl5.sac import SACLearner
from purerl.core import random, trees

SMALL = {
    'cnn_features': (4,),
    'cnn_filters': (3,),
    'cnn_strides': (2,),
    'latent_dim': 6,
    'hidden_dims': (12,),
    'actor_lr': 1e-2,
    'critic_lr': 1e-2,
}
SHAPE = (8, 8, 3, 2)


def make_agent(seed=0, **overrides):
    config = drq.get_config()
    config.update({**SMALL, **overrides})
    observations = {'pixels': torch.zeros(1, *SHAPE, dtype=torch.uint8)}
    return DrQLearner.create(seed, observations, torch.zeros(1, 2), config)


def make_batch(seed=0, size=4):
    rng = np.random.default_rng(seed)
    return {
        'observations': {'pixels': rng.integers(0, 256, (size, 8, 8, 3, 3), dtype=np.uint8)},
        'actions': rng.uniform(-0.9, 0.9, (size, 2)).astype(np.float32),
        'rewards': rng.standard_normal(size).astype(np.float32),
        'masks': np.ones(size, np.float32),
        'dones': np.zeros(size, bool),
        'next_observations': {},
    }


def same(first, second):
    pairs = zip(trees.leaves(first), trees.leaves(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_policy_acts_with_the_encoder_from_before_the_update():
    agent = make_agent()
    assert not same(agent.actor.params['encoder_0'], agent.critic.params['encoder_0'])
    for seed in range(3):
        updated, _ = agent.update(make_batch(seed))
        assert same(updated.actor.params['encoder_0'], agent.critic.params['encoder_0'])
        assert not same(updated.critic.params['encoder_0'], agent.critic.params['encoder_0'])
        agent = updated


def test_the_actors_loss_moves_no_encoder():
    agent, _ = make_agent().update(make_batch())
    (adam, *_) = agent.actor.opt_state
    assert not any(leaf.any() for leaf in trees.leaves(adam.mu['encoder_0']))
    assert any(leaf.any() for leaf in trees.leaves(adam.mu['Dense_0']))


@pytest.mark.parametrize('utd_ratio', [1, 2])
def test_an_update_is_sacs_on_shifted_images(utd_ratio):
    agent, batch = make_agent(), trees.map(torch.from_numpy, make_batch())
    updated, info = agent.update(batch, utd_ratio)

    pixels = batch['observations']['pixels']
    rng, key = random.split(agent.rng)
    rng, next_key = random.split(rng)
    rng_of = [random.split(k)[0] for k in (key, next_key)]  # of the first camera
    shifted = {
        'observations': {'pixels': images.random_crop(rng_of[0], pixels[..., :-1])},
        'next_observations': {'pixels': images.random_crop(rng_of[1], pixels[..., 1:])},
    }
    actor = drq.share_encoder(agent.critic, agent.actor)
    expected, expected_info = SACLearner.update(
        agent.replace(rng=rng, actor=actor), {**batch, **shifted}, utd_ratio
    )
    for ours, theirs in zip(
        trees.leaves((updated, info)), trees.leaves((expected, expected_info)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_packed_and_unpacked_images_are_the_same_update():
    packed = make_batch()
    pixels = packed['observations']['pixels']
    unpacked = {
        **packed,
        'observations': {'pixels': pixels[..., :-1]},
        'next_observations': {'pixels': pixels[..., 1:]},
    }
    assert same(make_agent().update(packed), make_agent().update(unpacked))


def test_fewer_target_critics():
    agent = make_agent(num_qs=4, num_min_qs=2)
    kernel = agent.target_critic.params['Ensemble_0']['VmapStateActionValue_0']['Dense_0']['kernel']
    assert len(kernel) == 4  # all follow; two are drawn
    agent, info = agent.update(make_batch())
    assert torch.isfinite(info['critic_loss'])
    for bad in (0, 5):
        with pytest.raises(ValueError, match=f'num_min_qs={bad} must lie between 1 and num_qs=4'):
            make_agent(num_qs=4, num_min_qs=bad)


def test_batches_that_do_not_divide():
    with pytest.raises(ValueError, match='a batch of 4 does not divide into utd_ratio=3 parts'):
        make_agent().update(make_batch(), 3)


def test_the_targets_follow_encoders_too():
    agent = make_agent(tau=0.25)
    updated, _ = agent.update(make_batch())
    pairs = zip(
        trees.leaves(updated.target_critic.params),
        trees.leaves(agent.critic.params),
        trees.leaves(updated.critic.params),
        strict=True,
    )
    for target, before, after in pairs:
        torch.testing.assert_close(target, 0.75 * before + 0.25 * after)


def test_the_published_config():
    config = published.get_config()
    changes = {key: value for key, value in config.items() if value != drq.get_config()[key]}
    assert changes == {
        'cnn_features': (32, 64, 128, 256),
        'cnn_strides': (2, 2, 2, 2),
        'init_temperature': 0.1,
    }


def test_known_values_are_learnt():
    """White images are worth 1 and end the episode, black ones are worth 0."""
    # Seeds 0 and 1 draw filters that see nothing but black in a white image.
    agent = make_agent(3, backup_entropy=False, init_temperature=1e-4, temp_lr=0.0)
    rng = np.random.default_rng(0)
    for _ in range(120):
        white = rng.integers(0, 2, 16)
        images_ = np.broadcast_to(white[:, None, None, None, None] * 255, (16, 8, 8, 3, 2))
        pixels = {'pixels': images_.astype(np.uint8)}
        agent, _ = agent.update(
            {
                'observations': pixels,
                'actions': rng.uniform(-1, 1, (16, 2)).astype(np.float32),
                'rewards': white.astype(np.float32),
                'masks': np.zeros(16, np.float32),
                'dones': np.ones(16, bool),
                'next_observations': pixels,
            }
        )
    seen = {
        'pixels': torch.stack([torch.zeros(8, 8, 3, 2), torch.full((8, 8, 3, 2), 255.0)]).byte()
    }
    values = agent.critic(seen, torch.zeros(2, 2)).mean(0)
    torch.testing.assert_close(values, torch.tensor([0.0, 1.0]), rtol=0, atol=0.1)
