import numpy as np
import pytest

from purerl.core import random
from purerl.data import episodes
from purerl.data.check import DatasetError


def arrays(dones=(0, 1, 0, 0, 1, 1, 0), rewards=(1, 2, 3, 4, 5, -6, 100)):
    n = len(dones)
    return {
        'dones': np.array(dones, bool),
        'rewards': np.array(rewards, np.float32),
        'nested': {'index': np.arange(n)},
    }


def test_boundaries_leave_out_the_return_of_an_unfinished_episode():
    found = episodes.boundaries(arrays())
    assert found.starts.tolist() == [0, 2, 5, 6]
    assert found.ends.tolist() == [2, 5, 6]
    assert found.returns.tolist() == [3, 12, -6]
    assert found.returns.dtype == np.float32


def test_returns_are_summed_in_float32_step_by_step():
    rewards = np.random.RandomState(0).randn(999).astype(np.float32)
    dones = np.zeros(999, bool)
    dones[-1] = True
    total = np.float32(0)
    for reward in rewards:
        total += reward
    assert episodes.boundaries(arrays(dones, rewards)).returns.tolist() == [total]


def test_terminals_serve_where_there_are_no_dones():
    given = arrays()
    given['terminals'] = given.pop('dones').astype(np.float32)
    assert episodes.boundaries(given).ends.tolist() == [2, 5, 6]
    del given['terminals']
    with pytest.raises(DatasetError, match="neither 'terminals' nor 'dones'"):
        episodes.boundaries(given)


@pytest.mark.parametrize(
    ('selection', 'kept'),
    [
        ({'threshold': 3}, [0, 1, 2, 3, 4]),
        ({'threshold': -10}, [0, 1, 2, 3, 4, 5]),
        ({'threshold': 1000}, []),
        ({'take_top': 34}, [2, 3, 4]),
        ({'take_top': 100}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_filter_keeps_whole_episodes(selection, kept):
    assert episodes.filter_returns(arrays(), **selection)['nested']['index'].tolist() == kept


def test_filter_needs_one_criterion_and_episodes():
    for wrong in ({}, {'take_top': 10, 'threshold': 1}):
        with pytest.raises(ValueError, match='either take_top or threshold'):
            episodes.filter_returns(arrays(), **wrong)
    with pytest.raises(DatasetError, match='no finished episode'):
        episodes.filter_returns(arrays(dones=[0] * 7), take_top=10)


def test_normalised_returns_have_the_scaling_as_their_range():
    given = arrays()
    result = episodes.normalize_returns(given, 500.0)
    returns = episodes.boundaries(result).returns
    np.testing.assert_allclose(returns.max() - returns.min(), 500, rtol=1e-6)
    assert result['rewards'].dtype == np.float32
    assert given['rewards'][0] == 1


@pytest.mark.parametrize(
    ('dones', 'message'), [([0] * 7, 'no finished episode'), ([0] * 6 + [1], 'without a range')]
)
def test_returns_without_a_range_are_refused(dones, message):
    with pytest.raises(DatasetError, match=message):
        episodes.normalize_returns(arrays(dones=dones))


@pytest.mark.parametrize('rng', [np.random.default_rng(0), np.random.RandomState(0), random.key(0)])
def test_split_shuffles_and_keeps_every_row_once(rng):
    first, second = episodes.split(arrays(), 0.6, rng)
    rows = np.concatenate([first['nested']['index'], second['nested']['index']])
    assert len(first['rewards']) == 4
    assert sorted(rows) == list(range(7))
    assert rows.tolist() != list(range(7))
    np.testing.assert_array_equal(first['rewards'], arrays()['rewards'][rows[:4]])


@pytest.mark.parametrize('ratio', [0, 1, -0.5, 2])
def test_split_needs_a_proper_ratio(ratio):
    with pytest.raises(ValueError, match='between 0 and 1'):
        episodes.split(arrays(), ratio, np.random.default_rng(0))
