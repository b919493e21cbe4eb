"""random against jax.random: Gumbel numbers and booleans of both modes, draws without replacement.

On a CPU everything is equal bit for bit.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from purerl.core import random
from purerl.core.jit import jit

# The words of a key: the ends of the range, the sign bit, and others.
KEYS = [(0, 0), (0, 42), (2**32 - 1, 2**32 - 1), (2**31, 2**31 - 1), (123456789, 3987654321)]
SHAPES = [(), (0,), (7,), (3, 5), (20000,)]
LOGITS = np.random.RandomState(0).standard_normal((3, 4, 5)).astype(np.float32)


def keys_of(words):
    return torch.tensor(words), jnp.array(words, jnp.uint32)


def assert_same_bits(ours, theirs):
    theirs = np.asarray(theirs)
    ours = ours.numpy()
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('mode', ['low', 'high'])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('words', KEYS)
def test_gumbel_numbers(words, shape, mode):
    ours, theirs = keys_of(words)
    assert_same_bits(random.gumbel(ours, shape, mode), jax.random.gumbel(theirs, shape, mode=mode))


@pytest.mark.parametrize('p', [0.0, 1e-9, 3e-7, 0.3, 1.0])
@pytest.mark.parametrize('words', KEYS)
def test_booleans_of_the_high_mode(words, p):
    ours, theirs = keys_of(words)
    expected = jax.random.bernoulli(theirs, p, (20000,), mode='high')
    assert_same_bits(random.bernoulli(ours, p, (20000,), 'high'), expected)


@pytest.mark.parametrize('mode', ['low', 'high'])
def test_booleans_with_a_probability_each(mode):
    p = np.array([[0.1], [0.5], [0.9]], np.float32)
    ours, theirs = keys_of(KEYS[-1])
    for shape in (None, (3, 1), (3, 50), (2, 3, 50)):
        expected = jax.random.bernoulli(theirs, jnp.asarray(p), shape, mode=mode)
        assert_same_bits(random.bernoulli(ours, torch.from_numpy(p), shape, mode), expected)


@pytest.mark.parametrize('mode', ['low', 'high'])
@pytest.mark.parametrize('axis', [0, 1, -1])
@pytest.mark.parametrize('words', KEYS)
def test_indices_with_replacement(words, axis, mode):
    ours, theirs = keys_of(words)
    rest = tuple(np.delete(LOGITS.shape, axis))
    for shape in (None, (6, *rest)):
        expected = jax.random.categorical(theirs, jnp.asarray(LOGITS), axis, shape, mode=mode)
        actual = random.categorical(ours, torch.from_numpy(LOGITS), axis, shape, mode=mode)
        assert_same_bits(actual, expected)


@pytest.mark.parametrize(
    ('logits_shape', 'axis', 'shape'),
    [((1, 5), -1, (4,)), ((1, 5), -1, (2, 4)), ((5, 1), 0, (4,)), ((3, 5, 1), 1, (2, 3, 6))],
)
def test_a_shape_may_broadcast_the_logits(logits_shape, axis, shape):
    logits = np.random.RandomState(1).standard_normal(logits_shape).astype(np.float32)
    ours, theirs = keys_of(KEYS[1])
    expected = jax.random.categorical(theirs, jnp.asarray(logits), axis, shape)
    assert_same_bits(random.categorical(ours, torch.from_numpy(logits), axis, shape), expected)


@pytest.mark.parametrize('mode', ['low', 'high'])
@pytest.mark.parametrize('axis', [0, 1, -1])
@pytest.mark.parametrize('words', KEYS)
def test_indices_without_replacement(words, axis, mode):
    ours, theirs = keys_of(words)
    rest = tuple(np.delete(LOGITS.shape, axis))
    for prefix in ((), (1,), (2,), (3,), (LOGITS.shape[axis],), (1, 2), (0,)):
        shape = (*prefix, *rest)
        expected = jax.random.categorical(
            theirs, jnp.asarray(LOGITS), axis, shape, replace=False, mode=mode
        )
        actual = random.categorical(
            ours, torch.from_numpy(LOGITS), axis, shape, replace=False, mode=mode
        )
        assert_same_bits(actual, expected)


def test_without_replacement_no_index_comes_twice_and_impossible_ones_come_last():
    logits = np.array([0.0, -np.inf, 1.0, -np.inf, 2.0, -np.inf], np.float32)
    ours, theirs = keys_of(KEYS[1])
    actual = random.categorical(ours, torch.from_numpy(logits), shape=(6,), replace=False)
    assert actual[3:].tolist() == [1, 3, 5]
    assert sorted(actual[:3].tolist()) == [0, 2, 4]
    expected = jax.random.categorical(theirs, jnp.asarray(logits), shape=(6,), replace=False)
    assert_same_bits(actual, expected)


def test_what_does_not_fit_is_refused():
    key, logits = random.key(0), torch.zeros(3, 5)
    with pytest.raises(ValueError, match='cannot draw 6 of 5 indices without replacement'):
        random.categorical(key, logits, shape=(2, 3, 3), replace=False)
    for shape, replace in (((4,), True), ((), True), ((2, 3, 4), True), ((2, 4), False)):
        with pytest.raises(ValueError, match='does not end in'):
            random.categorical(key, logits, shape=shape, replace=replace)
    with pytest.raises(ValueError, match='does not end in'):  # only with replacement
        random.categorical(key, torch.zeros(1, 5), shape=(2, 4), replace=False)
    for draw in (
        lambda: random.gumbel(key, (2,), 'highest'),
        lambda: random.bernoulli(key, 0.5, (2,), 'highest'),
        lambda: random.categorical(key, logits, mode='highest'),
    ):
        with pytest.raises(ValueError, match="'low' or 'high', got 'highest'"):
            draw()


@pytest.mark.parametrize(
    'draw',
    [
        lambda k: random.gumbel(k, (3, 5), 'high'),
        lambda k: random.bernoulli(k, 0.3, (3, 5), 'high'),
        lambda k: random.categorical(k, torch.from_numpy(LOGITS), mode='high'),
        lambda k: random.categorical(k, torch.from_numpy(LOGITS), 1, (2, 3, 5), replace=False),
    ],
)
def test_vmap_stacks_and_jit_give_what_single_calls_give(draw):
    keys = random.split(random.key(5), 4)
    expected = torch.stack([draw(key) for key in keys])
    assert torch.equal(torch.func.vmap(draw)(keys), expected)
    assert torch.equal(jit(torch.func.vmap(draw), mode='trace')(keys), expected)


def test_stacked_keys_draw_each_their_own():
    keys = random.split(random.key(5), 4)
    expected = torch.stack([random.gumbel(key, (3,), 'high') for key in keys])
    assert torch.equal(random.gumbel(keys, (3,), 'high'), expected)


@pytest.mark.parametrize('bounds', [(-3e38, 3e38), (3e38, -3e38), (-3.4e38, 3.4e38)])
def test_a_range_beyond_float32_gives_infinities_without_a_warning(bounds):
    minval, maxval = bounds
    ours, theirs = keys_of(KEYS[-1])
    expected = np.asarray(jax.random.uniform(theirs, (1000,), minval=minval, maxval=maxval))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        actual = random.uniform(ours, (1000,), minval, maxval)
        tensors = random.uniform(ours, (1000,), torch.tensor(minval), torch.tensor(maxval))
    assert_same_bits(actual, expected)
    assert_same_bits(tensors, expected)
