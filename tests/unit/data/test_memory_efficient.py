"""The ring of frames against a plain buffer that stores every stack."""

import gymnasium
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from purerl.core import trees
from purerl.data.check import DatasetError
from purerl.data.memory_efficient import MemoryEfficientReplayBuffer
from purerl.data.replay import transition

STACK = 3
ACTIONS = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
IMAGES = gymnasium.spaces.Box(0, 255, (2, 2, 1, STACK), np.uint8)
SPACE = gymnasium.spaces.Dict(
    {'pixels': IMAGES, 'side': IMAGES, 'state': gymnasium.spaces.Box(-9, 9, (1,), np.float32)}
)
CAMERAS = ('pixels', 'side')


def episodes(lengths):
    """Transitions whose images hold the number of their frame; no two frames are the same."""
    frame = number = 0
    for length in lengths:
        first = frame
        frame += length + 1
        for i in range(length):
            now, following = (
                np.maximum(np.arange(t - STACK + 1, t + 1), 0) + first for t in (i, i + 1)
            )
            done = i == length - 1
            yield transition(
                observe(now),
                np.full(2, number, np.float32),
                float(number),
                done,
                False,
                observe(following),
            )
            number += 1


def observe(frames):
    images = np.broadcast_to(frames.astype(np.uint8), IMAGES.shape)
    return {'pixels': images, 'side': images + 100, 'state': np.float32([frames[-1]])}


def filled(lengths, capacity, **options):
    options = {'pixel_keys': CAMERAS, **options}
    buffer = MemoryEfficientReplayBuffer.from_spaces(SPACE, ACTIONS, capacity, **options)
    steps = list(episodes(lengths))
    for step in steps:
        buffer.insert(step)
    return buffer, steps


def equal(ours, expected):
    assert trees.structure(ours) == trees.structure(expected)
    for (path, a), b in zip(trees.leaves_with_path(ours), trees.leaves(expected), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a, b, err_msg='/'.join(path))


def stacked(steps, numbers):
    return trees.map(lambda *rows: np.stack(rows), *(steps[int(n)] for n in numbers))


# Every length of an episode meets every place of a ring's end, also with its padding across it.
@pytest.mark.parametrize('capacity', [4, 5, 7, 11, 16, 20, 33])
@pytest.mark.parametrize('lengths', [(5, 14, 4, 9, 6, 8), (1,) * 20, (50,), (2, 3, 1, 4) * 4])
def test_what_can_be_drawn_is_what_was_inserted(capacity, lengths):
    buffer, steps = filled([], capacity)
    for number, step in enumerate(episodes(lengths)):
        steps.append(step)
        buffer.insert(step)
        rows = np.flatnonzero(buffer.is_drawable)
        batch = buffer.sample(len(rows), None, idxs=rows)
        equal(batch, stacked(steps, batch['rewards']))
        assert batch['rewards'].max() == number  # the newest one always can
        assert len(set(batch['rewards'])) == len(rows)
    # Each episode in the ring, each time round and the pointer cost num_stack rows each.
    assert len(rows) >= capacity - STACK * (2 + capacity // min(lengths))


def test_padding_across_the_rings_end():
    """The case that the original reads wrong frames in."""
    buffer, steps = filled((5, 1, 3), 14)  # the third episode's padding: rows 12, 13 and 0
    newest = buffer.sample(1, None, idxs=[buffer.pointer - 1])
    equal(newest, stacked(steps, newest['rewards']))
    drawn = buffer.sample(500, np.random.default_rng(0))
    equal(drawn, stacked(steps, drawn['rewards']))


def test_packed_images_hold_the_next_frame_too():
    buffer, steps = filled((5, 14, 4), 20)
    batch = buffer.sample(64, np.random.default_rng(1), pack=True)
    plain = buffer.sample(64, np.random.default_rng(1))
    for key in CAMERAS:
        packed = batch['observations'][key]
        assert packed.shape == (64, 2, 2, 1, STACK + 1)
        np.testing.assert_array_equal(packed[..., :-1], plain['observations'][key])
        np.testing.assert_array_equal(packed[..., 1:], plain['next_observations'][key])
    assert list(batch['next_observations']) == ['state']
    equal(plain, stacked(steps, plain['rewards']))


def test_only_the_entries_asked_for():
    buffer, _ = filled((5, 14), 30)
    batch = buffer.sample(8, np.random.default_rng(0), keys=['observations', 'actions'])
    assert sorted(batch) == ['actions', 'observations']
    assert sorted(batch['observations']) == ['pixels', 'side', 'state']
    assert sorted(buffer.sample(8, np.random.default_rng(0), keys=['rewards'])) == ['rewards']


def test_draws_are_uniform_over_the_transitions():
    buffer, _ = filled((4, 4, 4), 30)
    counts = np.bincount(buffer.random_indices(6000, np.random.default_rng(0)), minlength=30)
    drawable = counts[buffer.is_drawable]
    assert len(drawable) == 12
    assert drawable.min() > 400
    assert counts.sum() == drawable.sum()


def test_frames_are_stored_once():
    buffer, _ = filled((5,), 1000)
    assert buffer['observations']['pixels'].nbytes == 1000 * 4
    assert 'pixels' not in buffer['next_observations']


@pytest.mark.parametrize(('lengths', 'capacity'), [((5, 3), 40), ((5, 14, 4, 9), 20), ((30,), 12)])
def test_a_resumed_buffer_goes_on_bit_for_bit(lengths, capacity):
    steps = list(episodes((*lengths, 6, 7)))
    whole, _ = filled([], capacity)
    for step in steps:
        whole.insert(step)
    before, _ = filled(lengths, capacity)
    state = trees.map(
        lambda x: np.array(x) if isinstance(x, np.ndarray) else x, before.state_dict()
    )
    resumed, _ = filled((2,), capacity)
    resumed.load_state_dict(state)
    for step in steps[sum(lengths) :]:
        resumed.insert(step)
    assert (resumed.size, resumed.pointer) == (whole.size, whole.pointer)
    np.testing.assert_array_equal(resumed.is_drawable, whole.is_drawable)
    ours, theirs = (b.sample(50, np.random.default_rng(3), pack=True) for b in (resumed, whole))
    equal(ours, theirs)


def test_resuming_in_the_middle_of_an_episode():
    steps = list(episodes((9,)))
    whole, _ = filled([], 40)
    part, _ = filled([], 40)
    for step in steps:
        whole.insert(step)
    for step in steps[:4]:
        part.insert(step)
    resumed, _ = filled([], 40)
    resumed.load_state_dict(part.state_dict())
    for step in steps[4:]:
        resumed.insert(step)
    assert resumed.size == whole.size == 9 + STACK


def test_a_larger_ring_takes_over_a_full_one():
    for lengths, pointer in (((5, 3), 0), ((11,), 0), ((4, 4), 0), ((5,), 8)):
        small, steps = filled(lengths, 14)
        assert small.pointer == pointer  # nothing has been overwritten
        large, _ = filled([], 40)
        large.load_state_dict({**small.state_dict(), 'capacity': 40, 'pointer': small.size})
        rows = np.flatnonzero(large.is_drawable)
        assert len(rows) == sum(lengths)
        batch = large.sample(len(rows), None, idxs=rows)
        equal(batch, stacked(steps, batch['rewards']))


def test_clearing_begins_anew():
    buffer, _ = filled((5, 4), 20)
    buffer.clear()
    with pytest.raises(DatasetError, match='nothing to sample'):
        buffer.sample(1, np.random.default_rng(0))
    steps = list(episodes((3,)))
    for step in steps:
        buffer.insert(step)
    batch = buffer.sample(20, np.random.default_rng(0))
    equal(batch, stacked(steps, batch['rewards']))


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('capacity', [14, 20, 60])
def test_a_written_dataset_draws_what_was_written(tmp_path, capacity):
    buffer, steps = filled((5, 1, 3, 9, 7), capacity)
    buffer.env_options = {'image_size': 2, 'num_stack': STACK}
    buffer.save(tmp_path / 'data.safetensors')
    loaded = MemoryEfficientReplayBuffer.load(tmp_path / 'data.safetensors')
    assert loaded.env_options == buffer.env_options
    assert (loaded.pixel_keys, loaded.num_stack) == (CAMERAS, STACK)
    rows = np.flatnonzero(loaded.is_drawable)
    batch = loaded.sample(len(rows), None, idxs=rows)
    equal(batch, stacked(steps, batch['rewards']))
    assert set(batch['rewards']) == set(buffer['rewards'][buffer.is_drawable])


def test_the_file_does_not_depend_on_the_capacity(tmp_path):
    paths = [tmp_path / name for name in ('one.safetensors', 'other.safetensors')]
    for path, capacity in zip(paths, (40, 14 + 2 * STACK), strict=True):
        buffer, _ = filled((5, 9), capacity)
        buffer.save(path)
    one, other = (load_file(path) for path in paths)
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_images_alone(tmp_path):
    space = gymnasium.spaces.Dict({'pixels': IMAGES})
    buffer = MemoryEfficientReplayBuffer.from_spaces(space, ACTIONS, 20)
    for step in episodes((4,)):
        for name in ('observations', 'next_observations'):
            step[name] = {'pixels': step[name]['pixels']}
        buffer.insert(step)
    buffer.save(tmp_path / 'data.safetensors')
    loaded = MemoryEfficientReplayBuffer.load(tmp_path / 'data.safetensors')
    assert loaded.sample(3, np.random.default_rng(0), pack=True)['next_observations'] == {}
    batch = loaded.sample(3, np.random.default_rng(0))
    assert batch['next_observations']['pixels'].shape == (3, 2, 2, 1, STACK)


def test_other_files_are_refused(tmp_path):
    load = MemoryEfficientReplayBuffer.load
    with pytest.raises(DatasetError, match=r'no such file.*experiments\.collect'):
        load(tmp_path / 'missing.safetensors')
    (tmp_path / 'text.safetensors').write_text('not a dataset')
    with pytest.raises(DatasetError, match='damaged'):
        load(tmp_path / 'text.safetensors')
    buffer, _ = filled((5,), 20)
    buffer.save(tmp_path / 'cut.safetensors')
    whole = (tmp_path / 'cut.safetensors').read_bytes()
    (tmp_path / 'cut.safetensors').write_bytes(whole[:-5])
    with pytest.raises(DatasetError, match='damaged'):
        load(tmp_path / 'cut.safetensors')
    save_file({'x': np.zeros(3)}, tmp_path / 'other.safetensors')
    with pytest.raises(DatasetError, match='not a dataset of images'):
        load(tmp_path / 'other.safetensors')


# --- Mistakes -------------------------------------------------------------------------------------


def test_mistakes_are_named():
    from_spaces = MemoryEfficientReplayBuffer.from_spaces
    with pytest.raises(ValueError, match="no 'wrist'; they have pixels, side, state"):
        from_spaces(SPACE, ACTIONS, 20, pixel_keys=('pixels', 'wrist'))
    with pytest.raises(ValueError, match='needs a Dict of observations'):
        from_spaces(IMAGES, ACTIONS, 20)
    with pytest.raises(ValueError, match=r'must have the shape .* not \(1,\)'):
        from_spaces(SPACE, ACTIONS, 20, pixel_keys=('state',))
    with pytest.raises(ValueError, match=r'3 rows cannot hold .* 3 stacked'):
        from_spaces(SPACE, ACTIONS, 3, pixel_keys=CAMERAS)
    other = gymnasium.spaces.Dict(
        {'pixels': IMAGES, 'side': gymnasium.spaces.Box(0, 255, (2, 2, 1, 2), np.uint8)}
    )
    with pytest.raises(ValueError, match=r"same number of stacked frames, not \{'pixels': 3"):
        from_spaces(other, ACTIONS, 20, pixel_keys=CAMERAS)

    buffer, steps = filled((5,), 20)
    with pytest.raises(ValueError, match='row 0 holds no transition'):
        buffer.sample(1, None, idxs=[0])
    with pytest.raises(ValueError, match='row 25 holds no transition'):
        buffer.sample(1, None, idxs=[25])
    step = {**steps[0], 'observations': {'pixels': steps[0]['observations']['pixels']}}
    with pytest.raises(ValueError, match="observations have no 'side'"):
        buffer.insert(step)
    short = trees.map(np.array, steps[0])
    short['next_observations']['side'] = short['next_observations']['side'][..., :2]
    with pytest.raises(ValueError, match=r"'side' has shape \(2, 2, 1, 2\), expected"):
        buffer.insert(short)
    smaller, _ = filled([], 10)
    with pytest.raises(ValueError, match='room for 20 transitions, this one for 10'):
        smaller.load_state_dict(buffer.state_dict())
