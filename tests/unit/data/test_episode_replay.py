"""Buffers of whole episodes: what they hold, what they draw, and going on after a restart."""

import copy

import numpy as np
import pytest
import torch

from purerl.core import random, trees
from purerl.core.checkpoint import load_checkpoint, save_checkpoint
from purerl.data.episode_replay import EliteReplay, EpisodeReplay
from purerl.data.frame_replay import FrameReplay
from purerl.data.transition_replay import TransitionReplay

KINDS = {
    'transitions': TransitionReplay,
    'episodes': EpisodeReplay,
    'elite': EliteReplay,
    'frames': FrameReplay,
}
all_kinds = pytest.mark.parametrize('kind', KINDS)
STACK = 3


def observation(kind, i):
    if kind != 'frames':
        return np.full(2, i, np.float32)
    return np.stack([np.full((4, 5), i + k, np.uint8) for k in range(STACK)], axis=-1)


def transition(kind, i, reward=None):
    """Transition i goes from observation i to i + 1; its action and reward are i too."""
    return {
        'observations': observation(kind, i),
        'actions': np.float32([i]),
        'rewards': float(i if reward is None else reward),
        'masks': np.float32(1),
        'next_observations': observation(kind, i + 1),
    }


def make(kind, capacity=20, max_episode=10):
    return KINDS[kind](transition(kind, 0), capacity, max_episode)


def fill(buffer, kind, lengths, start=0, rewards=None):
    i = start
    for episode, length in enumerate(lengths):
        for _ in range(length):
            buffer.append(transition(kind, i, None if rewards is None else rewards[episode]))
            i += 1
        buffer.commit()
    return buffer


def stream(seed=0):
    return np.random.RandomState(seed)


@all_kinds
def test_batches_hold_transitions_of_finished_episodes(kind):
    buffer = fill(make(kind), kind, [3, 4])
    buffer.append(transition(kind, 7))
    assert (buffer.length, buffer.stored, buffer.episodes, buffer.pending) == (7, 7, 2, 1)
    batch = buffer.sample(200, stream())
    assert set(batch['rewards'].astype(int)) == set(range(7))
    for i, row in enumerate(batch['actions'][:, 0].astype(int)):
        expected = transition(kind, row)
        np.testing.assert_array_equal(batch['observations'][i], expected['observations'])
        np.testing.assert_array_equal(batch['next_observations'][i], expected['next_observations'])
        assert batch['rewards'][i] == row


@pytest.mark.parametrize('kind', ['episodes', 'elite', 'frames'])
def test_old_episodes_leave_as_a_whole_and_rows_are_used_again(kind):
    buffer, lengths = make(kind, capacity=20), [7, 6, 5, 4, 9, 3, 8, 10, 2]
    fill(buffer, kind, lengths)
    assert buffer.length == 20 and list(buffer.lengths()) == [8, 10, 2]
    assert buffer.dropped == 6 and buffer.stored == sum(lengths)
    first = sum(lengths[:6])
    rewards = set(buffer.sample(500, stream())['rewards'].astype(int))
    assert rewards == set(range(first, sum(lengths)))
    np.testing.assert_allclose(buffer.returns()[-1], 52 + 53)
    assert list(np.bincount(buffer.episode_numbers())[6:]) == [8, 10, 2]


def test_single_transitions_leave_one_by_one():
    buffer = fill(make('transitions', capacity=10), 'transitions', [7, 6])
    assert buffer.length == 10
    assert set(buffer.sample(300, stream())['rewards'].astype(int)) == set(range(3, 13))


def test_every_transition_is_equally_likely():
    buffer = fill(make('episodes'), 'episodes', [2, 8])
    counts = np.bincount(buffer.sample(20_000, stream())['rewards'].astype(int))
    np.testing.assert_allclose(counts / 20_000, 0.1, atol=0.01)


@pytest.mark.parametrize('kind', ['episodes', 'frames'])
def test_subsequences_are_of_one_episode(kind):
    buffer = fill(make(kind), kind, [3, 9], rewards=[1.0, 2.0])
    batch = buffer.sample_subsequences(5, stream(), 61, 3, True)
    assert batch['rrd_actions'].shape == (20, 3, 1)
    assert batch['rrd_observations'].shape == (20, 3, *observation(kind, 0).shape)
    actions = batch['rrd_actions'][..., 0].astype(int)
    short = (actions < 3).all(1)
    assert ((actions >= 3).all(1) | short).all() and short.any() and not short.all()
    np.testing.assert_array_equal(batch['rrd_rewards'], np.where(short, 1, 2))
    np.testing.assert_allclose(batch['rrd_var_coef'], np.where(short, 0, 1 - 3 / 9), atol=1e-7)
    distinct = [len(set(row)) == 3 for row in actions]
    # Frames are drawn with repetition, as by the original.
    assert all(distinct) == (kind == 'episodes')
    np.testing.assert_array_equal(
        batch['rrd_next_observations'][0, 1], observation(kind, actions[0, 1] + 1)
    )


def test_episodes_shorter_than_the_subsequence_repeat_transitions():
    buffer = fill(make('episodes'), 'episodes', [1], rewards=[5.0])
    batch = buffer.sample_subsequences(1, stream(), 8, 4, True)
    assert (batch['rrd_actions'] == 0).all() and (batch['rrd_rewards'] == 5).all()
    assert (batch['rrd_var_coef'] == 0).all()
    fill(buffer, 'episodes', [3], start=1)
    coefficients = buffer.sample_subsequences(1, stream(), 80, 4, True)['rrd_var_coef']
    assert set(coefficients) == {0.0, 1.0}
    assert 'rrd_var_coef' not in buffer.sample_subsequences(1, stream(), 4, 4, False)


SOURCES = {
    'key': lambda seed: random.key(seed),
    'torch': lambda seed: random.generator(random.key(seed)),
    'numpy': np.random.default_rng,
}


@pytest.mark.parametrize('name', SOURCES)
@pytest.mark.parametrize('kind', ['transitions', 'episodes', 'elite', 'frames'])
def test_any_random_source_draws(kind, name):
    source = SOURCES[name]
    buffer = fill(make(kind), kind, [2, 8])

    def drawn(seed):
        return buffer.sample(4000, source(seed))['actions'][:, 0].astype(int)

    np.testing.assert_allclose(np.bincount(drawn(0)) / 4000, 0.1, atol=0.02)
    np.testing.assert_array_equal(drawn(0), drawn(0))
    assert (drawn(0) != drawn(1)).any()


@pytest.mark.parametrize('name', SOURCES)
@pytest.mark.parametrize('kind', ['episodes', 'frames'])
def test_any_random_source_draws_subsequences(kind, name):
    buffer = fill(make(kind), kind, [3, 9])
    batch = buffer.sample_subsequences(5, SOURCES[name](0), 150, 3, True)
    actions = batch['rrd_actions'][..., 0].astype(int)  # (50, 3)
    short = (actions < 3).all(1)
    assert ((actions >= 3).all(1) | short).all() and short.any() and not short.all()
    assert all(len(set(row)) == 3 for row in actions) == (kind == 'episodes')
    assert len(np.unique(actions[~short], axis=0)) > 10
    longer = buffer.sample_subsequences(5, SOURCES[name](0), 40, 4, True)['rrd_actions']
    assert longer.shape == (10, 4, 1)


@pytest.mark.parametrize('name', SOURCES)
def test_any_random_source_draws_returns(name):
    rewards = [float(r) for r in range(13)]
    buffer = fill(make('elite', capacity=4), 'elite', [2] * 13, rewards=rewards)
    returns = buffer.sample_returns(400, SOURCES[name](0))['returns']
    assert set(returns[:200]) == {22.0, 24.0}
    assert set(returns[200:]) == {2.0 * r for r in range(3, 13)}


def test_returns_come_half_from_the_ten_best_episodes():
    rewards = [float(r) for r in range(13)]
    buffer = fill(make('elite', capacity=4), 'elite', [2] * 13, rewards=rewards)
    assert [e['return'] for e in buffer.elite] == [2.0 * r for r in range(3, 13)]
    assert buffer.bounds == (6.0, 24.0)
    batch = buffer.sample_returns(9, stream())
    assert batch['returns'].shape == (9,)
    assert set(batch['returns'][:4]) <= {22.0, 24.0}
    assert (batch['return_low'], batch['return_high']) == (6.0, 24.0)
    np.testing.assert_array_equal(batch['returns'], 2 * batch['rewards'])


def test_equal_returns_replace_the_elites_worst():
    buffer = fill(make('elite', capacity=30), 'elite', [1] * 11, rewards=[1.0] * 11)
    assert [int(e['actions'][0, 0]) for e in buffer.elite] == list(range(1, 11))


@all_kinds
def test_lanes_are_filled_side_by_side(kind):
    """Episodes come out as if each had been filled in alone, in the order in which they ended."""
    both, alone = KINDS[kind](transition(kind, 0), 8, 10, 2), make(kind, capacity=8)
    for i in range(3):
        both.append(transition(kind, i), 0)
        both.append(transition(kind, 10 + i), 1)
    both.append(transition(kind, 15), 1)
    assert (both.pending, both.length) == (7, 0)
    restored = KINDS[kind](transition(kind, 0), 8, 10, 2)
    restored.load_state_dict(copy.deepcopy(both.state_dict()))
    for buffer in (both, restored):
        buffer.commit(1)
        buffer.append(transition(kind, 3), 0)
        buffer.commit(0)
    for i in (10, 11, 12, 15):
        alone.append(transition(kind, i))
    alone.commit()
    fill(alone, kind, [4])
    draw = 'sample' if kind == 'transitions' else 'sample_returns'
    expected = getattr(alone, draw)(50, stream())
    for buffer in (both, restored):
        assert (buffer.pending, buffer.length, buffer.episodes) == (0, 8, 2)
        for key, value in getattr(buffer, draw)(50, stream()).items():
            np.testing.assert_array_equal(value, expected[key])


@all_kinds
def test_a_buffer_can_be_saved_before_an_episode_has_ended(kind, tmp_path):
    buffer = make(kind)
    save_checkpoint(tmp_path, 0, {}, {'buffer': buffer.state_dict()})
    buffer.append({**transition(kind, 0), 'actions': np.float32([3])})
    save_checkpoint(tmp_path, 1, {}, {'buffer': buffer.state_dict()})
    _, state, _ = load_checkpoint(tmp_path, 1, like={})
    restored = make(kind)
    restored.load_state_dict(state['buffer'])
    restored.commit()
    assert restored.sample(1, stream())['actions'] == 3


@all_kinds
def test_saved_lanes_are_those_of_the_buffer(kind):
    state = KINDS[kind](transition(kind, 0), 20, 10, 2).state_dict()
    with pytest.raises(ValueError, match='has 2 unfinished episodes, this one 1'):
        make(kind).load_state_dict(state)
    with pytest.raises(ValueError, match='at least one lane'):
        KINDS[kind](transition(kind, 0), 20, 10, 0)


@all_kinds
def test_a_restored_buffer_goes_on_bit_for_bit(kind):
    buffer = fill(make(kind), kind, [7, 6, 5, 9], rewards=[1.0, 4.0, 2.0, 3.0])
    buffer.append(transition(kind, 27))
    other = make(kind)
    other.load_state_dict(copy.deepcopy(buffer.state_dict()))
    for one in (buffer, other):
        one.append(transition(kind, 28))
        one.commit()
        fill(one, kind, [4], start=29)
    draw = 'sample' if kind == 'transitions' else 'sample_returns'
    ours, theirs = (getattr(one, draw)(50, stream()) for one in (buffer, other))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key])
    if kind in ('episodes', 'frames'):
        ours, theirs = (x.sample_subsequences(3, stream(), 9, 3, True) for x in (buffer, other))
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key])


@all_kinds
def test_a_buffer_on_a_device_draws_what_one_of_arrays_draws(kind, tmp_path):
    def draw(buffer, rng):
        batches = [buffer.sample(9, rng)]
        if kind in ('episodes', 'frames'):
            batches.append(buffer.sample_subsequences(4, rng, 6, 3, True))
        if kind != 'transitions':
            batches.append(buffer.sample_returns(9, rng))
        return batches

    lengths = [3, 5, 1, 4, 6, 2, 4]
    host = fill(make(kind), kind, lengths)
    device = fill(KINDS[kind](transition(kind, 0), 20, 10, device='cpu'), kind, lengths)
    buffers = [(host, stream()), (device, stream())]
    for _ in range(2):
        expected, found = (draw(buffer, rng) for buffer, rng in buffers)
        assert all(isinstance(found[0][key], torch.Tensor) for key in found[0])
        for batch, other in zip(expected, found, strict=True):
            assert trees.structure(batch) == trees.structure(other)
            for path, array in trees.leaves_with_path(batch):
                tensor = np.asarray(other[path[0]])
                assert tensor.dtype == array.dtype
                np.testing.assert_array_equal(tensor, array)
        # And as well after having been saved; what is saved is the same.
        for name, (buffer, _) in zip(('host', 'device'), buffers, strict=True):
            save_checkpoint(tmp_path / name, 0, {}, buffer.state_dict())
            state = load_checkpoint(tmp_path / name, like={})[1]
            buffer.load_state_dict(state)
        files = [sorted((tmp_path / name).glob('*.safetensors')) for name in ('host', 'device')]
        assert files[0][0].read_bytes() == files[1][0].read_bytes()


@all_kinds
def test_states_of_other_buffers_are_refused(kind):
    state = fill(make(kind), kind, [3]).state_dict()
    with pytest.raises(ValueError, match='has room for 20 transitions'):
        make(kind, capacity=21).load_state_dict(state)


@all_kinds
def test_bad_input_is_refused(kind):
    buffer = make(kind, max_episode=4)
    with pytest.raises(ValueError, match='nothing to sample'):
        buffer.sample(1, stream())
    for reward in (np.nan, np.inf):
        with pytest.raises(ValueError, match='not a finite number'):
            buffer.append(transition(kind, 0, reward))
    for i in range(4):
        buffer.append(transition(kind, i))
    with pytest.raises(ValueError, match='has not ended after 4 steps'):
        buffer.append(transition(kind, 4))


@all_kinds
def test_rooms_and_empty_episodes_are_checked(kind):
    with pytest.raises(ValueError, match='needs room'):
        make(kind, capacity=0)
    with pytest.raises(ValueError, match='at least one transition'):
        make(kind).commit()


def test_frames_are_stored_once():
    buffer = fill(make('frames', capacity=100, max_episode=50), 'frames', [40])
    stored = sum(frames.nbytes for frames in buffer.state_dict()['frames'].values())
    assert stored == (40 + STACK) * 4 * 5


def test_a_step_does_not_depend_on_the_buffers_size():
    """No copy of what is stored: the arrays stay where they are."""
    buffer = fill(make('episodes', capacity=1000), 'episodes', [10] * 99)
    addresses = [array.__array_interface__['data'] for array in buffer._arrays.values()]
    fill(buffer, 'episodes', [10] * 20)
    assert addresses == [array.__array_interface__['data'] for array in buffer._arrays.values()]


@pytest.mark.parametrize('kind', ['transitions', 'episodes', 'elite'])
def test_numbers_that_float32_or_training_cannot_hold_are_refused(kind):
    buffer = make(kind)
    with pytest.raises(ValueError, match=r'1e\+39 is not a finite number of float32'):
        buffer.append(transition(kind, 0, reward=1e39))
    broken = {'observations': np.float32([1, np.nan])}
    with pytest.raises(ValueError, match=r'observation .* not finite'):
        buffer.append({**transition(kind, 0), **broken})
    buffer.append(transition(kind, 0))
    with pytest.raises(ValueError, match=r'observation .* not finite'):
        buffer.append({**transition(kind, 1), 'next_observations': broken['observations']})
    assert buffer.pending == 1
