"""random against jax.random: keys, bits and integers exactly, floats bit for bit on a CPU."""

import contextlib
import random as python_random
import warnings

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from purerl.core import random
from purerl.core.jit import jit

MASK = 0xFFFFFFFF
# The words of a key: the ends of the range, the sign bit, and others.
KEYS = [(0, 0), (0, 1), (0, 42), (MASK, MASK), (2**31, 2**31 - 1), (123456789, 3987654321)]
SHAPES = [(), (0,), (1,), (7,), (3, 5), (70000,)]
OLD = jax.__version_info__ < (0, 7)  # the last versions for Python 3.10
ULPS = 3 if OLD else 1  # their XLA rounds the inverse error function differently
enable_x64 = jax.experimental.enable_x64 if OLD else jax.enable_x64
KEY, JAX_KEY = torch.tensor([7, 2**31 + 5]), jnp.array([7, 2**31 + 5], jnp.uint32)
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
LOGITS = np.random.RandomState(0).standard_normal((3, 4, 5)).astype(np.float32)
IMAGE = np.arange(60, dtype=np.float32).reshape(3, 4, 5)

# name: (ours, JAX's), both of (random module, key, shape); the results are floats.
FLOATS = {
    'uniform': lambda r, k, s: r.uniform(k, s),
    'uniform_symmetric': lambda r, k, s: r.uniform(k, s, minval=-1.0, maxval=1.0),
    'uniform_bounds': lambda r, k, s: r.uniform(k, s, minval=0.1, maxval=3.7),
    'uniform_reversed': lambda r, k, s: r.uniform(k, s, minval=2.0, maxval=1.0),
    'normal': lambda r, k, s: r.normal(k, s),
    'truncated_normal': lambda r, k, s: r.truncated_normal(k, -2, 2, s),
    'truncated_normal_one_sided': lambda r, k, s: r.truncated_normal(k, 0.5, 3.5, s),
    'truncated_normal_narrow': lambda r, k, s: r.truncated_normal(k, -0.3, 0.7, s),
    'truncated_normal_tail': lambda r, k, s: r.truncated_normal(k, 1.1, 1.4, s),
    'gumbel': lambda r, k, s: r.gumbel(k, s),
    'exponential': lambda r, k, s: r.exponential(k, s),
}
INTEGERS = {
    'bernoulli': lambda r, k, s: r.bernoulli(k, 0.3, s),
    'randint': lambda r, k, s: r.randint(k, s, -5, 1000),
}
DRAWS = {**FLOATS, **INTEGERS}


def ulps(a, b) -> np.ndarray:
    """Count the float32 numbers between `a` and `b`."""

    def order(x):
        bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return np.abs(order(a) - order(b))


def keys_of(words):
    return torch.tensor(words), jnp.array(words, jnp.uint32)


def assert_equal(ours, theirs):
    """Equal numbers and shapes; dtypes as JAX's, but for words, which are int64 here."""
    theirs = np.asarray(theirs)
    assert tuple(ours.shape) == theirs.shape
    expected = 'int64' if theirs.dtype == np.uint32 else str(theirs.dtype)
    assert str(ours.dtype) == f'torch.{expected}'
    np.testing.assert_array_equal(ours.numpy(), theirs)


# --- Keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'seed',
    [
        *(0, 1, 42, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**40 + 7, 2**63 - 1),
        *(-1, -(2**31), -(2**63)),
        *(np.int32(5), np.int64(2**40 + 3), np.uint32(MASK), np.uint8(3), np.int64(-3)),
    ],
)
def test_key(seed):
    assert_equal(random.key(seed), jax.random.PRNGKey(seed))


@pytest.mark.parametrize('seed', [2**63, 2**64, -(2**63) - 1])
def test_seeds_that_are_too_large(seed):
    with pytest.raises(OverflowError, match='64 bits'):
        random.key(seed)
    with pytest.raises(OverflowError):
        jax.random.PRNGKey(seed)


@pytest.mark.parametrize('seed', [True, np.bool_(False), 1.0, np.float32(1), '1', None])
def test_seeds_that_are_no_integers(seed):
    with pytest.raises(TypeError, match='must be an integer'):
        random.key(seed)


@pytest.mark.parametrize('words', KEYS)
@pytest.mark.parametrize('num', [0, 1, 2, 3, 5, 100, (), (2, 3), (0, 2)])
def test_split(words, num):
    key, jax_key = keys_of(words)
    assert_equal(random.split(key, num), jax.random.split(jax_key, num))


@pytest.mark.parametrize('words', KEYS)
@pytest.mark.parametrize('data', [0, 1, 2, 2**31 - 1, 2**31, MASK])
def test_fold_in(words, data):
    key, jax_key = keys_of(words)
    expected = jax.random.fold_in(jax_key, data)
    assert_equal(random.fold_in(key, data), expected)
    assert_equal(random.fold_in(key, torch.tensor(data)), expected)
    assert_equal(random.fold_in(key, data + 2**32), expected)


@pytest.mark.parametrize('data', [-1, -7, -(2**31)])
def test_fold_in_takes_negative_numbers_as_jax_takes_int32_arrays(data):
    expected = jax.random.fold_in(JAX_KEY, jnp.int32(data))
    assert_equal(random.fold_in(KEY, data), expected)
    assert_equal(random.fold_in(KEY, torch.tensor(data, dtype=torch.int32)), expected)


def test_a_long_chain_of_keys():
    key, jax_key = random.key(0), jax.random.PRNGKey(0)
    for i in range(50):
        key, sub = random.split(key)
        jax_key, jax_sub = jax.random.split(jax_key)
        key, jax_key = random.fold_in(key, i), jax.random.fold_in(jax_key, i)
        assert_equal(sub, jax_sub)
    assert_equal(key, jax_key)


@pytest.mark.parametrize(
    'value',
    [0, None, np.zeros(2, np.uint32), torch.zeros(2), torch.tensor(0), torch.zeros(3).long()],
)
@pytest.mark.parametrize('use', [random.split, random.normal, lambda k: random.fold_in(k, 1)])
def test_what_is_no_key(value, use):
    with pytest.raises(TypeError, match='key'):
        use(value)


# --- Draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('name', FLOATS)
def test_floats(name, shape):
    draw = FLOATS[name]
    # Bit for bit where these numbers were made; other builds of XLA may contract differently.
    unequal = total = 0
    for words in KEYS if shape != (70000,) else KEYS[:2]:
        key, jax_key = keys_of(words)
        ours, theirs = draw(random, key, shape), np.asarray(draw(jax.random, jax_key, shape))
        assert ours.dtype == torch.float32
        assert tuple(ours.shape) == theirs.shape
        distance = ulps(ours.numpy(), theirs)
        assert distance.max(initial=0) <= ULPS
        unequal, total = unequal + np.count_nonzero(distance), total + distance.size
    assert unequal <= total // 100


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('width', [8, 16, 32, 64])
def test_bits(width, shape):
    for words in KEYS:
        key, jax_key = keys_of(words)
        with enable_x64(True):
            expected = jax.random.bits(jax_key, shape, dtype=f'uint{width}')
        assert_equal(random.bits(key, shape, width), expected)


def test_truncated_normal_between_many_bounds():
    rng = np.random.RandomState(0)
    for lower, upper in np.sort(rng.uniform(-3, 3, (30, 2))).tolist():
        ours = random.truncated_normal(KEY, lower, upper, (300,))
        theirs = jax.random.truncated_normal(JAX_KEY, lower, upper, (300,))
        assert ulps(ours.numpy(), np.asarray(theirs)).max() <= ULPS, (lower, upper)


def test_truncated_normal_refuses_arrays_of_bounds():
    for bound in (WEIGHTS, torch.from_numpy(WEIGHTS)):
        with pytest.raises(ValueError, match='bounds are numbers'):
            random.truncated_normal(KEY, bound, 2.0, (4,))


def test_bits_width():
    with pytest.raises(ValueError, match='bit_width'):
        random.bits(KEY, (2,), 24)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_bernoulli(shape):
    for words in KEYS[-2:]:
        key, jax_key = keys_of(words)
        for p in (0.0, 0.3, 0.5, 0.1, 1.0):
            assert_equal(random.bernoulli(key, p, shape), jax.random.bernoulli(jax_key, p, shape))


def test_bernoulli_of_probabilities():
    p = torch.from_numpy(WEIGHTS)
    assert_equal(random.bernoulli(KEY, p), jax.random.bernoulli(JAX_KEY, WEIGHTS))
    assert_equal(random.bernoulli(KEY, p, (3, 4)), jax.random.bernoulli(JAX_KEY, WEIGHTS, (3, 4)))
    assert_equal(random.bernoulli(KEY, 0.3), jax.random.bernoulli(JAX_KEY, 0.3))


@pytest.mark.parametrize('bounds', [(WEIGHTS, WEIGHTS + 1), (0.5, WEIGHTS + 1), (WEIGHTS, 2.0)])
def test_uniform_between_tensors(bounds):
    low, high = bounds
    ours = [torch.from_numpy(b) if isinstance(b, np.ndarray) else b for b in bounds]
    expected = jax.random.uniform(JAX_KEY, (50, 4), minval=low, maxval=high)
    drawn = random.uniform(KEY, (50, 4), *ours)
    if jax.__version_info__ < (0, 11):
        assert_equal(drawn, expected)
    else:  # XLA contracts the product with the span and the sum, here only
        np.testing.assert_array_max_ulp(drawn.numpy(), np.asarray(expected), maxulp=1)


# Spans that are powers of two, odd, negative, empty and the widest that JAX takes.
RANGES = [(0, 10), (-5, 5), (-7, -3), (0, 1), (3, 3), (5, 2), (0, 2**16), (0, 2**20), (-(2**31), 0)]
RANGES += [(0, 2**31 - 1), (-(2**30), 2**31 - 1), (-(2**31), 2**31 - 1), (-(2**31), -(2**31) + 1)]
# Only reachable in JAX with 64-bit types, then clipped to int32 (maxval to one above).
WIDE_RANGES = [(-(2**31), 2**31), (2**31 - 1, 2**31), (0, 2**31), (0, 3 * 2**30), (2**31, 2**32)]
WIDE_RANGES += [(-(2**40), 2**40), (-(2**40), -(2**33)), (-(2**40), 5)]


@pytest.mark.parametrize('low, high', RANGES + WIDE_RANGES)
def test_randint(low, high):
    wide = (low, high) in WIDE_RANGES
    for words in KEYS:
        key, jax_key = keys_of(words)
        for shape in ((), (7,), (3, 5)) if words == KEYS[0] else ((1000,),):
            with enable_x64(wide):
                expected = jax.random.randint(jax_key, shape, low, high, jnp.int32)
            ours = random.randint(key, shape, low, high)
            assert_equal(ours, expected)
            assert_equal(
                random.randint(key, shape, torch.tensor(low), torch.tensor(high)), expected
            )
            indices = random.randint(key, shape, low, high, dtype=torch.int64)
            assert indices.dtype == torch.int64
            assert torch.equal(indices, ours.long())


@pytest.mark.parametrize('num', [0, 1, 2, 7, 1000, 70000])
def test_permutation_of_a_range(num):
    for words in KEYS[:3]:
        key, jax_key = keys_of(words)
        ours = random.permutation(key, num)
        assert_equal(ours, jax.random.permutation(jax_key, num))
        assert torch.equal(ours.sort().values, torch.arange(num, dtype=torch.int32))


@pytest.mark.parametrize('independent', [False, True])
@pytest.mark.parametrize('axis', [0, 1, -1])
def test_permutation_of_an_array(axis, independent):
    ours = random.permutation(KEY, torch.from_numpy(IMAGE), axis, independent)
    assert_equal(ours, jax.random.permutation(JAX_KEY, IMAGE, axis, independent))


def test_permutation_keeps_dtypes():
    x = np.array([True, False, True, True])
    assert_equal(random.permutation(KEY, torch.from_numpy(x)), jax.random.permutation(JAX_KEY, x))


NEGATIVE = np.array([0.5, -0.2, 0.3, 0.4], np.float32)
ZEROS = np.array([0.0, 0.5, 0.0, 0.5], np.float32)


@pytest.mark.parametrize('shape', [(), (0,), (2,), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize('replace', [True, False])
@pytest.mark.parametrize('p', [None, WEIGHTS, NEGATIVE, ZEROS], ids=['none', 'p', 'neg', 'zeros'])
def test_choice(shape, replace, p):
    for words in KEYS:
        key, jax_key = keys_of(words)
        ours = random.choice(key, 4, shape, replace, None if p is None else torch.from_numpy(p))
        assert_equal(ours, jax.random.choice(jax_key, 4, shape, replace, p))


@pytest.mark.parametrize('spoilt', [None, np.nan, np.inf])
@pytest.mark.parametrize('num', [1, 5, 7, 64, 100])
def test_choice_of_many_with_negative_probabilities(num, spoilt):
    rng = np.random.RandomState(1)
    for _ in range(5):
        p = (rng.standard_normal(num) + 0.5).astype(np.float32)
        if spoilt is not None:
            p[num // 2] = spoilt
        ours = random.choice(KEY, num, (2000,), p=torch.from_numpy(p))
        assert_equal(ours, jax.random.choice(JAX_KEY, num, (2000,), p=p))


@pytest.mark.parametrize('num', [1, 10, 16, 17, 64, 256, 257, 5000, 100_000])
def test_cumulative_sums_are_those_of_xla(num):
    p = np.random.RandomState(num).exponential(size=(2, num)).astype(np.float32) ** 3
    np.testing.assert_array_equal(
        random._cumsum(torch.from_numpy(p)).numpy(), np.asarray(jnp.cumsum(p, axis=1))
    )
    p = p[0] / p[0].sum()
    ours = random.choice(KEY, num, (20_000,), p=torch.from_numpy(p))
    assert_equal(ours, jax.random.choice(JAX_KEY, num, (20_000,), p=p))


@pytest.mark.parametrize('axis', [0, 1, -1])
@pytest.mark.parametrize('shape', [(), (2,), (1, 2)], ids=str)
@pytest.mark.parametrize('replace', [True, False])
@pytest.mark.parametrize('weighted', [False, True])
def test_choice_of_an_array(axis, shape, replace, weighted):
    p = np.arange(1, IMAGE.shape[axis] + 1, dtype=np.float32) if weighted else None
    p = None if p is None else p / p.sum()
    tensor = torch.from_numpy(IMAGE)
    ours = random.choice(KEY, tensor, shape, replace, None if p is None else torch.tensor(p), axis)
    assert_equal(ours, jax.random.choice(JAX_KEY, IMAGE, shape, replace, p, axis))


def test_choice_refuses():
    with pytest.raises(ValueError, match='cannot draw 5 of 4'):
        random.choice(KEY, 4, (5,), replace=False)
    with pytest.raises(ValueError, match='no elements'):
        random.choice(KEY, 0, (1,))
    assert random.choice(KEY, 0, (0,)).shape == (0,)


@pytest.mark.parametrize('prefix', [None, (), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize('axis', [0, 1, -1])
def test_categorical(axis, prefix):
    batch = tuple(int(n) for n in np.delete(LOGITS.shape, axis))
    shape = None if prefix is None else (*prefix, *batch)
    ours = random.categorical(KEY, torch.from_numpy(LOGITS), axis, shape)
    assert_equal(ours, jax.random.categorical(JAX_KEY, LOGITS, axis, shape))


def test_categorical_of_a_vector_and_of_impossible_categories():
    logits = LOGITS[0, 0].copy()
    logits[:2] = -np.inf
    ours = random.categorical(KEY, torch.from_numpy(logits), shape=(1000,))
    assert_equal(ours, jax.random.categorical(JAX_KEY, logits, shape=(1000,)))
    assert ours.min() == 2
    assert random.categorical(KEY, torch.from_numpy(logits)).shape == ()


BAD_DRAWS = {
    'p is too short': lambda r, k, x: r.choice(k, 5, (9,), p=x[0, :, 0]),
    'p is too long': lambda r, k, x: r.choice(k, 3, (9,), False, p=x[0, :, 0]),
    'choice: axis': lambda r, k, x: r.choice(k, x, (2,), axis=3),
    'permutation: axis': lambda r, k, x: r.permutation(k, x, -4),
    'permutation of a range: axis': lambda r, k, x: r.permutation(k, 5, 1),
    'bernoulli: long p': lambda r, k, x: r.bernoulli(k, x, (5,)),
    'bernoulli: other p': lambda r, k, x: r.bernoulli(k, x[0, 0], (4,)),
    'uniform: long bound': lambda r, k, x: r.uniform(k, (5,), minval=x),
    'uniform: other bound': lambda r, k, x: r.uniform(k, (1,), minval=x[0, 0]),
    'randint: other bound': lambda r, k, x: r.randint(k, (4,), 0, x[0, 0].astype('int32')),
}


@pytest.mark.parametrize('name', BAD_DRAWS)
def test_parameters_that_do_not_fit(name):
    draw = BAD_DRAWS[name]
    with pytest.raises(ValueError, match=r'axis|p has shape|does not broadcast'):
        draw(random, KEY, LOGITS)
    with pytest.raises((ValueError, TypeError)):
        draw(jax.random, JAX_KEY, LOGITS)


def test_categorical_has_no_axis_beyond_those_of_the_logits():
    for axis in (3, -4):
        with pytest.raises(ValueError, match='axis'):
            random.categorical(KEY, torch.from_numpy(LOGITS), axis)
    with pytest.raises(ValueError, match='axis'):
        random.categorical(KEY, torch.tensor(0.0))


NUMPY = {
    'split': lambda r, k: r.split(k, np.int64(3)),
    'split_to_a_shape': lambda r, k: r.split(k, (np.int64(2), 3)),
    'permutation': lambda r, k: r.permutation(k, np.int64(5)),
    'permutation_of_an_array': lambda r, k: r.permutation(k, np.arange(5)),
    'choice': lambda r, k: r.choice(k, np.int64(5), (2, 3)),
    'choice_of_an_array': lambda r, k: r.choice(k, np.arange(5), (2,)),
    'choice_by_probabilities': lambda r, k: r.choice(k, 4, (2,), p=WEIGHTS.astype(np.float64)),
    'categorical': lambda r, k: r.categorical(k, LOGITS.astype(np.float64)),
    'bernoulli': lambda r, k: r.bernoulli(k, WEIGHTS.astype(np.float64), (50, 4)),
    'randint': lambda r, k: r.randint(k, (4,), np.arange(4), np.arange(4) + 9),
    'uniform': lambda r, k: r.uniform(k, (4,), minval=np.zeros(4), maxval=np.ones(4)),
}


@pytest.mark.parametrize('name', NUMPY)
def test_arguments_from_numpy(name):
    assert_equal(NUMPY[name](random, KEY), NUMPY[name](jax.random, JAX_KEY))


@pytest.mark.filterwarnings('error')
def test_arguments_may_be_read_only_arrays_and_tensors_that_are_counts():
    p = WEIGHTS.copy()
    p.setflags(write=False)
    assert_equal(random.choice(KEY, 4, (9,), p=p), jax.random.choice(JAX_KEY, 4, (9,), p=p))
    expected = jax.random.choice(JAX_KEY, 5, (2, 3))
    assert_equal(random.choice(KEY, torch.tensor(5), (2, 3)), expected)
    assert_equal(random.permutation(KEY, torch.tensor(5)), jax.random.permutation(JAX_KEY, 5))


def test_categorical_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match='does not end in'):
        random.categorical(KEY, torch.from_numpy(LOGITS), shape=(3, 5))


def test_elementary_functions_are_those_of_xla():
    x = np.linspace(-1, 1, 20001, dtype=np.float32)
    cases = [
        (random._erfinv, jax.lax.erf_inv, x),
        (random._log1p, jnp.log1p, x),
        (random._log, jnp.log, np.abs(x) * np.float32(7)),
        (lambda t: torch.from_numpy(random._xla_erf(t.numpy())), jax.lax.erf, x * np.float32(5)),
    ]
    for ours, theirs, values in cases:
        expected = np.asarray(theirs(values))
        result = ours(torch.from_numpy(values))
        # As above; infinities (erfinv and log at their ends) have to match as they are.
        assert ulps(result.numpy(), expected).max() <= ULPS
    # 0-d and non-contiguous tensors.
    assert random._erfinv(torch.tensor(0.5)).shape == ()
    square = torch.rand(3, 4, generator=random.generator(KEY))
    assert torch.equal(random._erfinv(square.T), random._erfinv(square).T)


# --- Transformations ------------------------------------------------------------------------------


def all_draws(key):
    """Every function, on one key; a list of tensors."""
    logits, image = torch.from_numpy(LOGITS), torch.from_numpy(IMAGE)
    p = torch.from_numpy(NEGATIVE)
    return [
        *(draw(random, key, (2, 3)) for draw in DRAWS.values()),
        *(draw(random, key, ()) for draw in DRAWS.values()),
        random.split(key, 3),
        random.split(key, (2, 2)),
        random.fold_in(key, 5),
        random.fold_in(key, torch.tensor(2**31)),
        random.bits(key, (5,)),
        random.bits(key, (5,), 8).long(),
        random.randint(key, (2, 3), torch.tensor(-9), torch.tensor(2**31)),
        random.uniform(key, (3, 4), p, p + 2),
        random.bernoulli(key, p.abs()),
        random.permutation(key, 9),
        random.permutation(key, image, 1),
        random.permutation(key, image, 1, independent=True),
        random.choice(key, 7, (3,)),
        random.choice(key, 7, (3,), replace=False),
        random.choice(key, 4, (3, 2), p=p),
        random.choice(key, 300, (3, 2), p=torch.linspace(0.1, 1, 300)),
        random.choice(key, 4, (3,), replace=False, p=torch.from_numpy(WEIGHTS)),
        random.choice(key, image, (2,), axis=-1),
        random.categorical(key, logits),
        random.categorical(key, logits, 0, (2, 4, 5)),
    ]


def some_draws(key):
    """The functions from which the others are made: short enough to generate code for."""
    return [
        random.split(key, 3),
        random.fold_in(key, 5),
        random.uniform(key, (2, 3), 0.1, 3.7),
        random.normal(key, (7,)),
        random.truncated_normal(key, -2, 2, (3,)),
        random.bernoulli(key, 0.3, (5,)),
        random.randint(key, (2, 3), -5, 1000),
        random.permutation(key, 9),
        random.choice(key, 4, (3,), p=torch.from_numpy(NEGATIVE)),
        random.choice(key, 40, (99,), p=torch.linspace(0.1, 1, 40)),
        random.categorical(key, torch.from_numpy(LOGITS)),
        random.exponential(key, ()),
    ]


def assert_all_equal(ours, expected):
    assert len(ours) == len(expected)
    for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert a.dtype == b.dtype and torch.equal(a, b), f'draw {i}: {a} against {b}'


def test_traced_equals_eager():
    traced = make_fx(all_draws)(random.key(3))
    for words in KEYS:
        assert_all_equal(traced(torch.tensor(words)), all_draws(torch.tensor(words)))


def test_compiled_equals_eager():
    compiled = jit(lambda key: some_draws(key), mode='inductor')
    for words in KEYS:
        assert_all_equal(compiled(torch.tensor(words)), some_draws(torch.tensor(words)))
    assert compiled.num_programs == 1


def looped(fn, keys):
    return [torch.stack(row) for row in zip(*(fn(key) for key in keys), strict=True)]


def test_vmap_equals_loop():
    keys = torch.tensor(KEYS)
    assert_all_equal(torch.func.vmap(all_draws)(keys), looped(all_draws, keys))


def test_vmap_over_another_axis():
    keys = torch.tensor(KEYS)
    ours = torch.func.vmap(all_draws, in_dims=1)(keys.T.contiguous())
    assert_all_equal(ours, looped(all_draws, keys))


def test_nested_vmap_equals_loops():
    keys = random.split(KEY, (2, 3))
    ours = torch.func.vmap(torch.func.vmap(all_draws))(keys)
    assert_all_equal(ours, looped(lambda row: looped(all_draws, row), keys))


def test_traced_vmap_equals_loop():
    keys = torch.tensor(KEYS)
    traced = make_fx(torch.func.vmap(all_draws))(keys)
    assert_all_equal(traced(keys.flip(0)), looped(all_draws, keys.flip(0)))


def test_vmap_over_data():
    data = torch.arange(-3, 4)
    ours = torch.func.vmap(lambda i: random.fold_in(KEY, i))(data)
    assert torch.equal(ours, torch.stack([random.fold_in(KEY, int(i)) for i in data]))
    keys = random.split(KEY, 7)
    ours = torch.func.vmap(random.fold_in)(keys, data)
    pairs = zip(keys, data, strict=True)
    assert torch.equal(ours, torch.stack([random.fold_in(k, int(i)) for k, i in pairs]))
    ours = torch.func.vmap(lambda high: random.randint(KEY, (5,), 0, high))(data + 10)
    assert torch.equal(ours, torch.stack([random.randint(KEY, (5,), 0, int(i)) for i in data + 10]))


def test_functions_of_stacked_keys_draw_for_each():
    keys = torch.tensor(KEYS)
    for fn in (random.split, lambda k: random.normal(k, (3,)), lambda k: random.fold_in(k, 3)):
        assert torch.equal(fn(keys), torch.stack([fn(key) for key in keys]))


STACKED = {
    'permutation': lambda r, k, x: r.permutation(k, 9),
    'permutation_of_an_array': lambda r, k, x: r.permutation(k, x, 1),
    'choice': lambda r, k, x: r.choice(k, 9, (3,), False),
    'choice_of_an_array': lambda r, k, x: r.choice(k, x, (2,)),
    'choice_by_probabilities': lambda r, k, x: r.choice(k, 3, (2, 2), p=abs(x[:, 0, 1])),
    'categorical': lambda r, k, x: r.categorical(k, x[0, 0]),
    'categorical_of_a_batch': lambda r, k, x: r.categorical(k, x, 1, (2, 3, 5)),
    'categorical_without_replacement': lambda r, k, x: r.categorical(k, x, 0, (2, 4, 5), False),
}


@pytest.mark.parametrize('name', STACKED)
def test_stacked_keys_choose_as_under_vmap(name):
    draw, x = STACKED[name], torch.from_numpy(LOGITS)
    keys, jax_keys = torch.tensor(KEYS), jnp.array(KEYS, jnp.uint32)
    expected = jax.vmap(lambda key: draw(jax.random, key, LOGITS))(jax_keys)
    assert_equal(draw(random, keys, x), expected)
    ours = draw(random, keys.reshape(2, 3, 2), x)
    assert_equal(ours, np.asarray(expected).reshape(2, 3, *expected.shape[1:]))


def test_draws_are_constants_under_grad():
    def loss(scale):
        return (scale * random.normal(KEY, (100,)) + random.gumbel(KEY, (100,))).sum()

    expected = random.normal(KEY, (100,)).sum()
    torch.testing.assert_close(torch.func.grad(loss)(torch.tensor(2.0)), expected)


@pytest.fixture
def numpy_kernels():
    @contextlib.contextmanager
    def use():
        library = torch.library.Library('purerl', 'IMPL')
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of kernels that override others
                for name, kernel in random._KERNELS.items():
                    library.impl(name, kernel, 'CPU', allow_override=True)
            yield
        finally:
            library._destroy()

    return use


def test_numpy_kernels_equal_compiled_ones(numpy_kernels):
    def draws(key):
        return [*all_draws(key), *(draw(random, key, (5001,)) for draw in DRAWS.values())]

    keys = torch.tensor(KEYS)
    expected, batched = looped(draws, keys), torch.func.vmap(draws)(keys)
    with numpy_kernels():
        assert_all_equal(looped(draws, keys), expected)
        assert_all_equal(torch.func.vmap(draws)(keys), batched)


@pytest.mark.parametrize('traced', [False, True])
def test_inline_cipher_as_on_a_gpu(monkeypatch, traced):
    keys, draws = torch.tensor(KEYS), some_draws if traced else all_draws
    expected = looped(draws, keys)
    monkeypatch.setattr(random, '_opaque', lambda x: False)
    inline = make_fx(draws)(KEY) if traced else draws
    if traced:
        targets = [str(node.target) for node in inline.graph.nodes]
        assert not [target for target in targets if target.startswith('purerl')]
    for ours, reference in zip(looped(inline, keys), expected, strict=True):
        assert ours.dtype == reference.dtype
        if not ours.is_floating_point():
            assert torch.equal(ours, reference)
            continue
        # torch's own log and log1p round differently. Where -log(-log(u)) is small, ulps measure
        # nothing: there the bound is that of numbers around one.
        close = (ours - reference).abs() <= 2 * torch.finfo(torch.float32).eps
        close |= torch.from_numpy(ulps(ours, reference) <= 2)
        assert close.all()


@pytest.mark.parametrize('batched', [False, True])
@pytest.mark.parametrize('name', ['pairs', 'bits', 'uniform', 'normal', 'block', 'erfinv', 'log'])
def test_operators_keep_to_the_rules(name, batched):
    key = torch.tensor(KEYS) if batched else KEY
    if name in ('erfinv', 'log'):
        arguments = (torch.rand(4, 3, generator=random.generator(KEY)).T,)
    else:
        arguments = (key, torch.arange(3) if name == 'block' else 5)
    operator = getattr(torch.ops.purerl, name).default
    # The schema (no mutation, no aliasing) and that the fake result has the real one's layout.
    torch.library.opcheck(operator, arguments, test_utils=('test_schema', 'test_faketensor'))


# --- Generators -----------------------------------------------------------------------------------


def test_generators_are_functions_of_their_keys():
    def draw(generator):
        return torch.rand(5, generator=generator)

    assert torch.equal(draw(random.generator(KEY)), draw(random.generator(KEY.clone())))
    firsts = [draw(random.generator(torch.tensor(words)))[0].item() for words in KEYS]
    assert len(set(firsts)) == len(KEYS)
    generator = random.generator(KEY)
    assert not torch.equal(draw(generator), draw(generator))


def test_split_generator():
    def numbers():
        source = random.generator(KEY)
        parts = random.split_generator(source, 3)
        again = random.split_generator(source, 3)
        return [torch.rand(4, generator=g) for g in (*parts, *again, source)]

    first, second = numbers(), numbers()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({x[0].item() for x in first}) == 7


def test_no_global_generator_is_read_or_written():
    def states():
        return (
            torch.random.get_rng_state().tolist(),
            str(np.random.get_state()),
            python_random.getstate(),
        )

    def everything():
        parts = random.split_generator(random.generator(KEY), 2)
        return [*all_draws(KEY), *(torch.rand(3, generator=g) for g in parts)]

    before, first = states(), everything()
    assert states() == before
    torch.random.manual_seed(1)
    np.random.seed(1)
    python_random.seed(1)
    assert_all_equal(everything(), first)
