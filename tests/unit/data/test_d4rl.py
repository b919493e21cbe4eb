import os
import resource

import h5py
import numpy as np
import pytest

from purerl.data import d4rl, episodes
from purerl.data.check import DatasetError


def rows(n=10, terminal=(2,), timeout=(6,), seed=0, **changes):
    rng = np.random.RandomState(seed)
    arrays = {
        'observations': np.arange(n, dtype=np.float32)[:, None] + [[0, 100]],
        'actions': rng.uniform(-1, 1, (n, 3)).astype(np.float32),
        'rewards': np.arange(n, dtype=np.float32),
        'terminals': np.isin(np.arange(n), terminal),
        'timeouts': np.isin(np.arange(n), timeout),
    }
    return {**arrays, **changes}


def reference_qlearning(raw, max_episode_steps=None, terminate_on_end=False):
    """The convention, row by row: the specification that the vectorised function is held to."""
    out = {key: [] for key in (*d4rl.REQUIRED, 'next_observations')}
    step = 0
    for i in range(len(raw['rewards']) - 1):
        final = raw['timeouts'][i] if 'timeouts' in raw else step == max_episode_steps - 1
        if final and not terminate_on_end:
            step = 0
            continue
        if raw['terminals'][i] or final:
            step = 0
        for key in d4rl.REQUIRED:
            out[key].append(raw[key][i])
        out['next_observations'].append(raw['observations'][i + 1])
        step += 1
    return {key: np.array(value) for key, value in out.items()}


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('with_timeouts', [True, False])
@pytest.mark.parametrize('terminate_on_end', [True, False])
def test_qlearning_convention(seed, with_timeouts, terminate_on_end):
    rng = np.random.RandomState(seed)
    raw = rows(60, np.flatnonzero(rng.rand(60) < 0.1), np.flatnonzero(rng.rand(60) < 0.1), seed)
    if not with_timeouts:
        del raw['timeouts']
    expected = reference_qlearning(raw, 7, terminate_on_end)
    result = d4rl.qlearning(raw, 'file', 7, terminate_on_end)
    assert sorted(result) == sorted(expected)
    for key in expected:
        np.testing.assert_array_equal(result[key], expected[key])


def test_loading_by_hand(tmp_path):
    path = tmp_path / 'walk.hdf5'
    given = rows()
    given['actions'][0] = [1, -1, 0.5]
    d4rl.save(path, given)
    arrays = d4rl.load(path)
    # Row 6 ran into the time limit, row 9 is the last; row 5 is followed by row 7: a jump.
    assert arrays['observations'][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert arrays['next_observations'][:, 0].tolist() == [1, 2, 3, 4, 5, 6, 8, 9]
    assert arrays['masks'].tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    assert arrays['dones'].tolist() == [0, 0, 1, 0, 0, 1, 0, 1]
    np.testing.assert_array_equal(arrays['actions'][0], np.float32([1 - 1e-5, -1 + 1e-5, 0.5]))
    assert 'terminals' not in arrays
    dtypes = {key: value.dtype for key, value in arrays.items()}
    assert dtypes.pop('dones') == np.bool_
    assert set(dtypes.values()) == {np.dtype(np.float32)}
    np.testing.assert_array_equal(d4rl.load(path, clip_to_eps=False)['actions'][0], [1, -1, 0.5])


def test_columns_are_flattened(tmp_path):
    given = rows()
    d4rl.save(tmp_path / 'a.hdf5', given)
    with h5py.File(tmp_path / 'b.h5', 'w') as file:
        for key, value in given.items():
            file[key] = value[:, None] if value.ndim == 1 else value
    first, second = d4rl.load(tmp_path / 'a.hdf5'), d4rl.load(tmp_path / 'b.h5')
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_reward_conventions():
    arrays = d4rl.to_dataset(d4rl.qlearning(rows(), 'file'))
    maze = d4rl.shape_rewards(arrays, 'antmaze-umaze-v2')
    np.testing.assert_array_equal(maze['rewards'], arrays['rewards'] - 1)
    for name in ('hopper-medium-v2', 'walker2d-medium-v2', 'halfcheetah-expert-v2'):
        returns = episodes.boundaries(d4rl.shape_rewards(arrays, name)).returns
        np.testing.assert_allclose(returns.max() - returns.min(), 1000, rtol=1e-6)
        assert d4rl.shape_rewards(arrays, name, normalize_returns=False) is arrays
    assert d4rl.shape_rewards(arrays, 'pen-human-v1') is arrays


def test_reward_conventions_by_the_names_of_gymnasium():
    arrays = d4rl.to_dataset(d4rl.qlearning(rows(), 'file'))
    shaped = d4rl.shape_rewards(arrays, 'Hopper-v5')
    assert np.ptp(episodes.boundaries(shaped).returns) == pytest.approx(1000, rel=1e-6)
    assert d4rl.reward_shift('AntMaze_UMaze-v5') == -1
    assert d4rl.reward_shift('Ant-v5') == 0
    own = 'antmaze-large-navigate-singletask-v0'  # OGBench's rewards are -1 and 0 already
    assert d4rl.shape_rewards(arrays, own) is arrays
    with pytest.raises(DatasetError, match=r'mine: .*returns without a range'):
        same = {**arrays, 'rewards': np.zeros_like(arrays['rewards'])}
        d4rl.shape_rewards(same, 'Hopper-v5', name='mine')


def test_old_files_need_the_time_limit(tmp_path):
    given = rows()
    del given['timeouts']
    d4rl.save(tmp_path / 'a.hdf5', given)
    with pytest.raises(DatasetError, match=r"a.hdf5: the key 'timeouts'.*max_episode_steps"):
        d4rl.load(tmp_path / 'a.hdf5')
    limited = d4rl.load(tmp_path / 'a.hdf5', max_episode_steps=4)
    # Row 5, the third of its episode, counts as the fourth: the first after a terminal as second.
    assert limited['observations'][:, 0].tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert len(d4rl.load(tmp_path / 'a.hdf5', terminate_on_end=True)['rewards']) == 9


def test_a_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r'nothing.hdf5: no such file'):
        d4rl.load(tmp_path / 'nothing.hdf5')


@pytest.mark.parametrize('share', [0.0, 0.1, 0.6, 0.95])
def test_a_truncated_file(tmp_path, share):
    path = tmp_path / 'a.hdf5'
    d4rl.save(path, rows(2000))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DatasetError, match=r'a.hdf5: not a readable HDF5 file'):
        d4rl.load(path)


def test_a_file_with_numbers_that_numpy_lacks(tmp_path):
    path = tmp_path / 'a.hdf5'
    d4rl.save(path, rows())
    dtype = h5py.h5t.IEEE_F64LE.copy()
    dtype.set_size(16)
    dtype.set_precision(128)
    dtype.set_fields(127, 97, 30, 0, 97)  # as where the description of a dtype is damaged
    with h5py.File(path, 'a') as file:
        del file['rewards']
        h5py.h5d.create(file.id, b'rewards', dtype, h5py.h5s.create_simple((10,)))
    with pytest.raises(DatasetError, match=r'a.hdf5: not a readable HDF5 file'):
        d4rl.load(path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'timeouts': np.zeros(4)}, "'timeouts' has 4 rows.*index 4"),
        ({'rewards': np.array([0, 1, np.nan] + [0] * 7)}, "'rewards'.*nan.*index 2"),
        ({'timeouts': np.ones(10)}, 'every row is at the time limit'),
    ],
)
def test_a_wrong_dataset_names_file_key_and_index(tmp_path, changes, message):
    with h5py.File(tmp_path / 'a.hdf5', 'w') as file:
        for key, value in rows(**changes).items():
            file[key] = value
    with pytest.raises(DatasetError, match=f'a.hdf5: .*{message}'):
        d4rl.load(tmp_path / 'a.hdf5')


def test_a_missing_key_and_a_single_row(tmp_path):
    with h5py.File(tmp_path / 'a.hdf5', 'w') as file:
        file['observations'] = np.zeros((3, 2))
    with pytest.raises(DatasetError, match=r"a\.hdf5: the key 'actions' is missing"):
        d4rl.load(tmp_path / 'a.hdf5')
    d4rl.save(tmp_path / 'b.hdf5', {key: value[:1] for key, value in rows().items()})
    with pytest.raises(DatasetError, match='needs two rows'):
        d4rl.load(tmp_path / 'b.hdf5')


def test_one_transition_is_enough(tmp_path):
    d4rl.save(tmp_path / 'a.hdf5', {key: value[:2] for key, value in rows().items()})
    arrays = d4rl.load(tmp_path / 'a.hdf5')
    assert len(arrays['rewards']) == 1 and arrays['dones'].tolist() == [True]


def test_images_stay_bytes(tmp_path):
    images = np.zeros((10, 4, 4, 3), np.uint8)
    images[5:] = 200
    d4rl.save(tmp_path / 'a.hdf5', rows(observations=images))
    arrays = d4rl.load(tmp_path / 'a.hdf5')
    assert arrays['observations'].dtype == arrays['next_observations'].dtype == np.uint8
    np.testing.assert_array_equal(arrays['observations'][6], images[6])
    assert arrays['rewards'].dtype == np.float32


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    given = rows(observations=np.random.RandomState(0).randn(10, 40000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r'could not write .*a\.hdf5.*free disk space'):
            d4rl.save(tmp_path / 'a.hdf5', given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_wrong_arrays_are_not_written(tmp_path):
    with pytest.raises(DatasetError, match=r"'rewards'.*inf"):
        d4rl.save(tmp_path / 'a.hdf5', rows(rewards=np.full(10, np.inf)))
    assert os.listdir(tmp_path) == []


def test_actions_beyond_the_bounds_are_clipped_with_a_warning(tmp_path):
    d4rl.save(tmp_path / 'a.hdf5', rows(actions=np.full((10, 2), -2.0)))
    with pytest.warns(UserWarning, match=r'a\.hdf5: actions reach 2 and are clipped'):
        arrays = d4rl.load(tmp_path / 'a.hdf5')
    assert (arrays['actions'] == np.float32(-1 + 1e-5)).all()


def test_integers_stay_actions_of_another_kind(tmp_path):
    d4rl.save(tmp_path / 'a.hdf5', rows(actions=np.full((10, 2), 2)))
    assert d4rl.load(tmp_path / 'a.hdf5')['actions'].tolist()[0] == [2, 2]
