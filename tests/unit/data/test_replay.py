import gymnasium
import numpy as np
import pytest

from purerl.core import trees
from purerl.data.check import DatasetError
from purerl.data.dataset import Dataset
from purerl.data.replay import ReplayBuffer, transition

BOX = gymnasium.spaces.Box(-1, 1, (3,), np.float64)
ACTIONS = gymnasium.spaces.Box(-1, 1, (2,), np.float32)


def step(i, terminated=False, truncated=False):
    observation = np.full(3, i, np.float32)
    return transition(observation, np.full(2, i), float(i), terminated, truncated, observation + 1)


def filled(count, capacity=5):
    buffer = ReplayBuffer.from_spaces(BOX, ACTIONS, capacity)
    for i in range(count):
        buffer.insert(step(i, terminated=i % 3 == 2))
    return buffer


@pytest.mark.parametrize(
    ('terminated', 'truncated', 'mask', 'done'),
    [(0, 0, 1, False), (1, 0, 0, True), (0, 1, 1, True), (1, 1, 0, True)],
)
def test_only_termination_clears_the_mask(terminated, truncated, mask, done):
    entry = step(0, terminated, truncated)
    assert entry['masks'] == mask
    assert entry['dones'] is done


def test_dtypes_and_shapes_from_spaces():
    buffer = ReplayBuffer.from_spaces(BOX, gymnasium.spaces.Discrete(4), 5)
    shapes = {key: (value.shape, value.dtype) for key, value in buffer.arrays.items()}
    assert shapes == {
        'observations': ((5, 3), np.float32),
        'next_observations': ((5, 3), np.float32),
        'actions': ((5,), np.int64),
        'rewards': ((5,), np.float32),
        'masks': ((5,), np.float32),
        'dones': ((5,), bool),
    }


@pytest.mark.parametrize('count', [1, 4, 5, 6, 10, 13])
def test_the_ring_keeps_the_latest_transitions(count):
    buffer = filled(count)
    assert buffer.size == len(buffer) == min(count, 5)
    assert buffer.pointer == count % 5
    assert set(buffer['rewards'][: buffer.size]) == set(range(max(0, count - 5), count))
    np.testing.assert_array_equal(buffer['next_observations'][:, 0][: buffer.size],
                                  buffer['rewards'][: buffer.size] + 1)  # fmt: skip


def test_only_what_is_filled_is_sampled():
    batch = filled(3, capacity=100).sample(200, np.random.default_rng(0))
    assert set(batch['rewards']) == {0, 1, 2}


def test_an_empty_buffer_says_so():
    with pytest.raises(DatasetError, match='replay buffer: nothing to sample'):
        filled(0).sample(1, np.random.default_rng(0))


def test_dict_observations():
    space = gymnasium.spaces.Dict(
        {'state': BOX, 'pixels': gymnasium.spaces.Box(0, 255, (2, 2, 3), np.uint8)}
    )
    buffer = ReplayBuffer.from_spaces(space, ACTIONS, 4, gymnasium.spaces.Dict({'state': BOX}))
    observation = {'state': np.ones(3), 'pixels': np.full((2, 2, 3), 7, np.uint8)}
    entry = transition(observation, np.zeros(2), 1.0, False, False, {'state': np.zeros(3)})
    buffer.insert(entry)
    batch = buffer.sample(2, np.random.default_rng(0))
    assert batch['observations']['pixels'].dtype == np.uint8
    assert (batch['observations']['pixels'] == 7).all()
    assert list(batch['next_observations']) == ['state']
    with pytest.raises(ValueError, match='observations/pixels'):
        buffer.insert({**entry, 'observations': {'state': np.ones(3)}})


def test_other_spaces_are_refused():
    with pytest.raises(TypeError, match='Box, Discrete and Dict spaces'):
        ReplayBuffer.from_spaces(gymnasium.spaces.Text(4), ACTIONS, 4)
    with pytest.raises(ValueError, match='room for at least one'):
        ReplayBuffer.from_spaces(BOX, ACTIONS, 0)


def test_entries_of_another_shape_are_refused_instead_of_broadcast():
    buffer = filled(1)
    with pytest.raises(ValueError, match=r"'actions' has shape \(1,\), expected \(2,\)"):
        buffer.insert({**step(1), 'actions': np.zeros(1)})
    with pytest.raises(ValueError, match=r"'rewards' has shape \(3,\), expected \(4,\)"):
        many = trees.map(lambda *rows: np.stack(rows), *[step(i) for i in range(4)])
        buffer.add_transitions({**many, 'rewards': many['rewards'][:3]})
    assert buffer.size == 1


@pytest.mark.parametrize('counts', [(3, 3), (5, 1), (7,), (2, 12)])
def test_a_batch_equals_single_insertions(counts):
    one_by_one, batched = filled(2), filled(2)
    start = 2
    for count in counts:
        steps = [step(i) for i in range(start, start + count)]
        for entry in steps:
            one_by_one.add_transition(entry)
        batched.add_transitions(trees.map(lambda *rows: np.stack(rows), *steps))
        start += count
    assert (batched.size, batched.pointer) == (one_by_one.size, one_by_one.pointer)
    for key in batched.arrays:
        np.testing.assert_array_equal(batched[key], one_by_one[key])


def test_an_initial_dataset_may_fill_the_buffer_and_be_added_to():
    arrays = {key: value[:4] for key, value in filled(4).arrays.items()}
    for initial in (arrays, Dataset(arrays)):
        buffer = ReplayBuffer.create_from_initial_dataset(initial, 4)
        assert (buffer.size, buffer.pointer) == (4, 0)
        buffer.insert(step(9))
        np.testing.assert_array_equal(buffer['rewards'], [9, 1, 2, 3])
        assert arrays['rewards'][0] == 0
    with pytest.raises(ValueError, match='4 transitions, the buffer only room for 3'):
        ReplayBuffer.create_from_initial_dataset(arrays, 3)


def test_clear():
    buffer = filled(8)
    buffer.clear()
    assert (buffer.size, buffer.pointer) == (0, 0)
    buffer.insert(step(3))
    assert set(buffer.sample(4, np.random.default_rng(0))['rewards']) == {3}


def test_episode_ends_follow_insertions():
    buffer = filled(3)
    assert buffer.terminal_locs.tolist() == [2]
    for i in range(3, 6):
        buffer.insert(step(i, truncated=i == 3))
    assert buffer.terminal_locs.tolist() == [2, 3]


@pytest.mark.parametrize('count', [1, 4, 6, 8, 10, 12, 13, 27])
@pytest.mark.parametrize('ends', [(), (3, 7), (5, 9, 11), tuple(range(0, 30, 2))], ids=str)
def test_frames_are_stacked_in_the_order_of_insertion(count, ends):
    buffer = ReplayBuffer.from_spaces(BOX, ACTIONS, 6)
    buffer.frame_stack = 3
    for i in range(count):
        buffer.insert(step(i, truncated=i in ends))
    oldest, expected = max(0, count - 6), {}
    for i in range(oldest, count):
        first = max([oldest, *(end + 1 for end in ends if end < i)])
        expected[i] = [max(i - back, first) for back in (2, 1, 0)]
    batch = buffer.sample(buffer.size, np.random.default_rng(0), np.arange(buffer.size))
    for i, frames, following in zip(
        batch['rewards'], batch['observations'], batch['next_observations'], strict=True
    ):
        assert frames[::3].tolist() == expected[i]
        assert following[::3].tolist() == [*expected[i][1:], i + 1]


# --- Resuming ---------------------------------------------------------------------------------


@pytest.mark.parametrize('count', [0, 3, 5, 12])
def test_a_restored_buffer_goes_on_bit_for_bit(count):
    original = filled(count)
    state = trees.map(np.array, original.state_dict())
    assert all(len(v) == min(count, 5) for k, v in state.items() if k.startswith('arrays/'))
    restored = filled(4)  # with other contents
    restored.load_state_dict(state)
    for buffer in (original, restored):
        for i in range(20, 24):
            buffer.insert(step(i, terminated=i == 21))
    rows = slice(0, original.size)
    for key in original.arrays:
        np.testing.assert_array_equal(restored[key][rows], original[key][rows])
    batches = [b.sample(16, np.random.default_rng(5)) for b in (original, restored)]
    for key in batches[0]:
        np.testing.assert_array_equal(batches[0][key], batches[1][key])
    assert original.pointer == restored.pointer
    assert original.terminal_locs.tolist() == restored.terminal_locs.tolist()


def test_a_state_that_does_not_fit_changes_nothing():
    state = filled(3).state_dict()
    buffer = filled(2)
    with pytest.raises(ValueError, match='room for 5 transitions, this one for 6'):
        filled(2, capacity=6).load_state_dict(state)
    without = {key: value for key, value in state.items() if key != 'arrays/rewards'}
    with pytest.raises(ValueError, match='arrays/rewards'):
        buffer.load_state_dict(without)
    with pytest.raises(ValueError, match=r'arrays/actions.*\(3, 4\).*\(3, 2\)'):
        buffer.load_state_dict({**state, 'arrays/actions': np.zeros((3, 4), np.float32)})
    with pytest.raises(ValueError, match=r'arrays/rewards.*float64'):
        buffer.load_state_dict({**state, 'arrays/rewards': np.zeros(3)})
    np.testing.assert_array_equal(buffer['rewards'], [0, 1, 0, 0, 0])
    assert buffer.size == 2
