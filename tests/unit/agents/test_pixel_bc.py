"""PixelBC: what is its own beside BC's step (test_bc.py) and images (test_images.py)."""

import numpy as np
import pytest
import torch

from experiments.configs.jaxrl5 import pixel_bc as published
from purerl.agents.jaxrl5 import images, networks, pixel_bc
from purerl.agents.jaxrl5.bc import BCLearner
from purerl.agents.jaxrl5.pixel_bc import PixelBCLearner
from purerl.core import random, trees
from purerl.core.distributions import TanhTransformed

SMALL = {
    'cnn_features': (4,),
    'cnn_filters': (3,),
    'cnn_strides': (2,),
    'latent_dim': 6,
    'hidden_dims': (12,),
    'actor_lr': 1e-2,
}


def make_agent(seed=0, **overrides):
    config = pixel_bc.get_config()
    config.update({**SMALL, **overrides})
    observations = {'pixels': torch.zeros(1, 8, 8, 3, 2, dtype=torch.uint8)}
    return PixelBCLearner.create(seed, observations, torch.zeros(1, 2), config)


def make_batch(seed=0, size=4):
    rng = np.random.default_rng(seed)
    return {
        'observations': {'pixels': rng.integers(0, 256, (size, 8, 8, 3, 2), dtype=np.uint8)},
        'actions': rng.uniform(-0.9, 0.9, (size, 2)).astype(np.float32),
    }


def test_an_update_is_bcs_on_shifted_images():
    agent, batch = make_agent(dropout_rate=0.3), trees.map(torch.from_numpy, make_batch())
    rng, key = random.split(agent.rng)
    pixels = images.random_crop(random.split(key)[0], batch['observations']['pixels'])
    shifted = {**batch, 'observations': {'pixels': pixels}}
    expected = BCLearner.update(agent.replace(rng=rng), shifted)
    for ours, theirs in zip(trees.leaves(agent.update(batch)), trees.leaves(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_policies():
    observations = make_batch()['observations']
    squashed = make_agent().actor(trees.map(torch.from_numpy, observations))
    plain = make_agent(distr_name='Normal').actor(trees.map(torch.from_numpy, observations))
    assert isinstance(squashed, TanhTransformed)
    assert isinstance(plain, networks.TfpNormalDiag)
    torch.testing.assert_close(squashed.mode(), torch.tanh(plain.mode()))
    assert squashed.distribution.stddev().std() > 0  # it depends on the images
    with pytest.raises(ValueError, match="one of Normal, TanhNormal, not 'TanhDeterministic'"):
        make_agent(distr_name='TanhDeterministic')


def test_the_rate_decays_to_nothing():
    agent = make_agent(decay_steps=2)
    for seed in range(2):
        agent, _ = agent.update(make_batch(seed))
    after, _ = agent.update(make_batch(2))
    for old, new in zip(
        trees.leaves(agent.actor.params), trees.leaves(after.actor.params), strict=True
    ):
        assert torch.equal(old, new)
    with pytest.raises(ValueError, match='decay_steps'):
        make_agent(decay_steps=0)


def test_the_entropy_bonus_counts():
    plain, _ = make_agent().update(make_batch())
    bonus, _ = make_agent(entropy_bonus=0.5).update(make_batch())
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            trees.leaves(plain.actor.params), trees.leaves(bonus.actor.params), strict=True
        )
    )


def test_the_published_config():
    config = published.get_config()
    changes = {key: value for key, value in config.items() if value != pixel_bc.get_config()[key]}
    assert changes == {
        'actor_lr': 3e-4,
        'cnn_features': (32, 64, 128, 256),
        'cnn_strides': (2, 2, 2, 2),
        'dropout_rate': 0.1,
    }
    assert published.get_settings()['cosine_decay']


def test_a_behaviour_is_cloned():
    """Act to the right on white images, to the left on black ones."""
    agent = make_agent(dropout_rate=0.1)
    rng = np.random.default_rng(0)
    for _ in range(150):
        white = rng.integers(0, 2, 16)[:, None]
        pixels = np.broadcast_to(white[..., None, None, None] * 255, (16, 8, 8, 3, 2))
        actions = np.repeat(white - 0.5, 2, 1) + rng.normal(0, 0.05, (16, 2))
        batch = {
            'observations': {'pixels': pixels.astype(np.uint8)},
            'actions': actions.astype(np.float32),
        }
        agent, info = agent.update(batch)
    for value, expected in ((0, -0.5), (255, 0.5)):
        image = {'pixels': np.full((8, 8, 3, 2), value, np.uint8)}
        action, _ = agent.eval_actions(image)
        torch.testing.assert_close(action, torch.full((2,), expected), rtol=0, atol=0.1)
    assert info['nll'] < 0
