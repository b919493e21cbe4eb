import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from purerl.core import random, trees
from purerl.data.device import DeviceDataset, initial_key


def dataset():
    return DeviceDataset.create(
        {
            'rewards': np.arange(10.0),
            'dones': np.arange(10) % 2 == 0,
            'observations': {'image': np.arange(40, dtype=np.uint8).reshape(10, 2, 2)},
        }
    )


def test_dtypes():
    arrays = dataset().arrays
    assert arrays['rewards'].dtype == torch.float32
    assert arrays['dones'].dtype == torch.bool
    assert arrays['observations']['image'].dtype == torch.uint8


def test_a_batch_takes_the_same_rows_of_every_array():
    key = random.key(3)
    batch = dataset().sample(key, 6)
    idxs = random.randint(key, (6,), 0, 10)
    assert batch['rewards'].tolist() == idxs.tolist()
    assert batch['dones'].tolist() == [i % 2 == 0 for i in idxs.tolist()]
    assert batch['observations']['image'][:, 0, 0].tolist() == (4 * idxs).tolist()


def test_sampling_is_pure():
    key = random.key(3)
    first, second = (dataset().sample(key, 6) for _ in range(2))
    assert torch.equal(first['rewards'], second['rewards'])


def test_the_chain_keeps_the_second_half_of_each_split():
    rng = initial_key(7)
    key, expected = random.split(rng)
    after, batch = dataset().sample_next(rng, 4)
    assert torch.equal(after, expected)
    assert torch.equal(batch['rewards'], dataset().sample(key, 4)['rewards'])


def test_seed_zero_and_none_become_42():
    assert torch.equal(initial_key(0), random.key(42))
    assert torch.equal(initial_key(None), random.key(42))
    assert torch.equal(initial_key(5), random.key(5))


def test_vmap_over_keys_equals_a_loop():
    keys = random.split(random.key(0), 3)
    data = dataset()
    mapped = torch.func.vmap(lambda key: data.sample(key, 5))(keys)
    looped = trees.stack([data.sample(key, 5) for key in keys])
    for ours, expected in zip(trees.leaves(mapped), trees.leaves(looped), strict=True):
        assert torch.equal(ours, expected)


def test_compiled_without_graph_breaks():
    data = dataset()
    sample = torch.compile(
        lambda arrays, key: DeviceDataset(arrays).sample(key, 5), fullgraph=True, backend='eager'
    )
    key = random.key(1)
    compiled, eager = sample(data.arrays, key), data.sample(key, 5)
    for ours, expected in zip(trees.leaves(compiled), trees.leaves(eager), strict=True):
        assert torch.equal(ours, expected)


def test_it_is_a_tree():
    leaves, structure = trees.flatten(dataset())
    assert len(leaves) == 3
    assert trees.unflatten(structure, leaves).size == 10


def test_a_part_shares_the_arrays_and_samples_its_own_rows():
    data = dataset()
    part = data.select(np.array([9, 3, 5]))
    assert part.arrays['rewards'] is data.arrays['rewards']
    assert part.size == 3
    assert part.take(np.array([2, 0]))['rewards'].tolist() == [5, 9]
    key = random.key(3)
    rows = [[9, 3, 5][i] for i in random.randint(key, (6,), 0, 3).tolist()]
    assert part.sample(key, 6)['rewards'].tolist() == rows
    assert part.select(np.array([1, 2])).take(torch.tensor([0, 1]))['rewards'].tolist() == [3, 5]


def test_indices_may_lie_on_another_device():
    class Check(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.index_select.default:
                assert args[0].device == args[2].device
            return func(*args, **(kwargs or {}))

    with Check():
        DeviceDataset({'x': torch.ones(4, device='meta')}).take(torch.arange(2))


def test_writeable_arrays_are_not_copied_and_others_are():
    given = np.arange(4, dtype=np.float32)
    shared = DeviceDataset.create({'x': given}).arrays['x']
    given[0] = 7
    assert shared[0] == 7
    given.flags.writeable = False
    assert DeviceDataset.create({'x': given}).arrays['x'].data_ptr() != given.ctypes.data
