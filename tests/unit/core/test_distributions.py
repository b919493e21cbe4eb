"""distributions against distrax, with gradients."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from purerl.core import random
from purerl.core.distributions import (
    Categorical,
    Deterministic,
    MultivariateNormalDiag,
    TanhTransformed,
)

RTOL = 1e-5  # float32, sums over a handful of terms
RNG = np.random.RandomState(0)
KEY, JAX_KEY = random.key(3), jax.random.PRNGKey(3)

SHAPES = {  # loc, scale
    'batch': ((16, 6), (16, 6)),
    'unbatched': ((6,), (6,)),
    'shared_scale': ((16, 6), (6,)),
    'two_axes': ((3, 4, 2), (3, 4, 2)),
}


def parameters(name):
    loc, scale = SHAPES[name]
    return (
        RNG.standard_normal(loc).astype(np.float32),
        np.exp(RNG.standard_normal(scale)).astype(np.float32),
    )


def close(ours, theirs, rtol=RTOL):
    assert tuple(ours.shape) == np.shape(theirs)
    np.testing.assert_allclose(ours.detach().numpy(), np.asarray(theirs), rtol=rtol, atol=rtol)


def normal(loc, scale):
    return MultivariateNormalDiag(loc, scale)


def squashed(loc, scale):
    return TanhTransformed(MultivariateNormalDiag(loc, scale))


def jax_normal(loc, scale):
    return distrax.MultivariateNormalDiag(loc, jnp.broadcast_to(scale, loc.shape))


def jax_squashed(loc, scale):
    return distrax.Transformed(jax_normal(loc, scale), distrax.Block(distrax.Tanh(), ndims=1))


@pytest.mark.parametrize('sample_shape', [(), (2, 3)], ids=str)
@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('kind', ['normal', 'squashed'])
def test_samples_and_log_probs(kind, name, sample_shape):
    loc, scale = parameters(name)
    make, jax_make = {'normal': (normal, jax_normal), 'squashed': (squashed, jax_squashed)}[kind]
    dist, reference = make(torch.from_numpy(loc), torch.from_numpy(scale)), jax_make(loc, scale)
    expected = reference.sample(seed=JAX_KEY, sample_shape=sample_shape)
    close(dist.sample(KEY, sample_shape), expected)
    samples, log_probs = dist.sample_and_log_prob(KEY, sample_shape)
    expected, expected_log_probs = reference.sample_and_log_prob(
        seed=JAX_KEY, sample_shape=sample_shape
    )
    close(samples, expected)
    close(log_probs, expected_log_probs)
    values = np.clip(RNG.standard_normal(loc.shape), -0.95, 0.95).astype(np.float32)
    close(dist.log_prob(torch.from_numpy(values)), reference.log_prob(values))


@pytest.mark.parametrize('kind', ['normal', 'squashed'])
def test_gradients(kind):
    loc, scale = parameters('batch')
    values = np.tanh(RNG.standard_normal(loc.shape)).astype(np.float32)
    make, jax_make = {'normal': (normal, jax_normal), 'squashed': (squashed, jax_squashed)}[kind]

    def loss(loc, scale):
        dist = make(loc, scale)
        samples, log_probs = dist.sample_and_log_prob(KEY)
        density = dist.log_prob(torch.from_numpy(values))
        return (samples**2).sum() + log_probs.sum() + density.sum()

    def jax_loss(loc, scale):
        dist = jax_make(loc, scale)
        samples, log_probs = dist.sample_and_log_prob(seed=JAX_KEY)
        return (samples**2).sum() + log_probs.sum() + dist.log_prob(values).sum()

    gradients = torch.func.grad(loss, (0, 1))(torch.from_numpy(loc), torch.from_numpy(scale))
    for ours, theirs in zip(gradients, jax.grad(jax_loss, (0, 1))(loc, scale), strict=True):
        close(ours, theirs)


def test_normal_statistics():
    loc, scale = parameters('shared_scale')
    dist, reference = normal(torch.tensor(loc), torch.tensor(scale)), jax_normal(loc, scale)
    close(dist.mode(), reference.mode())
    close(dist.stddev(), reference.stddev())
    close(dist.entropy(), reference.entropy())
    assert torch.equal(dist.scale_diag, torch.tensor(scale))


@pytest.mark.parametrize('shapes', [((3,), (5, 3)), ((4, 1, 3), (5, 3))], ids=str)
def test_normal_of_a_shared_mean(shapes):
    loc, scale = (np.exp(RNG.standard_normal(shape)).astype(np.float32) for shape in shapes)
    ours = normal(torch.from_numpy(loc), torch.from_numpy(scale))
    theirs = distrax.MultivariateNormalDiag(loc, scale)
    close(ours.mode(), theirs.mode())
    close(ours.stddev(), theirs.stddev())
    close(ours.entropy(), theirs.entropy())
    close(squashed(ours.loc, ours.scale_diag).mode(), jnp.tanh(theirs.mode()))


def test_sample_shapes_that_are_numbers():
    loc, logits = torch.zeros(3), torch.zeros(4, 3)
    for distribution in (normal(loc, loc + 1), squashed(loc, loc + 1), Categorical(logits)):
        assert torch.equal(distribution.sample(KEY, 2), distribution.sample(KEY, (2,)))
    assert Deterministic(loc).sample(KEY, 2).shape == (2, 3)


def test_categorical_of_one_value_for_a_batch():
    logits = RNG.standard_normal((2, 3, 5)).astype(np.float32)
    ours, theirs = Categorical(torch.from_numpy(logits)), distrax.Categorical(logits)
    for value in (np.int32(4), np.array([0, 2, 4]), np.arange(3).reshape(3, 1, 1)):
        close(ours.log_prob(torch.as_tensor(value)), theirs.log_prob(value))


def test_squashed_mode_and_inner_attributes():
    loc, scale = parameters('batch')
    dist = squashed(torch.from_numpy(loc), torch.from_numpy(scale))
    close(dist.mode(), np.tanh(loc))
    # As in InFOM's TransformedWithMode, the deviations handed out are the inner ones.
    close(dist.stddev(), scale)
    close(dist.scale_diag, scale)
    for name in ('entropy', 'nothing'):
        with pytest.raises(AttributeError, match=name):
            getattr(dist, name)


def test_own_samples_keep_finite_log_probs_at_saturation():
    loc = np.array([[20.0, -20.0], [9.5, 0.0], [100.0, 1e4]], np.float32)
    scale = np.ones_like(loc)
    dist, reference = squashed(*map(torch.from_numpy, (loc, scale))), jax_squashed(loc, scale)
    samples, log_probs = dist.sample_and_log_prob(KEY)
    expected, expected_log_probs = reference.sample_and_log_prob(seed=JAX_KEY)
    assert samples.abs().max() == 1
    assert torch.isfinite(log_probs).all()
    close(samples, expected)
    close(log_probs, expected_log_probs)

    def loss(loc):
        return squashed(loc, torch.from_numpy(scale)).sample_and_log_prob(KEY)[1].sum()

    assert torch.isfinite(torch.func.grad(loss)(torch.from_numpy(loc))).all()


def test_log_prob_at_the_ends_is_that_of_distrax():
    loc, scale = np.zeros((1,), np.float32), np.ones((1,), np.float32)
    dist, reference = squashed(*map(torch.from_numpy, (loc, scale))), jax_squashed(loc, scale)
    for value in (1.0, -1.0):
        assert np.isnan(reference.log_prob(np.full(1, value, np.float32)))
        assert torch.isnan(dist.log_prob(torch.full((1,), value)))
    for value in (0.999999, -0.9999, 0.0):
        x = np.full((1,), value, np.float32)
        # Near an end atanh magnifies one ulp of its argument by 1 / (1 - x**2), up to 5e5.
        rtol = RTOL if abs(value) < 0.99 else 1e-2 if abs(value) > 0.9999 else 1e-4
        close(dist.log_prob(torch.from_numpy(x)), reference.log_prob(x), rtol)


@pytest.mark.parametrize('shape', [(5,), (16, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize('sample_shape', [(), (2, 3)], ids=str)
def test_categorical(shape, sample_shape):
    logits = RNG.standard_normal(shape).astype(np.float32) * 3
    dist, reference = Categorical(torch.from_numpy(logits)), distrax.Categorical(logits)
    samples, log_probs = dist.sample_and_log_prob(KEY, sample_shape)
    expected = reference.sample(seed=JAX_KEY, sample_shape=sample_shape)
    assert samples.dtype == torch.int32
    np.testing.assert_array_equal(samples.numpy(), np.asarray(expected))
    assert torch.equal(dist.sample(KEY, sample_shape), samples)
    close(log_probs, reference.log_prob(expected))
    close(dist.probs, reference.probs)
    close(dist.logits, reference.logits)
    close(dist.entropy(), reference.entropy())
    np.testing.assert_array_equal(dist.mode().numpy(), np.asarray(reference.mode()))
    assert dist.mode().dtype == torch.int32


def test_categorical_with_impossible_categories():
    logits = np.array([[0.0, -np.inf, 1.0], [-np.inf, -np.inf, 2.0]], np.float32)
    dist, reference = Categorical(torch.from_numpy(logits)), distrax.Categorical(logits)
    close(dist.entropy(), reference.entropy())
    close(dist.log_prob(torch.tensor([1, 2])), reference.log_prob(jnp.array([1, 2])))


def test_categorical_gradients():
    logits = RNG.standard_normal((4, 5)).astype(np.float32)
    logits[0, 1] = -np.inf
    values = np.array([0, 4, 2, 1])

    def loss(logits):
        dist = Categorical(logits)
        return dist.log_prob(torch.from_numpy(values)).sum() + dist.entropy().sum()

    def jax_loss(logits):
        dist = distrax.Categorical(logits)
        return dist.log_prob(values).sum() + dist.entropy().sum()

    close(torch.func.grad(loss)(torch.from_numpy(logits)), jax.grad(jax_loss)(logits))


@pytest.mark.parametrize('shape', [(), (3,), (4, 3)], ids=str)
@pytest.mark.parametrize('sample_shape', [(), (2,)], ids=str)
def test_deterministic(shape, sample_shape):
    loc = RNG.standard_normal(shape).astype(np.float32)
    dist, reference = Deterministic(torch.tensor(loc)), distrax.Deterministic(loc)
    samples, log_probs = dist.sample_and_log_prob(KEY, sample_shape)
    close(samples, reference.sample(seed=JAX_KEY, sample_shape=sample_shape))
    close(log_probs, reference.log_prob(samples.numpy()))
    close(dist.log_prob(torch.tensor(loc) + 1), reference.log_prob(loc + 1))
    close(dist.mode(), reference.mode())
    close(dist.entropy(), reference.entropy())


@pytest.mark.parametrize('make', [normal, squashed])
def test_vmap_over_seeds_equals_loop(make):
    loc, scale = (torch.from_numpy(x) for x in parameters('batch'))
    keys = random.split(KEY, 3)
    ours = torch.func.vmap(lambda key: make(loc, scale).sample_and_log_prob(key))(keys)
    for i, key in enumerate(keys):
        for batched, single in zip(ours, make(loc, scale).sample_and_log_prob(key), strict=True):
            assert torch.equal(batched[i], single)
