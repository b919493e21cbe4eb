import numpy as np
import pytest
import torch

from purerl.core import random
from purerl.data import sampling

SOURCES = {
    'legacy': lambda: np.random.RandomState(0),
    'generator': lambda: np.random.default_rng(0),
    'torch': lambda: torch.Generator().manual_seed(0),
    'key': lambda: random.key(0),
}


@pytest.mark.parametrize('make', SOURCES.values(), ids=SOURCES)
def test_every_source_draws_from_the_stated_distributions(make):
    source = sampling.resolve(make())
    integers = source.randint(7, 70000)
    assert integers.shape == (70000,)
    assert integers.dtype == np.int64
    np.testing.assert_allclose(np.bincount(integers, minlength=7) / 10000, 1.0, atol=0.05)
    assert source.randint(5, (3, 2)).shape == (3, 2)
    uniform = source.rand(50000)
    assert uniform.dtype == np.float64
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    assert np.shape(source.rand()) == ()
    trials = source.geometric(0.25, 50000)
    assert trials.min() == 1
    assert abs(trials.mean() - 4.0) < 0.1
    assert abs((trials == 1).mean() - 0.25) < 0.01
    assert source.geometric(1.0, 4).tolist() == [1, 1, 1, 1]
    order = source.permutation(100)
    assert sorted(order) == list(range(100))
    assert (order != np.arange(100)).any()


@pytest.mark.parametrize('make', SOURCES.values(), ids=SOURCES)
def test_the_same_source_repeats_and_its_draws_differ(make):
    first, second = sampling.resolve(make()), sampling.resolve(make())
    draws = [first.randint(1000, 8) for _ in range(2)]
    np.testing.assert_array_equal(draws[0], second.randint(1000, 8))
    assert (draws[0] != draws[1]).any()


def test_legacy_stream_is_numpys_global_stream():
    source = sampling.resolve(np.random.RandomState(3))
    reference = np.random.RandomState(3)
    np.testing.assert_array_equal(source.randint(9, 5), reference.randint(9, size=5))
    assert source.rand() == reference.rand()
    np.testing.assert_array_equal(source.geometric(0.1, 5), reference.geometric(0.1, size=5))


def test_numpy_and_torch_sources_advance_and_a_key_does_not():
    rng, generator, key = np.random.RandomState(0), torch.Generator().manual_seed(0), random.key(0)

    def draw(source):
        return sampling.resolve(source).randint(10**6, 4)

    assert (draw(rng) != draw(rng)).any()
    assert (draw(generator) != draw(generator)).any()
    np.testing.assert_array_equal(draw(key), draw(key))
    np.testing.assert_array_equal(key, random.key(0))


def test_resolving_twice_changes_nothing():
    source = sampling.resolve(random.key(1))
    assert sampling.resolve(source) is source


@pytest.mark.parametrize('wrong', [None, 0, np.random, torch.zeros(2), torch.zeros(3).long()])
def test_other_sources_are_refused_by_name(wrong):
    with pytest.raises(TypeError, match=r'RandomState.*Generator.*torch.Generator.*key'):
        sampling.resolve(wrong)
