"""Batches of offline runs: which transitions, by which streams."""

import numpy as np
import pytest
import torch

from purerl.core import trees
from purerl.data.device import DeviceDataset
from purerl.train.transitions import KeySampler, first_rows


def sampler(train_ratio=0.75, seed=3):
    data = DeviceDataset.create({'index': np.arange(20), 'x': {'y': np.arange(20.0)}})
    return KeySampler(data, 8, train_ratio, seed)


def draws(source, num=30):
    return torch.cat([source.batch()['index'] for _ in range(num)]).tolist()


def test_the_parts_are_apart_and_complete():
    source = sampler()
    train = set(draws(source))
    held_out = torch.cat([source.held_out_batch()['index'] for _ in range(30)]).tolist()
    assert (len(train), len(set(held_out))) == (15, 5)
    assert train.isdisjoint(held_out)


def test_without_a_split_everything_is_trained_on():
    source = sampler(train_ratio=1.0)
    assert set(draws(source)) == set(range(20))
    assert source.held_out_batch() is None


def test_all_seeds_draw_the_same_places_of_their_own_shuffles():
    assert draws(sampler(1.0, seed=3), 2) == draws(sampler(1.0, seed=4), 2)
    assert draws(sampler(seed=3), 2) != draws(sampler(seed=4), 2)


def test_held_out_batches_do_not_move_training():
    one, other = sampler(), sampler()
    other.held_out_batch()
    assert draws(one, 3) == draws(other, 3)


def test_a_mixed_batch_has_the_online_half_first():
    online = {'index': np.array([100, 101]), 'x': {'y': np.zeros(2, np.float32)}, 'dones': None}
    batch = sampler().mixed_batch(online, 3)
    assert batch.keys() == {'index', 'x'}
    assert batch['index'][:2].tolist() == [100, 101]
    np.testing.assert_array_equal(batch['index'][2:], batch['x']['y'][2:])


@pytest.mark.parametrize('train_ratio', [0.75, 1.0])
def test_a_restored_sampler_goes_on(train_ratio):
    source, other = sampler(train_ratio), sampler(train_ratio)

    def go_on(source):
        online = {'index': np.zeros(1, np.int64), 'x': {'y': np.zeros(1, np.float32)}}
        return trees.leaves(
            [source.batch(), source.held_out_batch(), source.mixed_batch(online, 4)]
        )

    go_on(source)
    other.set_state(source.state())
    for ours, expected in zip(go_on(other), go_on(source), strict=True):
        assert torch.equal(ours, expected)


def test_first_rows_of_short_data_repeat():
    rows = first_rows({'a': np.arange(1), 'b': {'c': np.arange(1.0)}}, 2)
    assert rows['a'].tolist() == [0, 0]
    assert rows['b']['c'].shape == (2,)
